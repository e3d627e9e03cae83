"""Containers without an engine: namespaces, a read-only root and control groups around a process.

A container gets what Docker and Podman give it: a root of its own, read-only except for its volumes; its
namespaces of processes, mounts, IPC and UTS; a network namespace if it has a network; a small /dev; its
control groups at /sys/fs/cgroup; a user without root, without capabilities and with no_new_privs. What is
missing: seccomp, user namespaces, layers.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pytest

from tests.install.artefacts import require_programs, skip_or_fail
from tests.install.containerfile import Image
from tests.support.nodes import eventually

CGROUPS = Path("/sys/fs/cgroup")

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")

_START = r"""
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=0755,size=64m layer "$LAYER"
mkdir "$LAYER/upper" "$LAYER/work" "$LAYER/root"
mount -t overlay -o "lowerdir=$IMAGE,upperdir=$LAYER/upper,workdir=$LAYER/work" root "$LAYER/root"
cd "$LAYER/root"
mkdir -p proc dev sys tmp etc run
mount -t proc -o nosuid,nodev,noexec proc proc
mount -t tmpfs -o nosuid,noexec,mode=0755,size=64k dev dev
for name in $DEVICES; do : >"dev/$name"; mount --bind "/dev/$name" "dev/$name"; done
ln -s /proc/self/fd dev/fd
mkdir dev/shm
mount -t tmpfs -o nosuid,nodev,noexec,mode=1777,size=64m shm dev/shm
mount -t tmpfs -o nosuid,nodev,noexec,mode=0755,size=64k sys sys
mkdir -p sys/fs/cgroup
for pair in $CONTROL_GROUPS; do
  mkdir "sys/fs/cgroup/${pair%%=*}"
  mount --bind "${pair#*=}" "sys/fs/cgroup/${pair%%=*}"
  mount -o remount,bind,ro "sys/fs/cgroup/${pair%%=*}"
done
while [ "$1" != -- ]; do
  # Links of the image, such as /var/run, lead to its own folders.
  target=.$(chroot . readlink -m "$2")
  case $1 in
    tmpfs) mkdir -p "$target"; mount -t tmpfs -o "$3" tmpfs "$target" ;;
    bind)
      if [ -d "$3" ]; then mkdir -p "$target"; else mkdir -p "$(dirname "$target")"; : >>"$target"; fi
      mount --bind "$3" "$target"
      [ "$4" = rw ] || mount -o remount,bind,ro "$target" ;;
  esac
  shift 4
