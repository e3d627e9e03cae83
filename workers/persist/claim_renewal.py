"""Renew the claim of a worker on the entries of its batch, so that no other worker takes them over."""

import time
from collections.abc import Sequence
from typing import Final

import redis

from ingest.queue.consumer import StreamConsumer, StreamEntry

RENEW_SECONDS: Final = 3.0
"""Seconds between two renewals; well below `ingest.queue.consumer.IDLE_MILLISECONDS`."""


class ClaimRenewal:
    """The entries that one worker works on, and when their claim was last renewed.

    Attributes:
        current: The entry whose file is being read or stored.
    """

    def __init__(self, consumer: StreamConsumer) -> None:
        """Start without entries."""
        self._consumer = consumer
        self._entries: Sequence[StreamEntry] = ()
        self._renewed_at = 0.0
        self.current: StreamEntry | None = None

    def begin_batch(self, entries: Sequence[StreamEntry]) -> None:
        """Start with the entries of a batch, which were claimed a moment ago."""
        self._entries = entries
        self._renewed_at = time.monotonic()

    def end_batch(self) -> None:
        """Forget the entries of the batch."""
        self._entries = ()

    def renew_if_due(self, *, forgives: bool = False) -> None:
        """Renew the claim if the last renewal was long ago. Call this often during long work.

        Args:
            forgives: Whether to forget the earlier deliveries of all entries, because a service is away.
        """
        now = time.monotonic()
        if now - self._renewed_at < RENEW_SECONDS or not self._entries:
            return
        self._renewed_at = now
        try:
            self._consumer.renew_claims(self._entries, forgives=forgives)
            if self.current is not None:
                # The worker has worked on this entry for seconds. If the worker dies now, reading the file
                # was not the cause.
                self._consumer.renew_claims([self.current], forgives=True)
        except redis.RedisError:
            # Another worker may take the entries over. Persisting an instance twice does no harm.
            self._renewed_at = now + 10 * RENEW_SECONDS
