"""Apply a person's decision about a quarantined instance: release it, retry it, or drop it.

A process may die at any step. Then no instance is lost or hidden: both objects are in quarantine, or one of
them is stored. The same command finishes the rest.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from ingest.clock import unix_ms
from ingest.config.model import Config
from ingest.dicom.file_header import InstanceHeader
from ingest.dicom.study_attributes import StudyAttributeReader
from ingest.errors import NotQuarantinedError, StoreAwayError, StoreError
from ingest.ledger import Instance, InstanceState, Ledger, NewInstance
from ingest.ledger.quarantine import GAVE_WAY
from ingest.ledger.store_folders import QUARANTINE, STORE
from ingest.routing.node_router import NodeRouter
from ingest.spool.reference import Reference
from ingest.workers.delivery_terms import CompletionPolicy, make_completion_terms, make_terms
from ingest.workers.persist.compare import have_same_bytes, open_stored_file
from ingest.workers.persist.spool_entry import spool_ref
from ingest.workers.store.filesystem import FileStore, SourceFile, StoreBatch
from ingest.workers.store.keys import STAGING, StoreKeyTemplate, make_quarantine_key

CONTESTED_MAX: Final = 3
"""Attempts to release an instance while workers store the same SOP Instance UID."""

_HEADER_FIELDS: Final = (
    "sop_class_uid",
    "study_uid",
    "series_uid",
    "transfer_syntax_uid",
    "data_set_offset",
    "calling_ae",
    "called_ae",
    "source",
)


class _OtherStoredError(Exception):
    """Another object of the SOP Instance UID is stored."""

    def __init__(self, other: Instance) -> None:
        super().__init__(other.id)
        self.other = other


@dataclass(frozen=True, slots=True)
class _Release:
    """The instance that is being released.

    Attributes:
        number: Id of its row.
        uid: Its SOP Instance UID.
        quarantined_keys: Files in quarantine that may already be copies of what gives way to it.
        unix_ms: The time of the release.
    """

    number: int
    uid: str
    quarantined_keys: frozenset[str]
    unix_ms: int


class QuarantineDecisions:
    """Applies decisions one at a time. Each holds the removal lock of the store.

    Methods raise LedgerError while the ledger is away, StoreError while store or quarantine is not there, and
    OSError if a disk is failing.
    """

    def __init__(self, config: Config, ledger: Ledger, store: FileStore, quarantine: FileStore) -> None:
        """Use an open ledger and prepared stores. `open_quarantine` opens them."""
        self._ledger = ledger
        self._store = store
        self._quarantine = quarantine
        self._key_template = StoreKeyTemplate(config.store.path)
        self._router = NodeRouter(config)
        self._completion = CompletionPolicy.from_config(config)
        self._attribute_reader = StudyAttributeReader(config.ledger.index)

    def release(self, number: int) -> tuple[str, ...]:
        """Store a quarantined instance. A stored object of its UID goes into quarantine in its place.

        Args:
            number: Id of its row.

        Returns:
            Names of the destinations that get it.

        Raises:
            NotQuarantinedError: It is not in quarantine, or cannot be stored.
            StoreError: Workers store the same SOP Instance UID again and again.
        """
        with self._open_batches() as (store_batch, quarantine_batch):
            return self._release_row(number, store_batch, quarantine_batch, replaces=True)

    def retry(self, number: int) -> tuple[str, ...] | None:
        """Store an acknowledged instance as if it came now. A stored object of its UID stays.

        Args:
            number: Id of its row.

        Returns:
            Names of the destinations that get it; None if the same instance is stored, and this copy was
            removed.

        Raises:
            NotQuarantinedError: It is not in quarantine, was refused or cannot be stored, or another object
                of its SOP Instance UID is stored.
            StoreError: Workers store the same SOP Instance UID again and again.
        """
        with self._open_batches() as (store_batch, quarantine_batch):
            row = self._find_row(number)
            if row.refused_status:
                cause = f"its sender was answered {row.refused_status:04X}H"
                raise NotQuarantinedError(f"{number}: {cause}; `ingest quarantine release` stores it even so")
            try:
                return self._release_row(number, store_batch, quarantine_batch, replaces=False)
            except _OtherStoredError as error:
                if not self._is_same_object(row, error.other):
                    raise NotQuarantinedError(
                        f"{number}: another object of its SOP instance UID is stored; `ingest quarantine "
                        "release` stores this one in its place"
                    ) from None
            self._drop_row(row, quarantine_batch, "the same instance is stored")
            return None

    def drop(self, number: int) -> None:
        """Remove a quarantined file. Its row stays, and says so.

        Raises:
            NotQuarantinedError: It is not in quarantine.
        """
        with self._open_batches() as (_, quarantine_batch):
            self._drop_row(
                self._find_quarantined(number), quarantine_batch, "dropped from quarantine by hand"
            )

    def _drop_row(self, row: Instance, quarantine_batch: StoreBatch, cause: str) -> None:
        # The row changes last. While it says "quarantined", the same command can finish this one.
        self._quarantine.remove(quarantine_batch, row.store_key)
        self._quarantine.sync(quarantine_batch)
        self._ledger.quarantine.drop(row.id, f"{cause}; {row.note}")

    @contextlib.contextmanager
    def _open_batches(self) -> Iterator[tuple[StoreBatch, StoreBatch]]:
        with self._store.open_batch() as store_batch, self._quarantine.open_batch() as quarantine_batch:
            self._store.acquire_removal_lock(store_batch)
            yield store_batch, quarantine_batch

    def _find_row(self, number: int) -> Instance:
        row = self._ledger.instances.find_by_ids([number]).get(number)
        if row is None:
            raise NotQuarantinedError(f"{number}: there is no instance with this id")
        return row

    def _find_quarantined(self, number: int) -> Instance:
        row = self._find_row(number)
        if row.state is not InstanceState.QUARANTINED:
            raise NotQuarantinedError(f"{number}: it is not in quarantine, it is {row.state.value}")
        return row

    # --- release

    def _release_row(
        self, number: int, store_batch: StoreBatch, quarantine_batch: StoreBatch, *, replaces: bool
    ) -> tuple[str, ...]:
        row = self._find_row(number)
        key = make_quarantine_key(_parse_spool_ref(row.spool_ref))
        if row.state is InstanceState.STORED and _has_file(self._quarantine, key):
            # An earlier command released it, and died before the file left the quarantine.
            self._remove_old_names(row.sop_instance_uid, key, store_batch, quarantine_batch)
            return tuple(one.destination for one in self._ledger.deliveries.find_by_instance(number))
        released = self._store_released(number, store_batch, quarantine_batch, replaces=replaces)
        self._remove_old_names(released.sop_instance_uid, row.store_key, store_batch, quarantine_batch)
        return released.destinations

    def _store_released(
        self, number: int, store_batch: StoreBatch, quarantine_batch: StoreBatch, *, replaces: bool
    ) -> NewInstance:
        for _ in range(CONTESTED_MAX):
            row = self._find_quarantined(number)
            with open_stored_file(
                self._quarantine, row.store_key, self._router.tags, self._attribute_reader.tags
            ) as (source, header):
                sound = self._require_releasable(row, source, header)
                released = self._try_release(row, *sound, store_batch, quarantine_batch, replaces=replaces)
            if released is not None:
                return released
        raise StoreError(
            f"{number}: workers store the same SOP instance UID again and again, or another instance has the "
            "place of its file; try again later"
        )

    def _require_releasable(
        self, row: Instance, source: SourceFile | None, header: InstanceHeader | None
    ) -> tuple[SourceFile, InstanceHeader]:
        if source is None:
            raise NotQuarantinedError(f"{row.id}: its file {row.store_key} is gone; drop it")
        if header is None:
            raise NotQuarantinedError(
                f"{row.id}: {row.store_key} cannot be read as a DICOM file, so it cannot be released; "
                "have it sent again, and drop it"
            )
        if row.is_damaged_in_spool:
            # Its header may be readable, but its pixels may belong to another patient.
            raise NotQuarantinedError(
                f"{row.id}: {row.note}, so it cannot be released; have it sent again, and drop it"
            )
        if header.conflict:
            raise NotQuarantinedError(
                f"{row.id}: {header.conflict}, so it cannot be released; have it sent again, and drop it"
            )
        return replace(source, path=str(self._quarantine.root / row.store_key)), header

    def _try_release(
        self,
        row: Instance,
        source: SourceFile,
        header: InstanceHeader,
        store_batch: StoreBatch,
        quarantine_batch: StoreBatch,
        *,
        replaces: bool,
    ) -> NewInstance | None:
        """Release an instance; None if a worker stores the same SOP Instance UID at this moment."""
        ledger, now_ms = self._ledger, unix_ms()
        key = self._key_template.make_key(header.study_uid, header.series_uid, header.sop_instance_uid)
        rows = ledger.instances.find_by_sop_instance_uid(header.sop_instance_uid)
        # Further copies (`[store] duplicates = "keep-both"`) stay where they are.
        firsts = (one for one in rows if one.state is InstanceState.STORED and not one.copy_digest)
        old = next(firsts, None)
        if old is not None and not replaces:
            raise _OtherStoredError(old)
        quarantined = {one.store_key for one in (row, *rows) if one.state is InstanceState.QUARANTINED}
        release = _Release(row.id, header.sop_instance_uid, frozenset(quarantined), now_ms)
        copies = [self._quarantine_stored(release, quarantine_batch, old.store_key, old)] if old else []
        if old is None or old.store_key != key:
            if ledger.instances.find_claimed_keys([key]):
                return None
            # A file without a row: a worker is about to record it, or died before that.
            copies.append(self._quarantine_stored(release, quarantine_batch, key))
        self._quarantine.sync(quarantine_batch)
        note = f"gave way to instance {row.id}, which was released from quarantine"
        ledger.quarantine.replace_stored(old, note, [copy for copy in copies if copy is not None], now_ms)
        if ledger.instances.find_claimed_keys([key]):
            return None
        # INVARIANT 1: the file is durable before its row. The row of the old object has gone before, so no
        # row ever names a file of another object.
        self._store.replace(store_batch, source, key)
        self._store.sync(store_batch)
        routing = self._router.route_instance(header)
        released = NewInstance(
            **_header_fields_of(header),
            state=InstanceState.STORED,
            sop_instance_uid=header.sop_instance_uid,
            store_key=key,
            size=header.size,
            spool_ref=row.spool_ref,
            note=f"{'released' if replaces else 'tried again'} from quarantine by hand; {row.note}",
            received_at=row.received_at,
            stored_at=now_ms,
            routed=routing.routed,
            destinations=routing.destinations,
            terms=make_terms(routing, header),
            completion=make_completion_terms(self._completion, routing, header),
            attributes=self._attribute_reader.read_attributes(header.attributes),
        )
        return released if ledger.quarantine.release(row.id, released) else None

    def _quarantine_stored(
        self, release: _Release, quarantine_batch: StoreBatch, key: str, old: Instance | None = None
    ) -> NewInstance | None:
        """Put a stored file into quarantine, and return its new row.

        Returns None if the store has no file under the key, or the quarantine has the same bytes already.

        Args:
            release: The instance that replaces the stored file.
            quarantine_batch: The batch of the quarantine.
            key: Store key of the stored file.
            old: Row of the stored file, if the ledger has one.
        """
        with open_stored_file(self._store, key) as (there, header):
            if there is None or any(self._has_same_bytes(one, there) for one in release.quarantined_keys):
                return None
            # A second attempt gives the same bytes the same name.
            name = str(old.id) if old is not None else f"{release.number}.{_compute_file_digest(there)}"
            reference = Reference("spool", GAVE_WAY, name)
            source = replace(there, path=str(self._store.root / key))
            self._quarantine.replace(quarantine_batch, source, make_quarantine_key(reference))
            return NewInstance(
                **_header_fields_of(old or header),
                state=InstanceState.QUARANTINED,
                sop_instance_uid=release.uid,
                store_key=make_quarantine_key(reference),
                size=there.size,
                spool_ref=spool_ref(reference),
                note=f"was stored; gave way to instance {release.number}, which was released from quarantine",
                received_at=old.received_at if old is not None else release.unix_ms,
                stored_at=release.unix_ms,
            )

    def _is_same_object(self, row: Instance, other: Instance) -> bool:
        """Whether the stored object has the same data set in the same transfer syntax."""
        with (
            open_stored_file(self._quarantine, row.store_key) as (ours, header),
            open_stored_file(self._store, other.store_key) as (there, known),
        ):
            if ours is None or header is None or there is None or known is None:
                return False
            offsets = header.data_set_offset, known.data_set_offset
            is_same_syntax = header.transfer_syntax_uid == known.transfer_syntax_uid
            return is_same_syntax and have_same_bytes(ours, there, lambda: None, offsets=offsets)

    def _has_same_bytes(self, quarantine_key: str, there: SourceFile) -> bool:
        with open_stored_file(self._quarantine, quarantine_key) as (kept, _):
            return kept is not None and have_same_bytes(kept, there, lambda: None)

    def _remove_old_names(
        self, uid: str, quarantine_key: str, store_batch: StoreBatch, quarantine_batch: StoreBatch
    ) -> None:
        """Remove the earlier names of a released file, and of the file that gave way to it."""
        replaced = self._ledger.instances.find_store_keys([uid]).replaced.get(uid, set())
        for key in replaced - self._ledger.instances.find_claimed_keys(replaced):
            if _has_file(self._store, key):
                self._store.remove(store_batch, key)
        self._store.sync(store_batch)
        self._quarantine.remove(quarantine_batch, quarantine_key)
        self._quarantine.sync(quarantine_batch)


@contextlib.contextmanager
def open_quarantine(config: Config, ledger: Ledger) -> Iterator[QuarantineDecisions]:
    """Open store and quarantine.

    Raises:
        StoreError: One of them is not there, or belongs to another user.
    """
    with contextlib.ExitStack() as stack:
        durable = config.receive.durability == "fsync"
        stores = [
            FileStore(config.store_root, durable=durable, shared_lock=ledger.create_removal_lock()),
            FileStore(config.quarantine_dir, durable=durable),
        ]
        for kind, store in zip((STORE, QUARANTINE), stores, strict=True):
            _require_own_store(store)
            store.prepare(ledger.store_folders.find_folder(kind))
            stack.callback(store.close)
        yield QuarantineDecisions(config, ledger, *stores)


def _require_own_store(store: FileStore) -> None:
    root = store.root
    try:
        owner = (root / STAGING).stat().st_uid
    except OSError:
        raise StoreAwayError(f"{root} is not there; mount it, or start the node once") from None
    if owner != os.geteuid():
        # The workers could not use files that another user creates there.
        raise StoreError(f"{root} belongs to the user with the id {owner}: run this as that user")


def _has_file(store: FileStore, key: str) -> bool:
    try:
        store.read_size(key)
    except FileNotFoundError:
        return False
    return True


def _header_fields_of(header: InstanceHeader | Instance | None) -> dict[str, Any]:
    """Return the fields of a row that come from the header of a file; blank if it cannot be read."""
    if header is None:
        return {name: 0 if name == "data_set_offset" else "" for name in (*_HEADER_FIELDS, "certificate")}
    certificate = header.fingerprint if isinstance(header, InstanceHeader) else header.certificate
    return {name: getattr(header, name) for name in _HEADER_FIELDS} | {"certificate": certificate}


def _compute_file_digest(source: SourceFile) -> str:
    with open(source.fd, "rb", buffering=0, closefd=False) as file:
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()[:40]


def _parse_spool_ref(name: str) -> Reference:
    """Parse the name of a reference in the ledger, which `spool_entry.spool_ref` makes."""
    spool, _, place = name.partition(":")
    where, _, offset = place.partition("#")
    return Reference("spool", spool, where, int(offset or 0))
