"""Number of processor cores that a process may use, by its affinity mask and control groups."""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CGROUPS: Final = Path("/sys/fs/cgroup")
_PROCESSES: Final = Path("/proc")

MAX_PLANNED_LISTENERS: Final = 32
"""Most listeners that `[receive] processes = 0` starts. More cost memory, and no network would fill them."""


@dataclass(frozen=True, slots=True)
class Cores:
    """The cores that a process may use, and what limits them.

    Attributes:
        allowed: Number of cores in its affinity mask.
        quota: Smallest quota of its control group and of the groups above, in cores; None without one.
    """

    allowed: int
    quota: float | None

    @property
    def usable(self) -> int:
        """The number of cores to plan for, at least 1."""
        return max(1, min(self.allowed, math.ceil(self.quota)) if self.quota is not None else self.allowed)


def read_cores(pid: int | None = None, cgroups: Path = CGROUPS, membership: Path | None = None) -> Cores:
    """Return the cores that a process may use.

    A container often sees all cores of its host, but may use only a part of them.

    Args:
        pid: The process; None is this one.
        cgroups: Mount point of the control groups.
        membership: File that names the groups of the process (cgroups(7)); None is that of the process.

    Raises:
        ProcessLookupError: There is no such process.
    """
    membership = membership or _PROCESSES / str(pid or "self") / "cgroup"
    return Cores(len(os.sched_getaffinity(pid or 0)), _read_quota(cgroups, membership))


def usable_cores() -> int:
    """Return the number of cores that this process should plan for, at least 1."""
    return read_cores().usable


def plan_listeners(processes: int) -> int:
    """Return the number of listeners for `[receive] processes`; 0 asks for one on each usable core."""
    return processes or min(usable_cores(), MAX_PLANNED_LISTENERS)


def _read_quota(cgroups: Path, membership: Path) -> float | None:
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    found: list[float] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            found += _read_quotas(cgroups, path, _read_v2)
        elif "cpu" in controllers.split(","):
            # The mount has the name of its controllers, such as "cpu,cpuacct". Most hosts link "cpu" to it.
            mounts = (cgroups / controllers, cgroups / "cpu")
            mount = next((one for one in mounts if one.is_dir()), cgroups)
            found += _read_quotas(mount, path, _read_v1)
    return min(found, default=None)


def _read_quotas(root: Path, path: str, read: Callable[[Path], float | None]) -> Iterator[float]:
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
