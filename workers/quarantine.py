"""`ingest quarantine release` and `drop`: a person decides about what was put into quarantine.

Whoever dies at any step leaves nothing lost and nothing hidden: both objects are in quarantine then, or one
of them is stored; the same command again does what is left.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import redis
from rich.console import Console

from ingest.config.model import Config
from ingest.dicom.routing import Router
from ingest.errors import IngestError, StoreAwayError, StoreError
from ingest.ledger import Instance, InstanceState, Ledger, NewInstance
from ingest.ledger.folders import QUARANTINE, STORE
from ingest.queue import connect
from ingest.spool.reference import Reference
from ingest.wake import wake
from workers.arrival import Facts, spool_ref
from workers.compare import existing, same_bytes
from workers.layout import INCOMING, Layout, quarantine_key
from workers.store import Batch, FileStore, Source

CONTESTED_MAX: Final = 3
"""How often a release begins anew, while workers store the same SOP instance UID."""

_GAVE_WAY: Final = "released"
"""In place of a spool's id in the references of what gave way to a released object."""


_TOLD: Final = (
    "sop_class_uid",
    "study_uid",
    "series_uid",
    "transfer_syntax_uid",
    "data_set_offset",
    "calling_ae",
    "called_ae",
    "source",
)


class NotQuarantinedError(IngestError):
    """An id that is unknown, or whose instance is not in quarantine or cannot leave it."""


@dataclass(frozen=True, slots=True)
class _Copying:
    """What is being released.

    Attributes:
        kept: The batch of the quarantine, for copies.
        number: Its id.
        uid: Its SOP instance UID.
        safe: Files in quarantine that may be copies already.
        now: The time, in Unix milliseconds.
    """

    kept: Batch
    number: int
    uid: str
    safe: frozenset[str]
    now: int


