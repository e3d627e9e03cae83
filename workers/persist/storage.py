"""Where each instance of one batch goes, in the store or in quarantine, and the ledger row about it.

A free store key is taken without a lock, because link(2) never replaces a file. If a key or a SOP Instance
UID is taken, the batch locks the store against replacing and removing, and keeps that lock until its COMMIT.
The file under the key is examined only under the lock.
"""

import contextlib
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Final

import structlog

from ingest.clock import unix_ms
from ingest.dicom.file_header import InstanceHeader
from ingest.ledger import ContentIdentity, InstanceState, NewInstance, Outcome, StoreKeys
from ingest.routing.router import RoutingDecision
from ingest.spool.reference import Reference
from ingest.workers.delivery_terms import make_completion_terms, make_terms
from ingest.workers.persist.compare import (
    compute_content_digest,
    have_same_bytes,
    is_same_file,
    open_stored_file,
)
from ingest.workers.persist.context import PersistContext
from ingest.workers.persist.duplicates import (
    DELIVERED_MAX,
    DELIVERED_WITHIN_MS,
    Action,
    decide_duplicate,
    find_bounded_destinations,
)
from ingest.workers.persist.loop_alarm import raise_loop_alarm
from ingest.workers.persist.spool_entry import SpoolEntry
from ingest.workers.store.filesystem import SourceFile, StoreBatch
from ingest.workers.store.keys import make_quarantine_key, make_safe_name, make_variant_key
from ingest.workers.store.removal import may_be_unrecorded

_REFUSED: Final = re.compile(r"\.([0-9A-F]{4})\.dcm$")
# PS3.7 9.1.1.1.9 and C.5: the statuses with which a listener refuses an instance.
_REFUSALS: Final = {
    "A900": "its data set does not match the SOP class or instance UID of the request",
    "C000": "its data set cannot be read as its transfer syntax",
}

log = structlog.get_logger()


def was_refused(reference: Reference) -> bool:
    """Whether the sender got a failure status. The file is then only a copy for a person to examine."""
    return _REFUSED.search(reference.path) is not None


@contextlib.contextmanager
def open_storage(context: PersistContext) -> Iterator["BatchStorage"]:
    """Start to store a batch.

    Raises:
        StoreAwayError: Store or quarantine is not there.
    """
    with context.store.open_batch() as store_batch, context.quarantine.open_batch() as quarantine_batch:
        yield BatchStorage(context, store_batch, quarantine_batch)


