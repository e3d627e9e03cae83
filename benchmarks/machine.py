"""What the figures were measured on: the report is worth nothing without it."""

import contextlib
import datetime
import os
import platform
import ssl
import tempfile
from importlib import metadata
from pathlib import Path

import psutil


def describe(folders: dict[str, Path]) -> dict[str, object]:
    """Machine, versions and date as plain values, and the file systems of these folders."""
    frequency = psutil.cpu_freq()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "mhz": round(frequency.current) if frequency else None,
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": _system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        "node": metadata.version("dicom-ingest"),
        "load_before": round(os.getloadavg()[0], 2),
        "file_systems": {name: file_system(path) for name, path in folders.items()},
    }


def file_system(path: Path) -> str:
    """Return the type of the file system that holds `path`, such as "ext4" or "tmpfs"."""
    path = path.resolve()
    found, longest = "unknown", -1
    for partition in psutil.disk_partitions(all=True):
        mount = Path(partition.mountpoint)
        if path.is_relative_to(mount) and len(mount.parts) > longest:
            found, longest = partition.fstype, len(mount.parts)
    return found


def memory_folder() -> Path | None:
    """Return a folder in memory, for CPU figures without a disk. None if the system has none."""
    shared = Path("/dev/shm")
    if shared.is_dir() and os.access(shared, os.W_OK) and file_system(shared) == "tmpfs":
        return shared
    return None


def disk_folder() -> Path:
    """Return a folder for temporary files that is not in memory, if there is one."""
    temporary = Path(tempfile.gettempdir())
    return Path("/var/tmp") if file_system(temporary) == "tmpfs" else temporary


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _system() -> str:
    with contextlib.suppress(OSError):
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    return platform.system()
