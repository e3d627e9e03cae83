"""Keep counters in ledger and store, which show when the ledger went back in time."""

import contextlib
import time
from pathlib import Path
from typing import Final

from ingest.alarms import clear_alarm, raise_alarm
from ingest.errors import LedgerError
from ingest.filesystem.folder_identity import write_ledger_mark
from ingest.ledger import Ledger
from ingest.ledger.store_agreement import ALARM, REMEDY, find_disagreement

MARK_SECONDS: Final = 5.0
"""Shortest time between two marks. A backup of the ledger that is older than this shows."""


class StoreAgreement:
    """The part of one persist worker. A failure here holds no instance up."""

    def __init__(self, root: Path, run_dir: Path, ledger: Ledger) -> None:
        """Prepare without reading anything.

        Args:
            root: Folder of the store.
            run_dir: `Config.run_dir` of the node, for the alarm.
            ledger: The ledger.
        """
        self._root = root
        self._run_dir = run_dir
        self._ledger = ledger
        self._has_stored = False
        self._mark_at = 0.0

    def compare_counters(self) -> bool:
        """Compare the counters, and raise or clear the alarm. Returns whether they agree.

        Raises:
            LedgerError: The ledger is away.
        """
        cause = find_disagreement(self._root, self._ledger)
        if cause:
            raise_alarm(self._run_dir, ALARM, cause, REMEDY)
        else:
            clear_alarm(self._run_dir, ALARM)
        return not cause

    def note_stored(self) -> None:
        """Note that the ledger has recorded an instance since the last mark."""
        self._has_stored = True

    def advance_counters(self, *, at_once: bool = False) -> None:
        """Advance both counters, if an instance was recorded since the last mark.

        While the counters disagree they stay as they are. They are the only proof until the ledger is
        rebuilt.

        Args:
            at_once: Whether to mark even shortly after the last mark.
        """
        if not self._has_stored or (not at_once and time.monotonic() < self._mark_at):
            return
        self._mark_at = time.monotonic() + MARK_SECONDS
        # If the ledger is away or the disk is full, the next call does it.
        with contextlib.suppress(LedgerError, OSError):
            if self.compare_counters():
                write_ledger_mark(self._root, self._ledger.store_folders.advance_mark())
                self._has_stored = False
