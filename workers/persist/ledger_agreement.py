"""Has ledger and store remember each other while images are stored, and notices a ledger that went back."""

import contextlib
import time
from pathlib import Path
from typing import Final

from ingest.alarms import clear_alarm, raise_alarm
from ingest.errors import LedgerError
from ingest.filesystem.folder_identity import write_ledger_mark
from ingest.ledger import Ledger
from ingest.ledger.store_agreement import ALARM, REMEDY, doubt

MARK_SECONDS: Final = 5.0
"""What was stored so long after a backup of the ledger, at least, shows that the backup is older."""


class StoreAgreement:
    """One worker's part of it. Nothing here keeps storing back."""

    def __init__(self, root: Path, run_dir: Path, ledger: Ledger) -> None:
        """Prepare; nothing is read yet.

        Args:
            root: The store's folder.
            run_dir: Of the node, for the alarm.
            ledger: The ledger.
        """
        self._root = root
        self._run_dir = run_dir
        self._ledger = ledger
        self._stored = False
        self._mark_at = 0.0

    def compare(self) -> bool:
        """Whether they agree; raises or clears the alarm.

        Raises:
            LedgerError: The ledger is away.
        """
        cause = doubt(self._root, self._ledger)
        if cause:
            raise_alarm(self._run_dir, ALARM, cause, REMEDY)
        else:
            clear_alarm(self._run_dir, ALARM)
        return not cause

    def stored(self) -> None:
        """Something was recorded."""
        self._stored = True

    def mark(self, *, at_once: bool = False) -> None:
        """Count up in both, if something was recorded since.

        Not while they disagree: the counters are what tells that, until the ledger is rebuilt.
        """
        if not self._stored or (not at_once and time.monotonic() < self._mark_at):
            return
        self._mark_at = time.monotonic() + MARK_SECONDS
        # Ledger away or disk full: it is counted with the next instance.
        with contextlib.suppress(LedgerError, OSError):
            if self.compare():
                write_ledger_mark(self._root, self._ledger.store_folders.advance_mark())
                self._stored = False