class Warden:
    """Decides about quarantined instances, one at a time, while no worker replaces or removes files."""

    def __init__(self, config: Config, ledger: Ledger, store: FileStore, quarantine: FileStore) -> None:
        """Take what is open already; `warden` opens it."""
        self._ledger = ledger
        self._store = store
        self._quarantine = quarantine
        self._layout = Layout(config.store.path)
        self._router = Router(config.routes)

    def release(self, number: int) -> tuple[str, ...]:
        """Make a quarantined instance the stored one; what is stored goes into quarantine in its place.

        Args:
            number: The id of its row.

        Returns:
            Names of the destinations that it is to be delivered to.

        Raises:
            NotQuarantinedError: It is not in quarantine, or cannot be stored.
            StoreError: The store is away, or workers store the same SOP instance UID again and again.
            LedgerError: The ledger is away.
            OSError: A disk is failing.
        """
        with self._batches() as (stored, kept):
            row = self._row(number)
            key = quarantine_key(_reference(row.spool_ref))
            if row.state is InstanceState.STORED and self._is_there(self._quarantine, key):
                # Who released it died before the file was gone from here.
                self._clear(row.sop_instance_uid, key, stored, kept)
                return tuple(one.destination for one in self._ledger.deliveries_of(number))
            released = self._stored(number, stored, kept)
            self._clear(released.sop_instance_uid, row.store_key, stored, kept)
            return released.destinations

    def drop(self, number: int) -> None:
        """Remove a quarantined file; its row stays, and says so.

        Raises:
            NotQuarantinedError: It is not in quarantine.
            StoreError: Store or quarantine is away.
            LedgerError: The ledger is away.
        """
        with self._batches() as (_, kept):
            row = self._quarantined(number)
            # The row last: as long as it says "quarantined", the same command finishes what this one began.
            self._quarantine.remove(kept, row.store_key)
            self._quarantine.sync(kept)
            self._ledger.drop_quarantined(number, f"dropped from quarantine by hand; {row.note}")

    @contextlib.contextmanager
    def _batches(self) -> Iterator[tuple[Batch, Batch]]:
        with self._store.batch() as stored, self._quarantine.batch() as kept:
            self._store.exclude_replacing(stored)
            yield stored, kept

    def _row(self, number: int) -> Instance:
        row = self._ledger.instances_by_id([number]).get(number)
        if row is None:
            raise NotQuarantinedError(f"{number}: there is no instance with this id")
        return row

    def _quarantined(self, number: int) -> Instance:
        row = self._row(number)
        if row.state is not InstanceState.QUARANTINED:
            raise NotQuarantinedError(f"{number}: it is not in quarantine, it is {row.state.value}")
        return row

    def _stored(self, number: int, stored: Batch, kept: Batch) -> NewInstance:
        for _ in range(CONTESTED_MAX):
            row = self._quarantined(number)
            with existing(self._quarantine, row.store_key, self._router.tags) as (source, facts):
                released = self._try(row, *self._releasable(row, source, facts), stored, kept)
            if released is not None:
                return released
        raise StoreError(
            f"{number}: workers store the same SOP instance UID again and again, or another instance has the "
            "place of its file; try again later"
        )

    def _releasable(self, row: Instance, source: Source | None, facts: Facts | None) -> tuple[Source, Facts]:
        if source is None:
            raise NotQuarantinedError(f"{row.id}: its file {row.store_key} is gone; drop it")
        if facts is None:
            raise NotQuarantinedError(
                f"{row.id}: {row.store_key} cannot be read as a DICOM file, so it cannot be released; "
                "have it sent again, and drop it"
            )
        if facts.conflict:
            raise NotQuarantinedError(
                f"{row.id}: {facts.conflict}, so it cannot be released; have it sent again, and drop it"
            )
        return replace(source, path=str(self._quarantine.root / row.store_key)), facts

    def _try(
        self, row: Instance, source: Source, facts: Facts, stored: Batch, kept: Batch
    ) -> NewInstance | None:
        """Release it, unless a worker stores the same SOP instance UID at this moment."""
        key = self._layout.key(facts.study_uid, facts.series_uid, facts.sop_instance_uid)
        now = time.time_ns() // 1_000_000
        rows = self._ledger.by_sop_instance(facts.sop_instance_uid)
        # Further copies (`[store] duplicates = "keep-both"`) stay where they are.
        firsts = (one for one in rows if one.state is InstanceState.STORED and not one.copy_digest)
        old = next(firsts, None)
        safe = {one.store_key for one in (row, *rows) if one.state is InstanceState.QUARANTINED}
        copying = _Copying(kept, row.id, facts.sop_instance_uid, frozenset(safe), now)
        copies = [self._copied(copying, old.store_key, old)] if old is not None else []
        if old is None or old.store_key != key:
            if self._ledger.claimed_keys([key]):
                return None
            # What a worker is about to record, or one that died did not.
            copies.append(self._copied(copying, key))
        self._quarantine.sync(kept)
        note = f"gave way to instance {row.id}, which was released from quarantine"
        self._ledger.give_way(old, note, [copy for copy in copies if copy is not None], now)
        if self._ledger.claimed_keys([key]):
            return None
        # Only now, so that no row ever speaks of a file that is another's by now.
        self._store.replace(stored, source, key)
        self._store.sync(stored)
        routing = self._router.decide(facts.subject)
        released = NewInstance(
            **_told(facts),
            state=InstanceState.STORED,
            sop_instance_uid=facts.sop_instance_uid,
            store_key=key,
            size=facts.size,
            spool_ref=row.spool_ref,
            note=f"released from quarantine by hand; {row.note}",
            received_at=row.received_at,
            stored_at=now,
            routed=routing.routed,
            destinations=routing.destinations,
        )
        return released if self._ledger.release_quarantined(row.id, released) else None

    def _copied(self, copying: "_Copying", key: str, old: Instance | None = None) -> NewInstance | None:
        """Put what lies in the store under a key into quarantine; None where there is no need.

        Args:
            copying: What is being released.
            key: Where in the store.
            old: The row of what lies there, if it has one.
        """
        with existing(self._store, key) as (there, facts):
            if there is None or any(self._same(one, there) for one in copying.safe):
                return None
            # The same name again for the same bytes, at a second try.
            name = str(old.id) if old is not None else f"{copying.number}.{_digest(there)}"
            reference = Reference("spool", _GAVE_WAY, name)
            source = replace(there, path=str(self._store.root / key))
            self._quarantine.replace(copying.kept, source, quarantine_key(reference))
            return NewInstance(
                **_told(old or facts),
                state=InstanceState.QUARANTINED,
                sop_instance_uid=copying.uid,
                store_key=quarantine_key(reference),
                size=there.size,
                spool_ref=spool_ref(reference),
                note=f"was stored; gave way to instance {copying.number}, which was released from quarantine",
                received_at=old.received_at if old is not None else copying.now,
                stored_at=copying.now,
            )

    def _same(self, key: str, there: Source) -> bool:
        with existing(self._quarantine, key) as (kept, _):
            return kept is not None and same_bytes(kept, there, lambda: None)

    def _clear(self, uid: str, key: str, stored: Batch, kept: Batch) -> None:
        """Remove the names that files of a released instance, and of what gave way to it, had before."""
        left = self._ledger.holdings([uid]).replaced.get(uid, set())
        for old in left - self._ledger.claimed_keys(left):
            if self._is_there(self._store, old):
                self._store.remove(stored, old)
        self._store.sync(stored)
        self._quarantine.remove(kept, key)
        self._quarantine.sync(kept)

    def _is_there(self, store: FileStore, key: str) -> bool:
        try:
            store.size(key)
        except FileNotFoundError:
            return False
        return True


