"""Debian systems with their own systemd as process 1: what a container is, without an engine.

A machine has name spaces of its own for mounts, processes, host name, IPC, network and control groups. Its
network is a loopback device alone, so its ports are free, whatever runs outside. systemd starts units in it
as on any host: with their sandbox, their watchdog and their journal. A machine ends with `power_off`, and at
the latest with the process that started it.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.install.artefacts import require_programs
from tests.install.chroots import Chroot
from tests.support.nodes import eventually

BOOT_SECONDS = 60

# $1: root of the machine, $2: its control group.
_BOOT = r"""
set -e
mount --bind "$1" "$1"
cd "$1"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=755 tmpfs dev
for device in null zero full random urandom tty; do
  touch "dev/$device"
  mount --bind "/dev/$device" "dev/$device"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
echo 0 >"$2/cgroup.procs"
exec unshare --cgroup sh -c '
  set -e
  mount -t cgroup2 cgroup2 sys/fs/cgroup
  pivot_root . .
  umount -l .
  export container=unshare PATH=/usr/sbin:/usr/bin:/sbin:/bin
  exec /lib/systemd/systemd --unit=multi-user.target
'
"""


class Machine:
    """A system of `Chroot` that runs.

    Attributes:
        root: Its root folder, as seen from outside.
    """

    def __init__(self, chroot: Chroot) -> None:
        self.root = chroot.root
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._group: Path | None = None
        self._started: list[subprocess.Popen[bytes]] = []

    def boot(self) -> "Machine":
        """Start systemd, and wait until it has started everything."""
        require_programs("unshare", "nsenter", "pivot_root")
        # debootstrap makes no such file.
        self.write("/etc/hosts", "127.0.0.1 localhost\n")
        self._group = _make_group(f"ingest-test-{os.getpid()}-{self.root.name}")
        spaces = ["--mount", "--propagation=private", "--uts", "--ipc", "--net", "--pid", "--fork"]
        command = [
            "unshare",
            *spaces,
            "--kill-child",
            "sh",
            "-c",
            _BOOT,
            "sh",
            str(self.root),
            str(self._group),
        ]
        log = self.root.with_name("boot.log")
        with log.open("wb") as stream:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
        try:
            self._pid = eventually(self._find_init, BOOT_SECONDS, "process 1")
            eventually(self._is_up, BOOT_SECONDS, "boot")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{log.read_text(errors='replace')[-3000:]}") from None
        return self

    def _find_init(self) -> int:
        assert self._process is not None
        assert self._process.poll() is None, "it ended"
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        if children and Path(f"/proc/{children[0]}/comm").read_text().strip() == "systemd":
            return int(children[0])
        return 0

    def _is_up(self) -> bool:
        state = self.call("systemctl", "is-system-running").stdout.strip()
        # Some unit of the base system may fail in a container; the tests look at ours.
        return state in {"running", "degraded"}

    def _command(self, *words: object) -> list[str]:
        spaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd"]
        environ = ["HOME=/root", "LANG=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", "COLUMNS=200"]
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return ["nsenter", "--target", str(self._pid), *spaces, "env", "-i", *environ, path, *map(str, words)]

    def call(self, *words: object, timeout: float = 120) -> "subprocess.CompletedProcess[str]":
        """Run a program inside to its end, whatever its exit code; both outputs are in `stdout`."""
        return subprocess.run(
            self._command(*words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )

    def run(self, *words: object, timeout: float = 120) -> str:
        """Run a program inside, and return what it prints on both outputs."""
        done = self.call(*words, timeout=timeout)
        assert done.returncode == 0, f"{words} ended with {done.returncode}\n{done.stdout[-6000:]}"
        return done.stdout

    def start(self, *words: object, log: Path) -> None:
        """Start a program inside; it ends with the machine."""
        with log.open("ab") as stream:
            self._started.append(
                subprocess.Popen(
                    self._command(*words), stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
                )
            )

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).strip()

    def path(self, inside: str) -> Path:
        """Return the path outside of a file on the disk of the machine."""
        return self.root / inside.lstrip("/")

    def write(self, inside: str, text: str) -> None:
        """Write a file on the disk of the machine; an existing one keeps its owner and mode."""
        self.path(inside).parent.mkdir(parents=True, exist_ok=True)
        self.path(inside).write_text(text)

    def power_off(self) -> None:
        """End all processes of the machine."""
        if self._process is None:
            return
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                # Process 1 takes every other one with it.
                os.kill(self._pid, signal.SIGKILL)
        self._process.kill()
        for process in (self._process, *self._started):
            process.wait(10)
        self._process = None
        if self._group is not None:
            _remove_group(self._group)


@contextlib.contextmanager
def booted(chroot: Chroot) -> Iterator[Machine]:
    """Boot a machine, and end it."""
    machine = Machine(chroot)
    try:
        yield machine.boot()
    finally:
        machine.power_off()


def _make_group(name: str) -> Path:
    """Make a control group in the unified hierarchy of this machine."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, *_ = line.split()
        if kind == "cgroup2" and os.access(point, os.W_OK):
            group = Path(point, name)
            group.mkdir()
            return group
    # In CI too: the kernel of a machine decides this, and no package.
    pytest.skip("systemd in a machine needs a cgroup2 hierarchy that this user may write to; none is mounted")


def _remove_group(group: Path) -> None:
    deadline = time.monotonic() + 10
    while group.exists() and time.monotonic() < deadline:
        for folder, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        time.sleep(0.05)
