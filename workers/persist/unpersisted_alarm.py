"""What was acknowledged and cannot be persisted for long, for trouble of ours: a person must hear of it."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ingest.alarms import clear_alarm, raise_alarm
from ingest.queue.consumer import StreamEntry

ALARM: Final = "not_persisted"
ALARM_SECONDS: Final = 60.0
FORGET_SECONDS: Final = 60.0
"""An entry that has not failed here for so long is in another worker's hands, or done."""


class Unpersisted:
    """The entries that trouble of ours keeps back in one worker, and the alarm about them."""

    def __init__(self, run_dir: Path) -> None:
        """Nothing is kept back yet; `run_dir` is the node's."""
        self._run_dir = run_dir
        self._since: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._raised = True  # a worker that died may have left it

    def failed(self, entries: Iterable[StreamEntry], error: Exception) -> None:
        """These cannot be persisted now."""
        now = time.monotonic()
        for entry in entries:
            self._since.setdefault(entry.id, now)
            self._last[entry.id] = now
        long = sum(now - since >= ALARM_SECONDS for since in self._since.values())
        if long:
            self._raised = True
            raise_alarm(
                self._run_dir,
                ALARM,
                f"{long} received instances cannot be persisted: {error}",
                "nothing is lost, they wait in the spool; see to what the cause names",
            )

    def ended(self, entries: Iterable[StreamEntry]) -> None:
        """These are kept, or nothing is known of them any more; ends the alarm after the last one."""
        for entry in entries:
            self._since.pop(entry.id, None)
            self._last.pop(entry.id, None)
        now = time.monotonic()
        for number in [number for number, at in self._last.items() if now - at > FORGET_SECONDS]:
            del self._since[number], self._last[number]
        if self._raised and not self._since:
            self._raised = False
            clear_alarm(self._run_dir, ALARM)