done
shift
hostname "$NAME"
[ "$READ_ONLY" = no ] || mount -o remount,ro "$LAYER/root"
exec chroot "$LAYER/root" "$@"
"""


def require_namespaces() -> None:
    """Skip the test on a machine that cannot make containers; fail in CI."""
    require_programs("unshare", "nsenter", "setpriv", "ip")
    if os.getuid() != 0:
        skip_or_fail("namespaces and control groups need root")
    if not (CGROUPS / "memory/memory.limit_in_bytes").exists():
        # In CI too: the kernel of a machine decides this, and no package.
        pytest.skip("the limits of these tests are control groups of version 1; this machine mounts none")


def read_bytes(text: str) -> int:
    """Read a size as compose has it: `512m`, `2g`."""
    factor = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}.get(text[-1].lower(), 1)
    return int(text.rstrip("kmgKMG")) * factor


@dataclass(frozen=True)
class Mount:
    """A file or folder of this machine inside a container."""

    source: Path
    target: str
    is_read_only: bool = True


@dataclass
class Limits:
    """Control groups of version 1 for one container.

    Attributes:
        cores: Quota of the CPU time, in cores; 0 for none.
        memory_bytes: Limit of the memory; 0 for none.
    """

    cores: float = 0.0
    memory_bytes: int = 0
    name: str = field(default_factory=lambda: f"dicom-ingest-test-{uuid.uuid4().hex[:12]}")

    @property
    def controllers(self) -> list[str]:
        return [name for name, value in (("cpu", self.cores), ("memory", self.memory_bytes)) if value]

    def folder(self, controller: str) -> Path:
        """A group below that of this process, so that limits of the session hold for the container too."""
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                return CGROUPS / controller / path.lstrip("/") / self.name
        raise FileNotFoundError(f"no control group of version 1 for {controller}")

    def create(self) -> None:
        for controller in self.controllers:
            self.folder(controller).mkdir()
        if self.cores:
            (self.folder("cpu") / "cpu.cfs_period_us").write_text("100000")
            (self.folder("cpu") / "cpu.cfs_quota_us").write_text(str(int(self.cores * 100_000)))
        if self.memory_bytes:
            (self.folder("memory") / "memory.limit_in_bytes").write_text(str(self.memory_bytes))

    def remove(self) -> None:
        """Remove the groups; the kernel may take a moment to see that their processes have ended."""
        for controller in self.controllers:
            folder = self.folder(controller)
            eventually(lambda folder=folder: _try_rmdir(folder), 10, f"{folder} is empty")


def _try_rmdir(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


@dataclass
class Container:
    """One container; `start` and `stop` at will.

    Attributes:
        image: What runs.
        name: Its host name.
        command: Replaces that of the image.
        entrypoint: Replaces that of the image.
        capabilities: Those that are kept, such as `chown`.
        network: Name of a network namespace (ip-netns(8)); empty is the network of this machine.
    """

    image: Image
    name: str
    command: Sequence[str] | None = None
    entrypoint: Sequence[str] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    folder: str = ""
    capabilities: Sequence[str] = ()
    mounts: Sequence[Mount] = ()
    tmpfs: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    network: str = ""
    is_read_only: bool = True
    output: Path | None = None
    process: "subprocess.Popen[str] | None" = None

    def start(self) -> None:
        """Start the process of the image as PID 1 of its namespaces."""
        self.limits.create()
        layer = Path(tempfile.mkdtemp(prefix="layer-"))
        self._layer = layer
        mounts: list[str] = []
        for target, options in self.tmpfs.items():
            mounts += ["tmpfs", target, options or "mode=1777", ""]
        for mount in self.mounts:
            mounts += ["bind", mount.target, str(mount.source), "ro" if mount.is_read_only else "rw"]
        entrypoint = self.image.entrypoint if self.entrypoint is None else tuple(self.entrypoint)
        command = self.image.command if self.command is None else tuple(self.command)
        words = [
            *self._join_groups(),
            *(["nsenter", f"--net=/run/netns/{self.network}"] if self.network else []),
            *("unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"),
            *("/bin/sh", "-c", _START, "start", *mounts, "--"),
            *self._become_user([*entrypoint, *command]),
        ]
        variables = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LAYER": str(layer),
            "IMAGE": str(self.image.root),
            "DEVICES": " ".join(DEVICES),
            "CONTROL_GROUPS": " ".join(
                f"{each}={self.limits.folder(each)}" for each in self.limits.controllers
            ),
            "NAME": self.name,
            "READ_ONLY": "yes" if self.is_read_only else "no",
        }
        output: IO[bytes] | int = self.output.open("ab") if self.output else subprocess.DEVNULL
        try:
            self.process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, text=True, env=variables
            )
        finally:
            if not isinstance(output, int):
                output.close()

    def _join_groups(self) -> list[str]:
        folders = " ".join(str(self.limits.folder(each)) for each in self.limits.controllers)
        return [
            "/bin/sh",
            "-c",
            f'for each in {folders}; do echo $$ >"$each/cgroup.procs"; done; exec "$@"',
            "join",
        ]

    def _become_user(self, command: Sequence[str]) -> list[str]:
        """Return the command that runs inside the root: environment, user, capabilities, folder."""
        environment = {"HOME": "/", **self.image.environment, **self.environment}
        user, _, group = (self.user or self.image.user).partition(":")
        kept = "".join(f",+{each.lower()}" for each in self.capabilities)
        return [
            "/usr/bin/env",
            "-i",
            *(f"{name}={value}" for name, value in environment.items()),
            "/usr/bin/setpriv",
            f"--reuid={user}",
            f"--regid={group or user}",
            "--clear-groups",
            "--no-new-privs",
            f"--bounding-set=-all{kept}",
            "--inh-caps=-all",
            "/bin/sh",
            "-c",
            'cd "$0" && exec "$@"',
            self.folder or self.image.folder,
            *command,
        ]

    @property
    def pid(self) -> int:
        """The process id, outside, of PID 1 inside."""
        assert self.process is not None
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")

        def find() -> list[str]:
            return path.read_text().split()

        return int(eventually(find, 10, f"{self.name} has begun")[0])

    def list_processes(self) -> dict[int, str]:
        """Process ids outside, and names, of all processes inside; zombies have the name `zombie`."""
        namespace = os.readlink(f"/proc/{self.pid}/ns/pid")
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(path / "ns" / "pid") == namespace:
                    fields = (path / "stat").read_text().rpartition(")")
                    name = fields[0].partition("(")[2]
                    found[int(path.name)] = "zombie" if fields[2].split()[0] == "Z" else name
        return found

    def run(
        self, *command: str, user: str = "", timeout: float = 60.0, standard_input: str = ""
    ) -> "subprocess.CompletedProcess[str]":
        """Run a program inside to its end, as `docker exec` does."""
        inside = Container(self.image, self.name, environment=self.environment, user=user or self.user)
        return subprocess.run(
            [
                *self._join_groups(),
                *("nsenter", f"--target={self.pid}", "--mount", "--pid", "--ipc", "--uts", "--net", "--root"),
                *inside._become_user(command),
            ],
            input=standard_input,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def check_health(self, command: Sequence[str] = ()) -> bool:
        """Run the health check of the image, or another one."""
        return self.run(*(command or self.image.healthcheck)).returncode == 0

    def stop(self, seconds: float) -> int:
        """Send the stop signal to PID 1, and return the exit code."""
        assert self.process is not None
        os.kill(self.pid, signal.Signals[self.image.stop_signal])
        return self.wait(seconds)

    def wait(self, seconds: float) -> int:
        """Wait for the end, and return the exit code."""
        assert self.process is not None
        try:
            return self.process.wait(seconds)
        finally:
            self.remove()

    def remove(self) -> None:
        """Kill what still runs, and clean up."""
        if self.process is None:
            return
        if self.process.poll() is None:
            with contextlib.suppress(OSError, AssertionError):
                os.kill(self.pid, signal.SIGKILL)
            self.process.kill()
        self.process.wait(10)
        self.process = None
        self.limits.remove()
        shutil.rmtree(self._layer, ignore_errors=True)


@contextlib.contextmanager
def removed(container: Container) -> Iterator[Container]:
    """Remove a container at the end of a test."""
    try:
        yield container
    finally:
        container.remove()


class Network:
    """A bridge with one network namespace for each member, as an engine makes for a compose file.

    A namespace of its own holds the bridge. The network of this machine is not changed.
    """

    def __init__(self) -> None:
        self._prefix = f"it{uuid.uuid4().hex[:6]}"
        self._lan = f"{self._prefix}-lan"
        self._members: list[str] = []
        self.addresses: dict[str, str] = {}

    def __enter__(self) -> "Network":
        _ip("netns", "add", self._lan)
        _ip("-n", self._lan, "link", "add", "br0", "type", "bridge")
        _ip("-n", self._lan, "link", "set", "br0", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for name in (*self._members, self._lan):
            subprocess.run(["ip", "netns", "delete", name], check=False)

    def add(self, name: str, *, is_connected: bool = True) -> str:
        """Return the namespace of a new member."""
        number = len(self._members) + 2
        member = f"{self._prefix}-{number}"
        _ip("netns", "add", member)
        self._members.append(member)
        _ip("-n", member, "link", "set", "lo", "up")
        if is_connected:
            _ip(
                "-n",
                self._lan,
                "link",
                "add",
                f"p{number}",
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                member,
            )
            _ip("-n", self._lan, "link", "set", f"p{number}", "master", "br0", "up")
            _ip("-n", member, "address", "add", f"10.89.77.{number}/24", "dev", "eth0")
            _ip("-n", member, "link", "set", "eth0", "up")
            self.addresses[name] = f"10.89.77.{number}"
        return member


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