class BatchStorage:
    """Stores the instances of one batch.

    Files are durable after `sync`. The ledger may record `rows` only then.

    Attributes:
        rows: A row for each instance that was stored since the last `finish_commit`.
    """

    def __init__(
        self, context: PersistContext, store_batch: StoreBatch, quarantine_batch: StoreBatch
    ) -> None:
        self._context = context
        self._store = context.store
        self._ledger = context.ledger
        self._store_batch = store_batch
        self._quarantine_batch = quarantine_batch
        self.rows: list[NewInstance] = []
        self._uids: set[str] = set()
        self._known_keys = StoreKeys()
        # The key of the first object of each SOP Instance UID, in the ledger or in `rows`.
        self._first_keys: dict[str, str] = {}
        self._new_keys: set[str] = set()
        self._replaced_keys: set[str] = set()
        self._is_locked = False
        self._new_copies: dict[ContentIdentity, str] = {}
        self._refused_bytes: int | None = None

    def look_up_uids(self, uids: Collection[str]) -> None:
        """Ask the ledger which SOP Instance UIDs are stored. Call this before the first `store_entry`."""
        self._uids.update(uids)
        self._load_known_keys()

    def store_entry(self, entry: SpoolEntry) -> None:
        """Put an instance into the store or into quarantine, and add its row.

        Raises:
            StoreAwayError: The store is full, failing or not there.
            StoreError: The store cannot keep the file under its key.
            OSError: The file, or the file under its key, cannot be read.
        """
        refused = _REFUSED.search(entry.stream_entry.path)
        if refused:
            status = refused[1]
            reason = f"refused with {status}H: {_REFUSALS.get(status, 'see the log')}"
            self.quarantine_entry(entry, reason, int(status, 16))
        elif entry.header.conflict:
            self.quarantine_entry(entry, entry.header.conflict)
        else:
            self._store_sound(entry)

    # --- quarantine

    def quarantine_entry(self, entry: SpoolEntry, reason: str, status: int = 0) -> None:
        """Put an instance into quarantine, unless the same content is there. Raises as `store_entry`.

        Args:
            entry: The instance.
            reason: Why, for a person to read.
            status: The status that its sender got; 0 for Success. Only a copy of a refused instance may be
                left out when the quarantine has reached its limit.
        """
        header = entry.header
        digest = compute_content_digest(
            entry.source,
            header.data_set_offset,
            header.transfer_syntax_uid,
            self._context.claims.renew_if_due,
        )
        content = ContentIdentity(
            digest, header.sop_instance_uid, header.study_uid, header.series_uid, status
        )
        key = self._new_copies.get(content) or self._find_quarantined_copy(content, entry)
        if key is None:
            key = self._add_to_quarantine(content, entry)
            if key is None:
                return
        # If the same content lies there, the ledger finds the key taken and counts one copy more.
        self._add_row(
            entry,
            header,
            key,
            InstanceState.QUARANTINED,
            reason,
            refused_status=status,
            content_digest=digest,
        )
        log.warning("quarantined", sop_instance_uid=header.sop_instance_uid, reason=reason, file=key)

    def _find_quarantined_copy(self, content: ContentIdentity, entry: SpoolEntry) -> str | None:
        """Return the key of the same content in quarantine, if its row and its whole file are there."""
        context, ledger = self._context, self._ledger
        if not context.ask_ledger(ledger.quarantine.find_store_keys, content):
            return None
        # A person may release or drop the copy at this moment. The lock prevents that until our COMMIT.
        self._lock_store()
        own_offset = entry.header.data_set_offset
        for key in context.ask_ledger(ledger.quarantine.find_store_keys, content):
            with open_stored_file(context.quarantine, key) as (there, known):
                offset = known.data_set_offset if known is not None else own_offset
                if there is not None and self._have_same_bytes(there, entry, (offset, own_offset)):
                    return key
        return None

    def _add_to_quarantine(self, content: ContentIdentity, entry: SpoolEntry) -> str | None:
        """Put a file into quarantine; None if it is a refused copy beyond the limit."""
        if content.status and not self._is_below_limit(entry.header.size):
            self._context.quarantine_limit.raise_alarm()
            log.warning(
                "copy_not_kept", sop_instance_uid=content.sop_instance_uid, status=f"{content.status:04X}"
            )
            return None
        key = make_quarantine_key(entry.stream_entry)
        # A taken key belongs to an earlier attempt with the same spool reference.
        self._context.quarantine.put(self._quarantine_batch, entry.source, key)
        self._new_copies[content] = key
        if content.status:
            self._context.quarantine_limit.clear_alarm()
        return key

    def _is_below_limit(self, size: int) -> bool:
        """Whether the quarantine has space for a refused copy. A copy with space is counted."""
        limit = self._context.quarantine_limit.max_bytes
        if not limit:
            return True
        if self._refused_bytes is None:
            self._refused_bytes = self._context.ask_ledger(self._ledger.quarantine.sum_refused_bytes)
        if self._refused_bytes + size > limit:
            return False
        self._refused_bytes += size
        return True

    # --- commit

    def sync(self) -> None:
        """Make durable all files that were stored, and their folders.

        Raises:
            StoreAwayError: A disk is failing.
        """
        self._store.sync(self._store_batch)
        self._context.quarantine.sync(self._quarantine_batch)

    def find_contested(self, refused: Sequence[tuple[NewInstance, Outcome]]) -> set[str]:
        """Judge the rows that the ledger refused; after the COMMIT, before `finish_commit`.

        Meanwhile another worker may have stored the same SOP Instance UID under another key. Or the first
        object may have been removed since this batch asked for it.

        Returns:
            The spool references of the instances to store again.

        Raises:
            StoreAwayError: The store is failing, or cannot be locked.
        """
        stored = [(row, outcome) for row, outcome in refused if row.state is InstanceState.STORED]
        if not stored:
            return set()
        uids = {row.sop_instance_uid for row, _ in stored}
        known = self._context.ask_ledger(self._ledger.instances.find_store_keys, uids)
        contested = set()
        for row, outcome in stored:
            if outcome is Outcome.TAKEN:
                copies = known.copies.get(row.sop_instance_uid, set()) if row.copy_digest else set()
                first = known.stored.get(row.sop_instance_uid)
                if row.replaces or row.store_key not in {first, *copies}:
                    contested.add(row.spool_ref)
            elif row.store_key in self._new_keys:
                # The ledger recorded this instance long ago, and it was removed since. Its file must not
                # return.
                self._lock_store()
                self._remove_unclaimed(row.store_key)
        return contested

    def finish_commit(self) -> None:
        """Remove replaced files and unlock the store, because the ledger has recorded the rows."""
        for key in self._replaced_keys:
            self._store.remove(self._store_batch, key)
        self._store.release_removal_lock(self._store_batch)
        self._is_locked = False
        self._replaced_keys.clear()
        self._new_keys.clear()
        self._new_copies.clear()
        self._refused_bytes = None
        self.rows.clear()

    # --- lock

    def _load_known_keys(self) -> None:
        self._known_keys = self._context.ask_ledger(self._ledger.instances.find_store_keys, self._uids)
        new_uids = {row.sop_instance_uid for row in self.rows if _is_first(row)}
        new_keys = {uid: key for uid, key in self._first_keys.items() if uid in new_uids}
        self._first_keys = new_keys | dict(self._known_keys.stored)

    def _lock_store(self) -> None:
        """Lock the store against replacing and removing, and ask the ledger again for its store keys.

        Every process that removes or replaces holds this lock. A removal that is half done therefore belongs
        to a dead process, and is finished here.
        """
        if self._is_locked:
            return
        self._store.acquire_removal_lock(self._store_batch)
        self._is_locked = True
        self._load_known_keys()
        removing, replaced = self._known_keys.removing, self._known_keys.replaced
        left = set().union(*removing.values(), *replaced.values()) - self._new_keys
        kept = {key for key in left if self._may_belong_to_other_worker(key)}
        for key in left - kept:
            self._remove_unclaimed(key)
        removed = {uid for uid, keys in removing.items() if not keys & kept}
        if removed:
            self._store.sync(self._store_batch)
            self._context.ask_ledger(self._ledger.instances.finish_removals, removed)

    def _may_belong_to_other_worker(self, key: str) -> bool:
        """Whether the file is so new that another worker may be about to record it."""
        try:
            changed = self._store.read_change_ms(key)
        except FileNotFoundError:
            return False
        now = unix_ms() + self._store.measure_clock_offset_ms(self._store_batch)
        return may_be_unrecorded(changed, self._known_keys.left_at[key], now)

    def _remove_unclaimed(self, key: str) -> None:
        if not self._context.ask_ledger(self._ledger.instances.find_claimed_keys, [key]):
            self._store.remove(self._store_batch, key)

    # --- store

    def _store_sound(self, entry: SpoolEntry) -> None:
        header = entry.header
        uid = header.sop_instance_uid
        key = self._context.key_template.make_key(header.study_uid, header.series_uid, uid)
        if not self._is_known(uid) and self._put_file(entry, key):
            self._add_row(entry, header, key, InstanceState.STORED, _compose_note(header))
            return
        self._lock_store()
        first = self._first_keys.get(uid)
        # Somebody may have removed the file of a row by hand. Whether that file was the same object is
        # unknown, so the instance is delivered as a new one. To deliver it twice does less harm than never.
        is_lost = first is not None and not self._has_file(first)
        if first is None and self._is_known_copy(entry):
            self._store_copy(entry, "")
        elif (first is None or is_lost) and self._put_file(entry, key):
            self._add_row(entry, header, key, InstanceState.STORED, _compose_note(header), replaces=is_lost)
            if is_lost:
                log.warning("stored_again", sop_instance_uid=uid, reason="its file was gone", file=first)
        else:
            taken = key if first is None or is_lost else first
            self._resolve_duplicate(entry, taken, key, is_lost=is_lost)

    def _is_known(self, uid: str) -> bool:
        known = self._known_keys
        return uid in self._first_keys or any(
            uid in held for held in (known.removing, known.replaced, known.copies)
        )

    def _put_file(self, entry: SpoolEntry, key: str) -> bool:
        """Give the file its store key; False if the key is taken."""
        is_new = self._store.put(self._store_batch, entry.source, key)
        if is_new:
            self._new_keys.add(key)
        return is_new

    def _has_file(self, key: str) -> bool:
        try:
            self._store.read_size(key)
        except FileNotFoundError:
            return False
        return True

    def _have_same_bytes(self, there: SourceFile, entry: SpoolEntry, offsets: tuple[int, int]) -> bool:
        progress = self._context.claims.renew_if_due
        return have_same_bytes(there, entry.source, progress, offsets=offsets)

    # --- duplicates

    def _resolve_duplicate(self, entry: SpoolEntry, taken: str, key: str, *, is_lost: bool) -> None:
        """Decide about an instance whose SOP Instance UID or key is taken, and do it.

        Args:
            entry: The instance.
            taken: The key of the file that is there.
            key: The key that this instance would have.
            is_lost: Whether the ledger has a first object whose file is gone.
        """
        context, header = self._context, entry.header
        policy = context.config.store.duplicates
        if taken != key:
            self._remove_own_file(entry, key)
        with self._open_stored_file(taken) as (there, known):
            if there is not None and is_same_file(there, entry.source):
                # This instance was stored before a crash, or before its UID was contested.
                replaces = is_lost or policy == "overwrite"
                note = _compose_note(header)
                self._add_row(entry, header, taken, InstanceState.STORED, note, replaces=replaces)
                return
            syntax = known.transfer_syntax_uid if known is not None else None
            decision = decide_duplicate(policy, syntax, header.transfer_syntax_uid, None)
            if decision.action is Action.COMPARE and there is not None and known is not None:
                offsets = known.data_set_offset, header.data_set_offset
                is_identical = self._have_same_bytes(there, entry, offsets)
                decision = decide_duplicate(policy, syntax, header.transfer_syntax_uid, is_identical)
        match decision.action:
            case Action.KEEP if known is not None:
                # The worker that stored the first object may have died before its COMMIT. Otherwise the
                # ledger finds the key of this row taken.
                note = _compose_note(known)
                self._add_row(entry, known, taken, InstanceState.STORED, note, replaces=is_lost)
                log.info("duplicate_dropped", sop_instance_uid=header.sop_instance_uid)
            case Action.VARIANT:
                self._store_variant(entry, key, decision.note)
            case Action.COPY:
                self._store_copy(entry, decision.note)
            case Action.REPLACE:
                self._replace_first(entry, taken, key, decision.note)
            case _:
                self.quarantine_entry(entry, decision.note)

    def _open_stored_file(
        self, key: str
    ) -> contextlib.AbstractContextManager[tuple[SourceFile | None, InstanceHeader | None]]:
        """Open a file of the store, and read the header that a row needs."""
        context = self._context
        return open_stored_file(self._store, key, context.router.tags, context.attribute_reader.tags)

    def _remove_own_file(self, entry: SpoolEntry, key: str) -> None:
        """Remove a file that this instance left before its UID was stored under another key."""
        with open_stored_file(self._store, key) as (there, _):
            if there is None or not self._have_same_bytes(there, entry, (0, 0)):
                return
        self._remove_unclaimed(key)

    def _store_variant(self, entry: SpoolEntry, first: str, note: str) -> None:
        """Keep an object in another transfer syntax beside the first one of its UID."""
        header = entry.header
        key = make_variant_key(first, header.transfer_syntax_uid)
        if not self._store.put(self._store_batch, entry.source, key):
            known = self._read_same_object(entry, key)
            if known is None:
                reason = "another variant of its SOP instance UID and transfer syntax was there first"
                self.quarantine_entry(entry, reason)
                return
            header = known
        self._add_row(entry, header, key, InstanceState.VARIANT, _compose_note(header, note))

    def _is_known_copy(self, entry: SpoolEntry) -> bool:
        """Whether the content is a further copy that outlived the first object of its UID."""
        copies = self._known_keys.copies.get(entry.header.sop_instance_uid)
        return copies is not None and self._make_copy_key(entry)[0] in copies

    def _make_copy_key(self, entry: SpoolEntry) -> tuple[str, str]:
        """Return the key of an instance as a further copy, and the digest in that key."""
        header = entry.header
        digest = compute_content_digest(
            entry.source,
            header.data_set_offset,
            header.transfer_syntax_uid,
            self._context.claims.renew_if_due,
        )
        uids = header.study_uid, header.series_uid, header.sop_instance_uid
        return self._context.key_template.make_key(*uids, copy_digest=digest), digest

    def _store_copy(self, entry: SpoolEntry, note: str) -> None:
        """Store a further copy beside the first object of its UID. Keep a file of the same content."""
        header = entry.header
        key, digest = self._make_copy_key(entry)
        if not self._put_file(entry, key):
            with self._open_stored_file(key) as (there, known):
                if known is None or there is None:
                    self._store.replace(self._store_batch, entry.source, key)
                elif self._have_same_bytes(there, entry, (known.data_set_offset, header.data_set_offset)):
                    header = known
                else:
                    self.quarantine_entry(entry, "another object has the name of this copy in the store")
                    return
        note = _compose_note(header, note)
        self._add_row(entry, header, key, InstanceState.STORED, note, copy_digest=digest)

    def _read_same_object(self, entry: SpoolEntry, key: str) -> InstanceHeader | None:
        """Return the header of a stored file if its data set is that of the entry, otherwise None."""
        with self._open_stored_file(key) as (there, known):
            if there is None or known is None:
                return None
            offsets = known.data_set_offset, entry.header.data_set_offset
            return known if self._have_same_bytes(there, entry, offsets) else None

    def _replace_first(self, entry: SpoolEntry, taken: str, key: str, note: str) -> None:
        """Put an object in place of the first one of its UID."""
        context, uid = self._context, entry.header.sop_instance_uid
        if context.ask_ledger(self._ledger.spool_references.find_recorded, [entry.spool_ref]):
            return  # it replaced the first object before, and may have been replaced since
        context.ask_ledger(self._ledger.instances.mark_replaced, [uid], unix_ms())
        self._store.replace(self._store_batch, entry.source, key)
        if taken != key:
            self._replaced_keys.add(taken)
        self._replaced_keys.discard(key)
        self.rows = [
            replace(row, state=InstanceState.REPLACED, destinations=(), replaces=False)
            if row.sop_instance_uid == uid and _is_first(row)
            else row
            for row in self.rows
        ]
        note = _compose_note(entry.header, note)
        self._add_row(entry, entry.header, key, InstanceState.STORED, note, replaces=True)
        log.info("duplicate_replaced", sop_instance_uid=uid)

    # --- rows

    def _add_row(
        self,
        entry: SpoolEntry,
        header: InstanceHeader,
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
            self._first_keys[header.sop_instance_uid] = key
        self._context.callers.note_instance(header.certificate, header.calling_ae, entry.received_at)
        is_quarantined = state is InstanceState.QUARANTINED
        routing = None if is_quarantined else self._context.router.route_instance(header)
        if routing is not None and (replaces or copy_digest or state is InstanceState.VARIANT):
            routing = self._drop_bounded_destinations(routing, header.sop_instance_uid)
        self.rows.append(
            NewInstance(
                state=state,
                sop_instance_uid=header.sop_instance_uid,
                sop_class_uid=header.sop_class_uid,
                study_uid=header.study_uid,
                series_uid=header.series_uid,
                transfer_syntax_uid=header.transfer_syntax_uid,
                store_key=key,
                size=header.size,
                data_set_offset=header.data_set_offset,
                calling_ae=header.calling_ae,
                called_ae=header.called_ae,
                source=header.source,
                spool_ref=entry.spool_ref,
                note=note,
                received_at=entry.received_at,
                stored_at=unix_ms(),
                routed=routing.routed if routing else "",
                destinations=routing.destinations if routing else (),
                terms=make_terms(routing, header) if routing else {},
                completion=make_completion_terms(self._context.completion, routing, header)
                if routing
                else None,
                replaces=replaces,
                copy_digest=copy_digest,
                refused_status=refused_status,
                content_digest=content_digest,
                certificate=header.fingerprint,
                is_damaged_in_spool=is_quarantined and bool(entry.damage),
                attributes=self._context.attribute_reader.read_attributes(header.attributes),
            )
        )

    def _drop_bounded_destinations(self, routing: RoutingDecision, uid: str) -> RoutingDecision:
        """Leave out destinations that got too many objects of a UID lately: images may go in a circle."""
        if not routing.destinations:
            return routing
        since_ms = unix_ms() - DELIVERED_WITHIN_MS
        delivered = self._context.ask_ledger(self._ledger.deliveries.count_delivered_since, uid, since_ms)
        names = find_bounded_destinations(routing.destinations, delivered)
        for name in names:
            raise_loop_alarm(self._context.config.run_dir, name, uid)
        remark = f"not sent to {', '.join(names)}: {DELIVERED_MAX} objects of its UID were within an hour"
        return routing.exclude(names, remark) if names else routing


def _is_first(row: NewInstance) -> bool:
    """Whether a row is that of the first object of its SOP Instance UID, and not of a further copy."""
    return row.state is InstanceState.STORED and not row.copy_digest


def _compose_note(header: InstanceHeader, decision: str = "") -> str:
    """Compose the note of a stored instance: the decision about it, and the damage of its header."""
    notes = [text for text in (decision, header.note) if text]
    notes += [
        f"no {name} Instance UID: stored as {missing}"
        for name, uid, missing in (
            ("Study", header.study_uid, "no-study"),
            ("Series", header.series_uid, "no-series"),
        )
        if not uid
    ]
    uids = (header.study_uid, header.series_uid, header.sop_instance_uid)
    if any(uid and make_safe_name(uid, "") != uid for uid in uids):
        notes.append("a UID that is none: stored under a name made from its hash")
    return "; ".join(notes)
