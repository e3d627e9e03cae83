"""The alarm about acknowledged instances that a fault of ours keeps out of the store for long."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ingest.alarms import clear_alarm, raise_alarm
from ingest.queue.consumer import StreamEntry

ALARM: Final = "not_persisted"
ALARM_SECONDS: Final = 60.0
FORGET_SECONDS: Final = 60.0
"""An entry without a failure for this long was persisted, or another worker has it."""


class UnpersistedAlarm:
    """The entries that faults of ours hold up in one worker."""

    def __init__(self, run_dir: Path) -> None:
        """Start without entries.

        Args:
            run_dir: `Config.run_dir` of the node.
        """
        self._run_dir = run_dir
        self._failed_since: dict[str, float] = {}
        self._failed_last: dict[str, float] = {}
        self._is_raised = True  # a worker that died may have left the alarm

    def add_entries(self, entries: Iterable[StreamEntry], error: Exception) -> None:
        """Note that entries cannot be persisted now, and raise the alarm if that lasts long."""
        now = time.monotonic()
        for entry in entries:
            self._failed_since.setdefault(entry.id, now)
            self._failed_last[entry.id] = now
        count = sum(now - since >= ALARM_SECONDS for since in self._failed_since.values())
        if count:
            # INVARIANT 11: our faults quarantine no image, but an alarm reports them.
            self._is_raised = True
            raise_alarm(
                self._run_dir,
                ALARM,
                f"{count} received instances cannot be persisted: {error}",
                "nothing is lost, they wait in the spool; see to what the cause names",
            )

    def discard_entries(self, entries: Iterable[StreamEntry]) -> None:
        """Forget these entries, and those without a recent failure. Clear the alarm if none is left."""
        for entry in entries:
            self._failed_since.pop(entry.id, None)
            self._failed_last.pop(entry.id, None)
        now = time.monotonic()
        for entry_id in [key for key, at in self._failed_last.items() if now - at > FORGET_SECONDS]:
            del self._failed_since[entry_id], self._failed_last[entry_id]
        if self._is_raised and not self._failed_since:
            self._is_raised = False
            clear_alarm(self._run_dir, ALARM)
