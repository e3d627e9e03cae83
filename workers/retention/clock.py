"""Which time studies are aged by: the wall clock, unless something says that it is wrong.

A clock that is set a year ahead makes every study a year older: without a check the remover would empty the
store. Two things are compared with the wall clock before each pass:

- A mark that the pass before has left, in `run/`: the wall clock then, and the clock of the running kernel,
  which nobody sets (CLOCK_BOOTTIME). Within one boot the two advance alike.
- The newest instance in the store. Studies are aged by no time later than a day after it: a node that
  receives nothing removes nothing by age, and cannot tell a wrong clock from a long pause.

While the wall clock is ahead of what the mark allows, nothing is removed by age, and an alarm says so.
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
"""Within one boot the wall clock may get so far ahead: time servers correct drift, and seldom more."""

OFF_MS: Final = 7 * DAY_MS
"""A node may have been switched off for so long between two passes."""

IDLE_MS: Final = DAY_MS


@dataclass(frozen=True, slots=True)
class Moment:
    """One look at the clocks.

    Attributes:
        wall_ms: Unix milliseconds.
        boot_ms: Milliseconds since the machine was started, suspended time included.
        boot_id: Which start that was.
    """

    wall_ms: int
    boot_ms: int
    boot_id: str


def look() -> Moment:
    """Look at the clocks of this machine."""
    boot_id = ""
    with contextlib.suppress(OSError):
        boot_id = BOOT_ID.read_text().strip()
    return Moment(unix_ms(), boot_ms(), boot_id)


def ahead_ms(mark: Moment | None, now: Moment) -> int:
    """How far the wall clock is ahead of what the mark of an earlier pass allows; 0 where it is not."""
    if mark is None:
        return 0
    if mark.boot_id == now.boot_id and now.boot_ms >= mark.boot_ms:
        return max(0, now.wall_ms - mark.wall_ms - (now.boot_ms - mark.boot_ms) - STEP_MS)
    return max(0, now.wall_ms - mark.wall_ms - OFF_MS)


def ageing_time(now_ms: int, newest_ms: int | None) -> int:
    """The time that studies are aged by, in Unix milliseconds.

    Args:
        now_ms: The wall clock.
        newest_ms: When the newest instance was stored; None where there is none.
    """
    return now_ms if newest_ms is None else min(now_ms, newest_ms + IDLE_MS)


def read_mark(run_dir: Path) -> Moment | None:
    """The mark of the last pass; None where there is none that can be read."""
    try:
        return Moment(**json.loads((run_dir / MARK).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def leave_mark(run_dir: Path, now: Moment) -> None:
    """Leave a mark for the next pass; without room for it the older one stays."""
    new = run_dir / f".{MARK}"
    with contextlib.suppress(OSError):
        new.write_text(json.dumps({"wall_ms": now.wall_ms, "boot_ms": now.boot_ms, "boot_id": now.boot_id}))
        new.replace(run_dir / MARK)
