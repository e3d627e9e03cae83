"""Number of processor cores that this process may use, by its affinity mask and control groups."""

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

CGROUPS: Final = Path("/sys/fs/cgroup")
_MEMBERSHIP: Final = Path("/proc/self/cgroup")


def usable_cores(cgroups: Path = CGROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Return the number of cores to plan for, at least 1.

    A container often sees all cores of its host, but may use only a part of them.

    Args:
        cgroups: Mount point of the control groups.
        membership: File that names the groups of this process (cgroups(7)).
    """
    allowed = len(os.sched_getaffinity(0))
    quota = _quota(cgroups, membership)
    return max(1, min(allowed, math.ceil(quota)) if quota is not None else allowed)


def _quota(cgroups: Path, membership: Path) -> float | None:
    """Return the smallest quota of this process's groups, in cores; None without one."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    found: list[float] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            found += _quotas(cgroups, path, _read_v2)
        elif "cpu" in controllers.split(","):
            found += _quotas(cgroups / "cpu", path, _read_v1)
    return min(found, default=None)


def _quotas(root: Path, path: str, read: Callable[[Path], float | None]) -> Iterator[float]:
    """Yield the quotas of a group and of the groups above it. Each of them limits the process."""
    # In a container the path may start at the root of the host, but only the container's group is mounted.
    group = root / path.lstrip("/")
    for folder in (group, *group.parents):
        quota = read(folder)
        if quota is not None:
            yield quota
        if folder == root:
            return


def _read_v2(folder: Path) -> float | None:
    """Read cpu.max: microseconds of each period, or "max" (cgroup v2)."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return int(quota) / int(period) if quota != "max" else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _read_v1(folder: Path) -> float | None:
    """Read cpu.cfs_quota_us and cpu.cfs_period_us; -1 is no quota (cgroup v1)."""
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        return quota / int((folder / "cpu.cfs_period_us").read_text()) if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