@contextlib.contextmanager
def warden(config: Config, ledger: Ledger) -> Iterator[Warden]:
    """Open store and quarantine.

    Raises:
        StoreError: One of them is not there, or belongs to another user.
    """
    with contextlib.ExitStack() as stack:
        durable = config.receive.durability == "fsync"
        opened = [
            FileStore(config.store_root, durable=durable, exclusion=ledger.exclusion()),
            FileStore(config.quarantine_dir, durable=durable),
        ]
        for kind, store in zip((STORE, QUARANTINE), opened, strict=True):
            _require(store.root)
            store.prepare(ledger.known_folder(kind))
            stack.callback(store.close)
        yield Warden(config, ledger, *opened)


def _require(root: Path) -> None:
    try:
        owner = (root / INCOMING).stat().st_uid
    except OSError:
        raise StoreAwayError(f"{root} is not there; mount it, or start the node once") from None
    if owner != os.geteuid():
        # Workers could not use what another user makes there.
        raise StoreError(f"{root} belongs to the user with the id {owner}: run this as that user")


def _told(what: Facts | Instance | None) -> dict[str, Any]:
    """What a row says of a file; nothing where it cannot be read."""
    if what is None:
        return {name: 0 if name == "data_set_offset" else "" for name in _TOLD}
    return {name: getattr(what, name) for name in _TOLD}


def _digest(source: Source) -> str:
    with open(source.fd, "rb", buffering=0, closefd=False) as file:
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()[:40]


def _reference(name: str) -> Reference:
    """What the ledger calls `name`; see `workers.arrival.spool_ref`."""
    spool, _, place = name.partition(":")
    where, _, offset = place.partition("#")
    return Reference("spool", spool, where, int(offset or 0))


def release(config: Config, ids: Sequence[int]) -> int:
    """Release instances from quarantine, wake their destinations, and say so; returns the exit code."""
    console = Console(highlight=False, soft_wrap=True)
    woken: set[str] = set()

    def do(keeper: Warden, number: int) -> None:
        to = keeper.release(number)
        woken.update(to)
        console.print(f"{number}: released; to {', '.join(to) or 'no destination'}", markup=False)

    code = _each(config, ids, do)
    client = connect(config, timeout=2.0)
    try:
        for destination in sorted(woken):
            wake(client, destination)
    except redis.RedisError as error:
        _complain(f"the queue is away ({error}); workers find them by themselves within seconds")
    finally:
        client.close()
    return code


def drop(config: Config, ids: Sequence[int]) -> int:
    """Remove instances from quarantine for good, and say so; returns the exit code."""

    def do(keeper: Warden, number: int) -> None:
        keeper.drop(number)
        Console(highlight=False).print(f"{number}: dropped", markup=False)

    return _each(config, ids, do)


def _each(config: Config, ids: Sequence[int], do: Callable[[Warden, int], None]) -> int:
    """Do it for each; one that cannot be done is named, and keeps back no others."""
    code = 0
    ledger = Ledger(config.ledger_url)
    try:
        ledger.check_schema()
        with warden(config, ledger) as keeper:
            for number in dict.fromkeys(ids):
                try:
                    do(keeper, number)
                except NotQuarantinedError as error:
                    _complain(str(error))
                    code = 1
    finally:
        ledger.close()
    return code


def _complain(text: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)
