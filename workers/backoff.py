"""Retry with backoff: wait for a service that is away, until it answers or the worker is asked to stop."""

import threading
import time
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

import structlog

from ingest.errors import BootError, LedgerError, LedgerVersionError, StoppedError, StoreAwayError

LOG_AGAIN_SECONDS: Final = 60.0
"""Seconds between two log events about the same service."""

BACK_OFF_SECONDS: Final = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
"""The wait after the first failure in a row, the second, and so on. The last one repeats."""

_SLICE_SECONDS: Final = 0.05

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger()


class Backoff:
    """The failures in a row of one service: how long to wait after each, and when to log them."""

    def __init__(
        self,
        stop: threading.Event,
        event: str,
        remedy: str,
        *,
        between_attempts: Callable[[], None] = lambda: None,
    ) -> None:
        """Start without failures.

        Args:
            stop: Ends every wait.
            event: Name of the log event while the service is away; `<event>_over` when it answers again.
            remedy: Advice for a person, in the log event.
            between_attempts: Called by `retry_with_backoff` after each wait.
        """
        self._stop = stop
        self._event = event
        self._remedy = remedy
        self._between_attempts = between_attempts
        self._failures = 0
        self._log_at = 0.0

    def wait_after(self, error: Exception) -> None:
        """Log a failure at most once a minute, and wait longer than after the failure before.

        Args:
            error: The failure.
        """
        now = time.monotonic()
        if self._failures == 0 or now >= self._log_at:
            log.warning(self._event, error=str(error), remedy=self._remedy)
            self._log_at = now + LOG_AGAIN_SECONDS
        pause = BACK_OFF_SECONDS[min(self._failures, len(BACK_OFF_SECONDS) - 1)]
        self._failures += 1
        # A signal handler sets the event. If it interrupted `Event.wait`, `Event.set` would wait for the lock
        # that the interrupted call holds. Short sleeps hold no lock.
        until = now + pause
        while not self._stop.is_set() and time.monotonic() < until:
            time.sleep(_SLICE_SECONDS)

    def prepare_next_attempt(self, error: Exception) -> None:
        """Wait after a failure, and make ready for another attempt.

        Raises:
            StoppedError: The worker was asked to stop.
        """
        self.wait_after(error)
        if self._stop.is_set():
            raise StoppedError from error
        self._between_attempts()

    def reset(self) -> None:
        """Forget the failures, because the service answered."""
        if self._failures:
            self._failures = 0
            log.info(f"{self._event}_over")


def retry_with_backoff(backoff: Backoff, call: Callable[P, T], *args: P.args, **keywords: P.kwargs) -> T:
    """Call until ledger and store are there.

    Args:
        backoff: The failures of the service so far.
        call: The function to call, perhaps more than once.
        *args: Arguments of the call; none of them an iterator, because an iterator serves one attempt only.
        **keywords: Its keyword arguments.

    Raises:
        StoppedError: The worker was asked to stop while it waited.
        BootError: A newer program has migrated the ledger. To wait would not help.
    """
    while True:
        # INVARIANT 7: every wait has a deadline. The call and each pause end; only the attempts go on.
        try:
            result = call(*args, **keywords)
        except LedgerVersionError as error:
            raise BootError(str(error)) from error
        except (LedgerError, StoreAwayError) as error:
            # INVARIANT 8: only a wrong configuration stops the node.
            backoff.prepare_next_attempt(error)
        else:
            backoff.reset()
            return result
