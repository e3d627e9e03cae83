"""Waiting for what is merely away, said once a minute, until it is back or the worker is told to stop."""

import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

import structlog

from ingest.errors import IngestError, LedgerError, StoreAwayError

SAY_AGAIN_SECONDS: Final = 60.0
BACK_OFF_SECONDS: Final = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_SLICE_SECONDS: Final = 0.05

T = TypeVar("T")

log = structlog.get_logger()


class StoppedError(Exception):
    """The worker was told to stop while it waited; what it had in hand stays on the queue."""


class Patience:
    """One thing that may be away: how long to wait for it, and when to say so."""

    def __init__(self, stop: threading.Event, event: str, remedy: str) -> None:
        """Begin with it being there.

        Args:
            stop: Ends every wait.
            event: What the log says while it is away; `<event>_over` afterwards.
            remedy: What goes on meanwhile, or what to do.
        """
        self._stop = stop
        self._event = event
        self._remedy = remedy
        self._failures = 0
        self._say_at = 0.0

    def failed(self, error: Exception) -> None:
        """It is away: say so unless that was said lately, and wait a little longer than the last time."""
        now = time.monotonic()
        if self._failures == 0 or now >= self._say_at:
            log.warning(self._event, error=str(error), remedy=self._remedy)
            self._say_at = now + SAY_AGAIN_SECONDS
        pause = BACK_OFF_SECONDS[min(self._failures, len(BACK_OFF_SECONDS) - 1)]
        self._failures += 1
        # A signal handler sets the event: waiting on it could hold the very lock that setting it takes.
        until = now + pause
        while not self._stop.is_set() and time.monotonic() < until:
            time.sleep(_SLICE_SECONDS)

    def worked(self) -> None:
        """It is there."""
        if self._failures:
            self._failures = 0
            log.info(f"{self._event}_over")

    def insist(self, ask: Callable[[], T], meanwhile: Callable[[], None] = lambda: None) -> T:
        """Ask until ledger and store are there.

        Args:
            ask: What to do; may be done again.
            meanwhile: Called between two attempts.

        Raises:
            StoppedError: The worker was told to stop first.
        """
        while True:
            try:
                result = ask()
            except (LedgerError, StoreAwayError) as error:
                self._wait(error, meanwhile)
            else:
                self.worked()
                return result

    def _wait(self, error: IngestError, meanwhile: Callable[[], None]) -> None:
        self.failed(error)
        if self._stop.is_set():
            raise StoppedError from error
        meanwhile()
