"""The time by which studies age: the wall clock, unless there is proof that it is wrong.

A clock that is set a year ahead makes every study a year older. Without a check the remover would then empty
the store. Before each run two things are compared with the wall clock:

- The mark of the last run, in `run/`. It holds the wall clock of that time, and CLOCK_BOOTTIME, which
  cannot be set. Within one boot the two advance alike.
- The newest instance in the store. Studies age only until a day after it. A node that receives no instance
  therefore removes no study for its age, because a wrong clock and a long pause look the same.

While the wall clock is later than the mark allows, no study is removed for its age, and an alarm reports it.
"""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ingest.clock import boot_ms, unix_ms
from ingest.workers.retention.policy import DAY_MS

MARK: Final = "retention_clock.json"
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

STEP_MS: Final = 3_600_000
"""Largest plausible step of the wall clock within one boot. Time servers correct a drift, and seldom more."""

OFF_MS: Final = 7 * DAY_MS
"""Longest plausible time for which a node was switched off between two runs."""

IDLE_MS: Final = DAY_MS


@dataclass(frozen=True, slots=True)
class ClockReading:
    """One reading of the clocks.

    Attributes:
        wall_ms: Unix milliseconds.
        boot_ms: Milliseconds since the start of the machine, suspended time included.
        boot_id: Id of that start.
    """

    wall_ms: int
    boot_ms: int
    boot_id: str


def read_clocks() -> ClockReading:
    """Read the clocks of this machine."""
    boot_id = ""
    with contextlib.suppress(OSError):
        boot_id = BOOT_ID.read_text().strip()
    return ClockReading(unix_ms(), boot_ms(), boot_id)


def measure_jump_ms(mark: ClockReading | None, now: ClockReading) -> int:
    """Return by how much the wall clock is later than the mark of an earlier run allows; 0 if it is not."""
    if mark is None:
        return 0
    if mark.boot_id == now.boot_id and now.boot_ms >= mark.boot_ms:
        return max(0, now.wall_ms - mark.wall_ms - (now.boot_ms - mark.boot_ms) - STEP_MS)
    return max(0, now.wall_ms - mark.wall_ms - OFF_MS)


def compute_retention_ms(wall_ms: int, newest_ms: int | None) -> int:
    """Return the time by which studies age, in Unix milliseconds.

    Args:
        wall_ms: The wall clock.
        newest_ms: When the newest instance was stored; None if the store is empty.
    """
    return wall_ms if newest_ms is None else min(wall_ms, newest_ms + IDLE_MS)


def read_mark(run_dir: Path) -> ClockReading | None:
    """Read the mark of the last run; None if there is none that can be read."""
    try:
        return ClockReading(**json.loads((run_dir / MARK).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def write_mark(run_dir: Path, now: ClockReading) -> None:
    """Write a mark for the next run. On a full disk the old mark stays."""
    new = run_dir / f".{MARK}"
    with contextlib.suppress(OSError):
        new.write_text(json.dumps({"wall_ms": now.wall_ms, "boot_ms": now.boot_ms, "boot_id": now.boot_id}))
        new.replace(run_dir / MARK)
