"""The ledger as a persist worker asks it: while it is away the worker waits, with its batch in hand."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import structlog

from ingest.filesystem.folder_identity import KnownFolder
from ingest.ledger import Holdings, Ledger, NewInstance, Outcome, SameContent
from ingest.ledger.removal_lock import LedgerExclusion
from ingest.workers.backoff import Patience

log = structlog.get_logger()


class Rows(Protocol):
    """What placing asks of the ledger; none of it fails, it waits."""

    def holdings(self, uids: Iterable[str]) -> Holdings:
        """See `Ledger.holdings`."""

    def claimed_keys(self, keys: Iterable[str]) -> set[str]:
        """See `Ledger.claimed_keys`."""

    def finish_removals(self, uids: Iterable[str]) -> None:
        """See `Ledger.finish_removals`."""

    def known_spool_refs(self, refs: Iterable[str]) -> set[str]:
        """See `Ledger.known_spool_refs`."""

    def supersede(self, uids: list[str], now_ms: int) -> None:
        """See `Ledger.supersede`."""

    def quarantined_keys(self, same: SameContent) -> list[str]:
        """See `Ledger.quarantined_keys`."""

    def refused_bytes(self) -> int:
        """See `Ledger.refused_bytes`."""

    def delivered_since(self, uid: str, since_ms: int) -> Mapping[str, int]:
        """See `Ledger.delivered_since`."""


class PatientLedger:
    """Every method waits until the ledger answers, and raises `StoppedError` if told to stop meanwhile."""

    def __init__(self, ledger: Ledger, patience: Patience, meanwhile: Callable[[], None]) -> None:
        """Wrap a ledger.

        Args:
            ledger: The ledger.
            patience: How to wait for it.
            meanwhile: Called between two attempts.
        """
        self._ledger = ledger
        self._patience = patience
        self._meanwhile = meanwhile

    def close(self) -> None:
        """Close its connections."""
        self._ledger.close()

    def exclusion(self) -> LedgerExclusion | None:
        """See `Ledger.exclusion`."""
        return self._ledger.exclusion()

    def known_folder(self, kind: str) -> KnownFolder:
        """See `Ledger.known_folder`."""
        return self._patience.insist(lambda: self._ledger.known_folder(kind), self._meanwhile)

    def remember_folder(self, kind: str, identity: str) -> None:
        """See `Ledger.remember_folder`."""
        self._patience.insist(lambda: self._ledger.remember_folder(kind, identity), self._meanwhile)

    def migrate(self) -> None:
        """See `Ledger.migrate`."""
        self._patience.insist(self._ledger.migrate, self._meanwhile)

    def holdings(self, uids: Iterable[str]) -> Holdings:
        """See `Ledger.holdings`."""
        asked = list(uids)
        return self._patience.insist(lambda: self._ledger.holdings(asked), self._meanwhile)

    def claimed_keys(self, keys: Iterable[str]) -> set[str]:
        """See `Ledger.claimed_keys`."""
        asked = list(keys)
        return self._patience.insist(lambda: self._ledger.claimed_keys(asked), self._meanwhile)

    def finish_removals(self, uids: Iterable[str]) -> None:
        """See `Ledger.finish_removals`."""
        marked = list(uids)
        self._patience.insist(lambda: self._ledger.finish_removals(marked), self._meanwhile)

    def known_spool_refs(self, refs: Iterable[str]) -> set[str]:
        """See `Ledger.known_spool_refs`."""
        asked = list(refs)
        return self._patience.insist(lambda: self._ledger.known_spool_refs(asked), self._meanwhile)

    def settled_spool_refs(self, refs: Iterable[str]) -> set[str]:
        """See `Ledger.settled_spool_refs`."""
        asked = list(refs)
        return self._patience.insist(lambda: self._ledger.settled_spool_refs(asked), self._meanwhile)

    def note_duplicates(self, refs: Sequence[str], now_ms: int) -> None:
        """See `Ledger.note_duplicates`."""
        self._patience.insist(lambda: self._ledger.note_duplicates(refs, now_ms), self._meanwhile)

    def supersede(self, uids: list[str], now_ms: int) -> None:
        """See `Ledger.supersede`."""
        self._patience.insist(lambda: self._ledger.supersede(uids, now_ms), self._meanwhile)

    def quarantined_keys(self, same: SameContent) -> list[str]:
        """See `Ledger.quarantined_keys`."""
        return self._patience.insist(lambda: self._ledger.quarantined_keys(same), self._meanwhile)

    def refused_bytes(self) -> int:
        """See `Ledger.refused_bytes`."""
        return self._patience.insist(self._ledger.refused_bytes, self._meanwhile)

    def delivered_since(self, uid: str, since_ms: int) -> Mapping[str, int]:
        """See `Ledger.delivered_since`."""
        return self._patience.insist(lambda: self._ledger.delivered_since(uid, since_ms), self._meanwhile)

    def record(self, rows: Sequence[NewInstance]) -> list[Outcome]:
        """See `Ledger.record`."""
        return self._patience.insist(lambda: self._ledger.record(rows), self._meanwhile)
