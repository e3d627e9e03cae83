"""One batch's way into quarantine: one copy of the same thing, and of what was refused only so much.

What was acknowledged is always kept; only copies of what was refused have a bound, since their senders know
that they are not stored.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from ingest.ledger import ContentIdentity, Ledger
from ingest.workers.backoff import Backoff, retry_with_backoff
from ingest.workers.persist.arrival import Arrival, Facts
from ingest.workers.persist.compare import content_digest, existing, same_bytes
from ingest.workers.store.filesystem import Batch, Store
from ingest.workers.store.keys import quarantine_key

log = structlog.get_logger()


class Bound(Protocol):
    """`[receive] quarantine_max_bytes`, and who hears that it is reached."""

    max_bytes: int
    """Bytes that copies of what was refused may have together; 0 is no limit."""

    def reached(self) -> None:
        """A copy was not kept."""

    def kept(self) -> None:
        """A copy was kept."""


@dataclass(slots=True)
class NoBound:
    """No limit."""

    max_bytes: int = 0

    def reached(self) -> None:
        """Never called."""

    def kept(self) -> None:
        """Nothing to do."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Where an instance lies in quarantine.

    Attributes:
        key: Its key there; that of the first one where the same thing was there already.
        digest: Of its content.
    """

    key: str
    digest: str


@dataclass(slots=True)
class Aside:
    """What one batch sets aside.

    Attributes:
        quarantine: Where it goes.
        ledger: The ledger.
        ledger_backoff: The failures of the ledger.
        bound: For what was refused.
        exclude: Keeps others from dropping and releasing until the batch is recorded.
        progress: Called often while something large is read.
    """

    quarantine: Store
    ledger: Ledger
    ledger_backoff: Backoff
    bound: Bound
    exclude: Callable[[], None]
    progress: Callable[[], None]
    _fresh: dict[ContentIdentity, str] = field(default_factory=dict)
    _refused_bytes: int | None = None

    def put(self, batch: Batch, arrival: Arrival, facts: Facts, status: int) -> Kept | None:
        """Keep an instance, unless the same thing is kept already; None where there is no room for it.

        Args:
            batch: Of the quarantine.
            arrival: The instance.
            facts: What it says.
            status: What its sender was answered, 0 for Success.

        Raises:
            StoreAwayError: The quarantine is full, failing or not there.
            OSError: A file cannot be read.
        """
        digest = content_digest(
            arrival.source, facts.data_set_offset, facts.transfer_syntax_uid, self.progress
        )
        same = ContentIdentity(digest, facts.sop_instance_uid, facts.study_uid, facts.series_uid, status)
        found = self._fresh.get(same) or self._recorded(same, arrival, facts)
        if found is not None:
            return Kept(found, digest)
        if status and not self._has_room(facts.size):
            self.bound.reached()
            log.warning("copy_not_kept", sop_instance_uid=facts.sop_instance_uid, status=f"{status:04X}")
            return None
        key = quarantine_key(arrival.reference)
        # A name that is taken is that of an earlier try with the same reference.
        self.quarantine.put(batch, arrival.source, key)
        self._fresh[same] = key
        if status:
            self.bound.kept()
        return Kept(key, digest)

    def recorded(self) -> None:
        """The rows are in the ledger: begin anew."""
        self._fresh.clear()
        self._refused_bytes = None

    def _recorded(self, same: ContentIdentity, arrival: Arrival, facts: Facts) -> str | None:
        """The key of the same thing, if the ledger has it and its file is there and whole."""
        if not self._quarantined_keys(same):
            return None
        self.exclude()
        for key in self._quarantined_keys(same):
            with existing(self.quarantine, key) as (there, known):
                offset = known.data_set_offset if known is not None else facts.data_set_offset
                skipping = offset, facts.data_set_offset
                if there is not None and same_bytes(there, arrival.source, self.progress, skipping=skipping):
                    return key
        return None

    def _quarantined_keys(self, same: ContentIdentity) -> list[str]:
        return retry_with_backoff(self.ledger_backoff, self.ledger.quarantine.find_store_keys, same)

    def _has_room(self, size: int) -> bool:
        if not self.bound.max_bytes:
            return True
        if self._refused_bytes is None:
            self._refused_bytes = retry_with_backoff(
                self.ledger_backoff, self.ledger.quarantine.sum_refused_bytes
            )
        if self._refused_bytes + size > self.bound.max_bytes:
            return False
        self._refused_bytes += size
        return True
