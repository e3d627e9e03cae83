"""One batch's way into the store and the quarantine: where each instance goes, and the row that says so."""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import structlog

from ingest.ledger import InstanceState, Ledger, NewInstance, Outcome, StoreKeys
from ingest.routing.router import Router, RoutingDecision
from ingest.spool.reference import Reference
from ingest.workers.backoff import Backoff, retry_with_backoff
from ingest.workers.persist.arrival import Arrival, Facts
from ingest.workers.persist.compare import content_digest, existing, same_bytes, same_file
from ingest.workers.persist.duplicates import (
    DELIVERED_MAX,
    DELIVERED_WITHIN_MS,
    Action,
    Policy,
    at_bound,
    decide,
)
from ingest.workers.quarantine.copies import Aside, Bound, NoBound
from ingest.workers.store.filesystem import Batch, Store
from ingest.workers.store.keys import Layout, safe_name, variant_key
from ingest.workers.store.removal import may_be_another

_REFUSED: Final = re.compile(r"\.([0-9A-F]{4})\.dcm$")
# PS3.7 9.1.1.1.9 and C.5: what the statuses mean that a listener refuses with.
_REFUSALS: Final = {
    "A900": "its data set does not match the SOP class or instance UID of the request",
    "C000": "its data set cannot be read as its transfer syntax",
}

log = structlog.get_logger()


def was_refused(reference: Reference) -> bool:
    """Whether an instance was answered with a failure, and is only a copy for a person to look at."""
    return _REFUSED.search(reference.path) is not None


@dataclass(frozen=True, slots=True)
class Placer:
    """What all batches of a worker share.

    Attributes:
        store: Where instances stay.
        quarantine: Where they go that a person has to look at.
        ledger: The ledger.
        ledger_backoff: The failures of the ledger.
        layout: `[store] path`.
        policy: `[store] duplicates`.
        router: `[[routes]]`.
        now: The time, in Unix milliseconds.
        progress: Called often while something large is compared.
        bound: For copies of what was refused.
        too_many: Told of a destination, and a SOP instance UID that it has had too many objects of lately.
    """

    store: Store
    quarantine: Store
    ledger: Ledger
    ledger_backoff: Backoff
    layout: Layout
    policy: Policy
    router: Router
    now: Callable[[], int]
    progress: Callable[[], None] = lambda: None
    bound: Bound = field(default_factory=NoBound)
    too_many: Callable[[str, str], None] = lambda _destination, _uid: None

    @contextlib.contextmanager
    def batch(self) -> Iterator["Placing"]:
        """Begin a batch.

        Raises:
            StoreAwayError: Store or quarantine is not there.
        """
        with self.store.batch() as stored, self.quarantine.batch() as quarantined:
            yield Placing(self, stored, quarantined)


