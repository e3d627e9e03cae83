"""Spool files that could not be removed although store and ledger have them: removed later, while running."""

import time
from pathlib import Path
from typing import Final

import structlog

from ingest.spool.inventory import release_entries

LEFTOVERS_MAX: Final = 100_000
"""More are not remembered: the listener's sweep puts them on the queue again, and they are known then."""

RETRY_SECONDS: Final = 5.0
SAY_AGAIN_SECONDS: Final = 60.0

log = structlog.get_logger()


class Leftovers:
    """What one worker could not remove from the spool or mark there as done."""

    def __init__(self, spool_dir: Path) -> None:
        """Of that spool; nothing is left yet."""
        self._spool_dir = spool_dir
        self._names: dict[str, None] = {}
        self._retry_at = self._say_at = 0.0

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: str, error: OSError) -> None:
        """Remember one by the name of its place."""
        if len(self._names) < LEFTOVERS_MAX:
            self._names[name] = None
        self._retry_at = time.monotonic() + RETRY_SECONDS
        self._say(error)

    def retry(self) -> None:
        """Try again, if that is due; stops at the first that still cannot be removed."""
        if not self._names or time.monotonic() < self._retry_at:
            return
        try:
            for name in list(self._names):
                release_entries(self._spool_dir, [name])
                del self._names[name]
        except OSError as error:
            self._retry_at = time.monotonic() + RETRY_SECONDS
            self._say(error)
        else:
            log.info("spool_files_gone")

    def _say(self, error: OSError) -> None:
        now = time.monotonic()
        if now >= self._say_at:
            self._say_at = now + SAY_AGAIN_SECONDS
            remedy = "see to the spool's disk; they are stored, and removing them is tried again"
            log.error("spool_files_stay", files=len(self._names), error=str(error), remedy=remedy)
