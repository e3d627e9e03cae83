"""Spool entries that could not be removed although store and ledger have their instances."""

import time
from pathlib import Path
from typing import Final

import structlog

from ingest.spool.inventory import release_entries

LEFTOVERS_MAX: Final = 100_000
"""Limit on remembered entries. The sweep publishes the others again, and the ledger knows them then."""

RETRY_SECONDS: Final = 5.0
LOG_AGAIN_SECONDS: Final = 60.0

log = structlog.get_logger()


class SpoolLeftovers:
    """The entries that one worker could not remove from the spool or mark as done."""

    def __init__(self, spool_dir: Path) -> None:
        """Start without entries of the spool `spool_dir`."""
        self._spool_dir = spool_dir
        self._names: dict[str, None] = {}
        self._retry_at = self._log_at = 0.0

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: str, error: OSError) -> None:
        """Remember an entry by its name.

        Args:
            name: `Location.name` of the entry.
            error: Why it could not be removed.
        """
        if len(self._names) < LEFTOVERS_MAX:
            self._names[name] = None
        self._retry_at = time.monotonic() + RETRY_SECONDS
        self._log_seldom(error)

    def remove_if_due(self) -> None:
        """Remove the entries, if the last attempt was long ago. The first failure ends the attempt."""
        if not self._names or time.monotonic() < self._retry_at:
            return
        try:
            for name in list(self._names):
                release_entries(self._spool_dir, [name])
                del self._names[name]
        except OSError as error:
            self._retry_at = time.monotonic() + RETRY_SECONDS
            self._log_seldom(error)
        else:
            log.info("spool_files_gone")

    def _log_seldom(self, error: OSError) -> None:
        now = time.monotonic()
        if now >= self._log_at:
            self._log_at = now + LOG_AGAIN_SECONDS
            remedy = "see to the spool's disk; they are stored, and removing them is tried again"
            log.error("spool_files_stay", files=len(self._names), error=str(error), remedy=remedy)
