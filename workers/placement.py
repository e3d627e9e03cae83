"""One batch's way into the store and the quarantine: where each instance goes, and the row that says so."""

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Protocol

import structlog

from ingest.dicom.routing import Router, Subject
from ingest.errors import PeerError
from ingest.ledger import InstanceState, NewInstance
from workers.arrival import Arrival, Facts, identify
from workers.duplicates import Action, Policy, decide
from workers.layout import Layout, quarantine_key, safe_name, variant_key
from workers.store import Batch, Source, Store

COMPARE_CHUNK: Final = 1 << 20

_REFUSED: Final = re.compile(r"\.([0-9A-F]{4})\.dcm$")
# PS3.7 9.1.1.1.9 and C.5: what the statuses mean that a listener refuses with.
_REFUSALS: Final = {
    "A900": "its data set does not match the SOP class or instance UID of the request",
    "C000": "its data set cannot be read as its transfer syntax",
}

log = structlog.get_logger()


class Rows(Protocol):
    """What placing asks of the ledger; none of it fails, it waits."""

    def stored_keys(self, uids: Iterable[str]) -> dict[str, str]:
        """See `Ledger.stored_keys`."""

    def known_spool_refs(self, refs: Iterable[str]) -> set[str]:
        """See `Ledger.known_spool_refs`."""

    def supersede(self, uids: list[str], now_ms: int) -> None:
        """See `Ledger.supersede`."""


@dataclass(frozen=True, slots=True)
class Placer:
    """What all batches of a worker share.

    Attributes:
        store: Where instances stay.
        quarantine: Where they go that a person has to look at.
        rows: The ledger.
        layout: `[store] path`.
        policy: `[store] duplicates`.
        router: `[[routes]]`.
        now: The time, in Unix milliseconds.
        progress: Called often while something large is compared.
    """

    store: Store
    quarantine: Store
    rows: Rows
    layout: Layout
    policy: Policy
    router: Router
    now: Callable[[], int]
    progress: Callable[[], None] = lambda: None

    @contextlib.contextmanager
    def batch(self) -> Iterator["Placing"]:
        """Begin a batch.

        Raises:
            StoreAwayError: Store or quarantine is not there.
        """
        with self.store.batch() as stored, self.quarantine.batch() as quarantined:
            yield Placing(self, stored, quarantined)