class Placing:
    """A batch on its way; what it placed is durable after `sync`, and to be recorded then.

    A name that is free is taken without asking anybody. Whoever finds one taken keeps all others from
    replacing and removing, up to its COMMIT, and only then looks at what is there.
    """

    def __init__(self, placer: Placer, stored: Batch, quarantined: Batch) -> None:
        self._shared = placer
        self._stored = stored
        self._quarantined = quarantined
        self._asked: set[str] = set()
        self._keys: dict[str, str] = {}
        self._held = StoreKeys()
        self._put: set[str] = set()
        self._replaced: set[str] = set()
        self._excluding = False
        self._aside = Aside(
            placer.quarantine,
            placer.ledger,
            placer.ledger_backoff,
            placer.bound,
            exclude=self._exclude,
            progress=placer.progress,
        )
        self.rows: list[NewInstance] = []

    def look_up(self, facts: Iterable[Facts]) -> None:
        """Learn which of these SOP instance UIDs are stored; before the first `place`."""
        self._asked.update(fact.sop_instance_uid for fact in facts)
        self._learn()

    def place(self, arrival: Arrival, facts: Facts) -> None:
        """Find the place of an instance, and put it there.

        Raises:
            StoreAwayError: The store is full, failing or not there.
            StoreError: The store cannot keep it under its name.
            OSError: Its file, or the one that has its place, cannot be read.
        """
        refused = _REFUSED.search(arrival.reference.path)
        if refused:
            status = refused[1]
            reason = f"refused with {status}H: {_REFUSALS.get(status, 'see the log')}"
            self.set_aside(arrival, facts, reason, int(status, 16))
        elif facts.conflict:
            self.set_aside(arrival, facts, facts.conflict)
        else:
            self._store(arrival, facts)

    def set_aside(self, arrival: Arrival, facts: Facts, reason: str, status: int = 0) -> None:
        """Put an instance into quarantine, once; raises as `place`.

        Args:
            arrival: The instance.
            facts: What it says.
            reason: Why, for a person to read.
            status: What its sender was answered: 0 for Success. Only a copy of what was refused may be
                left out, where there is no room for it.
        """
        kept = self._aside.put(self._quarantined, arrival, facts, status)
        if kept is not None:
            # If the same thing lies there, this row finds its place taken, and the ledger counts it.
            self._add(
                arrival,
                facts,
                kept.key,
                InstanceState.QUARANTINED,
                reason,
                refused_status=status,
                content_digest=kept.digest,
            )
            log.warning("quarantined", sop_instance_uid=facts.sop_instance_uid, reason=reason, file=kept.key)

    def sync(self) -> None:
        """Make durable what was placed.

        Raises:
            StoreAwayError: A disk is failing.
        """
        self._shared.store.sync(self._stored)
        self._shared.quarantine.sync(self._quarantined)

    def contested(self, refused: Sequence[tuple[NewInstance, Outcome]]) -> set[str]:
        """Judge what the ledger has made no row for; after the COMMIT, before `recorded`.

        Another worker may have stored the same SOP instance UID under another name meanwhile, or let go of
        what this batch took for the first one.

        Returns:
            The spool references of those that are to be placed again.

        Raises:
            StoreAwayError: The store is failing, or not to be had for removing.
        """
        stored = [(row, outcome) for row, outcome in refused if row.state is InstanceState.STORED]
        if not stored:
            return set()
        held = retry_with_backoff(
            self._shared.ledger_backoff,
            self._shared.ledger.instances.find_store_keys,
            {row.sop_instance_uid for row, _ in stored},
        )
        again = set()
        for row, outcome in stored:
            if outcome is Outcome.TAKEN:
                own = held.copies.get(row.sop_instance_uid, set()) if row.copy_digest else set()
                first = held.stored.get(row.sop_instance_uid)
                if row.replaces or row.store_key not in {first, *own}:
                    again.add(row.spool_ref)
            elif row.store_key in self._put:
                # Recorded long ago, and removed since: its file must not come back.
                self._exclude()
                self._remove_unclaimed(row.store_key)
        return again

    def recorded(self) -> None:
        """The rows are in the ledger: remove what they replaced under another name, and begin anew."""
        for key in self._replaced:
            self._shared.store.remove(self._stored, key)
        self._shared.store.admit_replacing(self._stored)
        self._excluding = False
        self._replaced.clear()
        self._put.clear()
        self._aside.recorded()
        self.rows.clear()

    def _learn(self) -> None:
        self._held = retry_with_backoff(
            self._shared.ledger_backoff, self._shared.ledger.instances.find_store_keys, self._asked
        )
        own = {row.sop_instance_uid for row in self.rows if _is_first(row)}
        self._keys = {uid: key for uid, key in self._keys.items() if uid in own} | dict(self._held.stored)

    def _exclude(self) -> None:
        """Have files and rows stay as they are, but for what is new, and learn what they are by now.

        Whoever was about to remove a file would have the lock if it were alive: what it left is done here.
        """
        if self._excluding:
            return
        self._shared.store.exclude_replacing(self._stored)
        self._excluding = True
        self._learn()
        removing, replaced = self._held.removing, self._held.replaced
        left = set().union(*removing.values(), *replaced.values()) - self._put
        anothers = {key for key in left if self._may_be_anothers(key)}
        for key in left - anothers:
            self._remove_unclaimed(key)
        gone = {uid for uid, keys in removing.items() if not keys & anothers}
        if gone:
            self._shared.store.sync(self._stored)
            retry_with_backoff(
                self._shared.ledger_backoff, self._shared.ledger.instances.finish_removals, gone
            )

    def _may_be_anothers(self, key: str) -> bool:
        """Whether a worker that knew nothing of the row may be about to record what has its name now."""
        try:
            changed = self._shared.store.changed_ms(key)
        except FileNotFoundError:
            return False
        now = self._shared.now() + self._shared.store.clock_ahead_ms(self._stored)
        return may_be_another(changed, self._held.left_at[key], now)

    def _remove_unclaimed(self, key: str) -> None:
        if not retry_with_backoff(
            self._shared.ledger_backoff, self._shared.ledger.instances.find_claimed_keys, [key]
        ):
            self._shared.store.remove(self._stored, key)

    def _store(self, arrival: Arrival, facts: Facts) -> None:
        key = self._shared.layout.key(facts.study_uid, facts.series_uid, facts.sop_instance_uid)
        uid = facts.sop_instance_uid
        known = self._held
        held = uid in self._keys or any(uid in of for of in (known.removing, known.replaced, known.copies))
        if not held and self._give(arrival, key):
            self._add(arrival, facts, key, InstanceState.STORED, _note(facts))
            return
        self._exclude()
        taken = self._keys.get(uid)
        # Somebody may have removed the file of a row. Nobody can tell then whether it is the same object, so
        # it is delivered as a new one: a destination that gets it twice is no harm, one that never does is.
        lost = taken is not None and not self._is_there(taken)
        if taken is None and self._is_stored_copy(arrival, facts):
            return
        if (taken is None or lost) and self._give(arrival, key):
            self._add(arrival, facts, key, InstanceState.STORED, _note(facts), replaces=lost)
            if lost:
                log.warning("stored_again", sop_instance_uid=uid, reason="its file was gone", file=taken)
        else:
            self._collide(arrival, facts, key if taken is None or lost else taken, key, lost=lost)

    def _give(self, arrival: Arrival, key: str) -> bool:
        given = self._shared.store.put(self._stored, arrival.source, key)
        if given:
            self._put.add(key)
        return given

    def _is_there(self, key: str) -> bool:
        try:
            self._shared.store.size(key)
        except FileNotFoundError:
            return False
        return True

    def _collide(self, arrival: Arrival, facts: Facts, taken: str, key: str, *, lost: bool) -> None:
        shared, source = self._shared, arrival.source
        if taken != key:
            self._clear(arrival, key)
        with existing(shared.store, taken, shared.router.tags) as (there, known):
            if there is not None and same_file(there, source):
                # Stored before a crash, or before its UID was contested.
                replaces = lost or shared.policy == "overwrite"
                self._add(arrival, facts, taken, InstanceState.STORED, _note(facts), replaces=replaces)
                return
            first = known.transfer_syntax_uid if known is not None else None
            decision = decide(shared.policy, first, facts.transfer_syntax_uid, None)
            if decision.action is Action.COMPARE and there is not None and known is not None:
                offsets = known.data_set_offset, facts.data_set_offset
                identical = same_bytes(there, source, shared.progress, skipping=offsets)
                decision = decide(shared.policy, first, facts.transfer_syntax_uid, identical)
        if decision.action is Action.KEEP and known is not None:
            # Whoever stored the first may have died before recording it; else this row finds its place taken.
            self._add(arrival, known, taken, InstanceState.STORED, _note(known), replaces=lost)
            log.info("duplicate_dropped", sop_instance_uid=facts.sop_instance_uid)
        elif decision.action is Action.VARIANT:
            self._variant(arrival, facts, key, decision.note)
        elif decision.action is Action.COPY:
            self._copy(arrival, facts, decision.note)
        elif decision.action is Action.REPLACE:
            self._replace(arrival, facts, taken, key, decision.note)
        else:
            self.set_aside(arrival, facts, decision.note)

    def _clear(self, arrival: Arrival, key: str) -> None:
        """Remove what this instance left under a name of its own, before its UID was stored under another."""
        with existing(self._shared.store, key) as (there, _):
            if there is None or not same_bytes(there, arrival.source, self._shared.progress):
                return
        self._remove_unclaimed(key)

    def _variant(self, arrival: Arrival, facts: Facts, first: str, note: str) -> None:
        shared, key = self._shared, variant_key(first, facts.transfer_syntax_uid)
        if not shared.store.put(self._stored, arrival.source, key):
            with existing(shared.store, key, shared.router.tags) as (there, known):
                if (
                    there is None
                    or known is None
                    or not same_bytes(
                        there,
                        arrival.source,
                        shared.progress,
                        skipping=(known.data_set_offset, facts.data_set_offset),
                    )
                ):
                    reason = "another variant of its SOP instance UID and transfer syntax was there first"
                    self.set_aside(arrival, facts, reason)
                    return
                facts = known
        self._add(arrival, facts, key, InstanceState.VARIANT, _note(facts, note))

    def _is_stored_copy(self, arrival: Arrival, facts: Facts) -> bool:
        """Whether it is a further copy that outlived the first one of its UID; then it is no event."""
        copies = self._held.copies.get(facts.sop_instance_uid)
        if not copies or self._copy_key(arrival, facts)[0] not in copies:
            return False
        self._copy(arrival, facts, "")
        return True

    def _copy_key(self, arrival: Arrival, facts: Facts) -> tuple[str, str]:
        """The key that it has as a further copy, and the digest in it: the same for the same content."""
        digest = content_digest(
            arrival.source, facts.data_set_offset, facts.transfer_syntax_uid, self._shared.progress
        )
        uids = facts.study_uid, facts.series_uid, facts.sop_instance_uid
        return self._shared.layout.key(*uids, copy_digest=digest), digest

    def _copy(self, arrival: Arrival, facts: Facts, note: str) -> None:
        """Keep a further copy; where the same content has its name, nothing changes."""
        shared = self._shared
        key, digest = self._copy_key(arrival, facts)
        if not self._give(arrival, key):
            with existing(shared.store, key, shared.router.tags) as (there, known):
                if known is None or there is None:
                    shared.store.replace(self._stored, arrival.source, key)
                elif same_bytes(
                    there,
                    arrival.source,
                    shared.progress,
                    skipping=(known.data_set_offset, facts.data_set_offset),
                ):
                    facts = known
                else:
                    self.set_aside(arrival, facts, "another object has the name of this copy in the store")
                    return
        self._add(arrival, facts, key, InstanceState.STORED, _note(facts, note), copy_digest=digest)

    def _replace(self, arrival: Arrival, facts: Facts, taken: str, key: str, note: str) -> None:
        shared, uid = self._shared, facts.sop_instance_uid
        if retry_with_backoff(
            shared.ledger_backoff, shared.ledger.spool_references.find_recorded, [arrival.spool_ref]
        ):
            return  # an object that has replaced, and may have been replaced since
        retry_with_backoff(shared.ledger_backoff, shared.ledger.instances.mark_replaced, [uid], shared.now())
        shared.store.replace(self._stored, arrival.source, key)
        if taken != key:
            self._replaced.add(taken)
        self._replaced.discard(key)
        self.rows = [
            replace(row, state=InstanceState.REPLACED, destinations=(), replaces=False)
            if row.sop_instance_uid == uid and _is_first(row)
            else row
            for row in self.rows
        ]
        self._add(arrival, facts, key, InstanceState.STORED, _note(facts, note), replaces=True)
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
        copy_digest: str = "",
        refused_status: int = 0,
        content_digest: str = "",
    ) -> None:
        if state is InstanceState.STORED and not copy_digest:
            self._keys[facts.sop_instance_uid] = key
        quarantined = state is InstanceState.QUARANTINED
        routing = None if quarantined else self._shared.router.route_instance(facts.subject)
        if routing is not None and (replaces or copy_digest or state is InstanceState.VARIANT):
            routing = self._without_bounded(routing, facts.sop_instance_uid)
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
                copy_digest=copy_digest,
                refused_status=refused_status,
                content_digest=content_digest,
            )
        )

    def _without_bounded(self, routing: RoutingDecision, uid: str) -> RoutingDecision:
        """Keep a further object of a UID from destinations that have had too many of it lately."""
        if not routing.destinations:
            return routing
        shared = self._shared
        delivered = retry_with_backoff(
            shared.ledger_backoff,
            shared.ledger.deliveries.count_delivered_since,
            uid,
            shared.now() - DELIVERED_WITHIN_MS,
        )
        names = at_bound(routing.destinations, delivered)
        for name in names:
            shared.too_many(name, uid)
        remark = f"not sent to {', '.join(names)}: {DELIVERED_MAX} objects of its UID were within an hour"
        return routing.exclude(names, remark) if names else routing


def _is_first(row: NewInstance) -> bool:
    """Whether it is stored as the first object of its SOP instance UID, and not as a further copy."""
    return row.state is InstanceState.STORED and not row.copy_digest


def _note(facts: Facts, decision: str = "") -> str:
    """What an operator should know of an instance that is stored: the decision about it, and its damage."""
    notes = [text for text in (decision, facts.note) if text]
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