class Placing:
    """A batch on its way; what it placed is durable after `sync`, and to be recorded then."""

    def __init__(self, placer: Placer, stored: Batch, quarantined: Batch) -> None:
        self._shared = placer
        self._stored = stored
        self._quarantined = quarantined
        self._keys: dict[str, str] = {}
        self._replaced: list[str] = []
        self.rows: list[NewInstance] = []

    def look_up(self, facts: Iterable[Facts]) -> None:
        """Learn which of these SOP instance UIDs are stored; before the first `place`."""
        self._keys.update(self._shared.rows.stored_keys({fact.sop_instance_uid for fact in facts}))

    def place(self, arrival: Arrival, facts: Facts) -> None:
        """Find the place of an instance, and put it there.

        Raises:
            StoreAwayError: The store is full, failing or not there.
            StoreError: The store cannot keep it under its name.
            OSError: Its file, or the one that has its place, cannot be read.
        """
        refused = _REFUSED.search(arrival.reference.where)
        if refused:
            status = refused[1]
            self.set_aside(arrival, facts, f"refused with {status}H: {_REFUSALS.get(status, 'see the log')}")
        elif facts.conflict:
            self.set_aside(arrival, facts, facts.conflict)
        else:
            self._store(arrival, facts)

    def set_aside(self, arrival: Arrival, facts: Facts, reason: str) -> None:
        """Put an instance into quarantine; raises as `place`."""
        key = quarantine_key(arrival.reference)
        # A name that is taken is that of an earlier try with the same reference.
        self._shared.quarantine.put(self._quarantined, arrival.source, key)
        self._add(arrival, facts, key, InstanceState.QUARANTINED, reason)
        log.warning("quarantined", sop_instance_uid=facts.sop_instance_uid, reason=reason, file=key)

    def sync(self) -> None:
        """Make durable what was placed.

        Raises:
            StoreAwayError: A disk is failing.
        """
        self._shared.store.sync(self._stored)
        self._shared.quarantine.sync(self._quarantined)

    def recorded(self) -> None:
        """The rows are in the ledger: remove what they replaced under another name, and begin anew."""
        for key in self._replaced:
            self._shared.store.remove(self._stored, key)
        self._replaced.clear()
        self.rows.clear()

    def _store(self, arrival: Arrival, facts: Facts) -> None:
        key = self._shared.layout.key(facts.study_uid, facts.series_uid, facts.sop_instance_uid)
        taken = self._keys.get(facts.sop_instance_uid)
        if taken is None and self._shared.store.put(self._stored, arrival.source, key):
            self._add(arrival, facts, key, InstanceState.STORED, _note(facts))
        elif taken is None or not self._restore(arrival, facts, taken, key):
            self._collide(arrival, facts, taken or key, key)
        self._keys.setdefault(facts.sop_instance_uid, key)

    def _restore(self, arrival: Arrival, facts: Facts, taken: str, key: str) -> bool:
        """Store an instance whose row is in the ledger, but whose file somebody has removed from the store.

        Nobody can tell any more whether it is the same object, so it is delivered as a new one: a destination
        that gets an object twice is no harm, one that never gets it is.
        """
        with self._existing(taken) as (there, _):
            if there is not None:
                return False
        if not self._shared.store.put(self._stored, arrival.source, key):
            return False
        self._add(arrival, facts, key, InstanceState.STORED, _note(facts), replaces=True)
        self._keys[facts.sop_instance_uid] = key
        log.warning(
            "stored_again", sop_instance_uid=facts.sop_instance_uid, reason="its file was gone", file=taken
        )
        return True

    def _collide(self, arrival: Arrival, facts: Facts, taken: str, key: str) -> None:
        with self._existing(taken) as (there, known):
            if there is not None and _same(there, arrival.source):
                # Stored before a crash, and not recorded or not acknowledged since.
                self._add(arrival, facts, taken, InstanceState.STORED, _note(facts))
                return
            first = known.transfer_syntax_uid if known is not None else None
            decision = decide(self._shared.policy, first, facts.transfer_syntax_uid, None)
            if decision.action is Action.COMPARE and there is not None and known is not None:
                identical = self._identical(there, known, arrival.source, facts)
                decision = decide(self._shared.policy, first, facts.transfer_syntax_uid, identical)
        if decision.action is Action.KEEP and known is not None:
            # Whoever stored the first may have died before recording it; else this row finds its place taken.
            self._add(arrival, known, taken, InstanceState.STORED, _note(known))
            log.info("duplicate_dropped", sop_instance_uid=facts.sop_instance_uid)
        elif decision.action is Action.VARIANT:
            self._variant(arrival, facts, key, decision.note)
        elif decision.action is Action.REPLACE:
            self._replace(arrival, facts, taken, key, decision.note)
        else:
            self.set_aside(arrival, facts, decision.note)

    def _variant(self, arrival: Arrival, facts: Facts, first: str, note: str) -> None:
        key = variant_key(first, facts.transfer_syntax_uid)
        if not self._shared.store.put(self._stored, arrival.source, key):
            with self._existing(key) as (there, known):
                if there is None or known is None or not self._identical(there, known, arrival.source, facts):
                    reason = "another variant of its SOP instance UID and transfer syntax was there first"
                    self.set_aside(arrival, facts, reason)
                    return
                facts = known
        self._add(arrival, facts, key, InstanceState.VARIANT, note)

    def _replace(self, arrival: Arrival, facts: Facts, taken: str, key: str, note: str) -> None:
        shared, uid = self._shared, facts.sop_instance_uid
        # One worker at a time, up to its COMMIT: file and row are of the same object afterwards.
        shared.store.exclude_replacing(self._stored)
        if shared.rows.known_spool_refs([arrival.spool_ref]):
            return  # an object that has replaced, and may have been replaced since
        shared.rows.supersede([uid], shared.now())
        shared.store.replace(self._stored, arrival.source, key)
        if taken != key:
            self._replaced.append(taken)
        self.rows = [
            replace(row, state=InstanceState.REPLACED, destinations=(), replaces=False)
            if row.sop_instance_uid == uid and row.state is InstanceState.STORED
            else row
            for row in self.rows
        ]
        self._add(arrival, facts, key, InstanceState.STORED, note, replaces=True)
        self._keys[uid] = key
        log.info("duplicate_replaced", sop_instance_uid=uid)

    def _add(
        self,
        arrival: Arrival,
        facts: Facts,
        key: str,
        state: InstanceState,
        note: str,
        *,
        replaces: bool = False,
    ) -> None:
        routing = self._shared.router.decide(_subject(facts)) if state is InstanceState.STORED else None
        self.rows.append(
            NewInstance(
                state=state,
                sop_instance_uid=facts.sop_instance_uid,
                sop_class_uid=facts.sop_class_uid,
                study_uid=facts.study_uid,
                series_uid=facts.series_uid,
                transfer_syntax_uid=facts.transfer_syntax_uid,
                store_key=key,
                size=facts.size,
                data_set_offset=facts.data_set_offset,
                calling_ae=facts.calling_ae,
                called_ae=facts.called_ae,
                source=facts.source,
                spool_ref=arrival.spool_ref,
                note=note,
                received_at=arrival.received_at,
                stored_at=self._shared.now(),
                routed=routing.routed if routing else "",
                destinations=routing.destinations if routing else (),
                replaces=replaces,
            )
        )

    @contextlib.contextmanager
    def _existing(self, key: str) -> Iterator[tuple[Source | None, Facts | None]]:
        """The file under a key and what it says; None where it is gone, or is no DICOM file."""
        try:
            fd = self._shared.store.open(key)
        except FileNotFoundError:
            yield None, None
            return
        try:
            source = Source.of(key, fd, synced=True)
            try:
                facts = identify(source, self._shared.router.tags)
            except PeerError:
                facts = None
            yield source, facts
        finally:
            os.close(fd)

    def _identical(self, there: Source, known: Facts, source: Source, facts: Facts) -> bool:
        """Whether two data sets are the same bytes; read side by side, a chunk at a time."""
        if _same(there, source):
            return True
        length = known.size - known.data_set_offset
        if facts.size - facts.data_set_offset != length:
            return False
        ours, theirs = bytearray(COMPARE_CHUNK), bytearray(COMPARE_CHUNK)
        done = 0
        while done < length:
            count = os.preadv(source.fd, [ours], facts.data_set_offset + done)
            if count == 0 or os.preadv(there.fd, [theirs], known.data_set_offset + done) < count:
                return False
            if memoryview(ours)[:count] != memoryview(theirs)[:count]:
                return False
            done += count
            self._shared.progress()
        return True


def _subject(facts: Facts) -> Subject:
    return Subject(
        facts.calling_ae, facts.called_ae, facts.sop_class_uid, facts.transfer_syntax_uid, facts.attributes
    )


def _same(one: Source, other: Source) -> bool:
    """Whether both are names of one file."""
    return (one.device, one.inode) == (other.device, other.inode)


def _note(facts: Facts) -> str:
    """What an operator should know of an instance that is stored."""
    notes = [facts.note] if facts.note else []
    notes += [
        f"no {name} Instance UID: stored as {missing}"
        for name, uid, missing in (
            ("Study", facts.study_uid, "no-study"),
            ("Series", facts.series_uid, "no-series"),
        )
        if not uid
    ]
    uids = (facts.study_uid, facts.series_uid, facts.sop_instance_uid)
    if any(uid and safe_name(uid, "") != uid for uid in uids):
        notes.append("a UID that is none: stored under a name made from its hash")
    return "; ".join(notes)
