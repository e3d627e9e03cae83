"""`ingest quarantine release`, `retry` and `drop`: a person decides about what was put into quarantine.

Whoever dies at any step leaves nothing lost and nothing hidden: both objects are in quarantine then, or one
of them is stored; the same command again does what is left.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import redis
from rich.console import Console

from ingest.alarms import QUARANTINE_FULL, clear_alarm
from ingest.clock import unix_ms
from ingest.config.model import Config
from ingest.dicom.file_header import InstanceHeader
from ingest.errors import NotQuarantinedError, StoreAwayError, StoreError
from ingest.ledger import Instance, InstanceState, Ledger, NewInstance
from ingest.ledger.quarantine import GAVE_WAY
from ingest.ledger.store_folders import QUARANTINE, STORE
from ingest.queue.client import connect
from ingest.queue.wakeups import send_wake_up
from ingest.routing.node_router import NodeRouter
from ingest.spool.reference import Reference
from ingest.workers.persist.compare import have_same_bytes, open_stored_file
from ingest.workers.persist.spool_entry import spool_ref
from ingest.workers.store.filesystem import FileStore, SourceFile, StoreBatch
from ingest.workers.store.keys import STAGING, StoreKeyTemplate, make_quarantine_key

CONTESTED_MAX: Final = 3
"""How often a release begins anew, while workers store the same SOP instance UID."""

RETRIED_MAX: Final = 100_000
"""How many are tried again at once, where none is named."""

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


class _OtherStoredError(Exception):
    """Another object of the SOP instance UID is stored."""

    def __init__(self, other: Instance) -> None:
        super().__init__(other.id)
        self.other = other


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

    kept: StoreBatch
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
        self._key_template = StoreKeyTemplate(config.store.path)
        self._router = NodeRouter(config)

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
            return self._released(number, stored, kept, replacing=True)

    def retry(self, number: int) -> tuple[str, ...] | None:
        """Store an acknowledged instance as though it came now; what is stored under its UID stays.

        Args:
            number: The id of its row.

        Returns:
            As `release`; None where the same instance is stored already, and this copy has gone.

        Raises:
            NotQuarantinedError: It is not in quarantine, was refused, cannot be stored, or another object has
                its SOP instance UID.
            StoreError, LedgerError, OSError: As `release`.
        """
        with self._batches() as (stored, kept):
            row = self._row(number)
            if row.refused_status:
                cause = f"its sender was answered {row.refused_status:04X}H"
                raise NotQuarantinedError(f"{number}: {cause}; `ingest quarantine release` stores it even so")
            try:
                return self._released(number, stored, kept, replacing=False)
            except _OtherStoredError as error:
                if not self._is_same(row, error.other):
                    raise NotQuarantinedError(
                        f"{number}: another object of its SOP instance UID is stored; `ingest quarantine "
                        "release` stores this one in its place"
                    ) from None
            self._drop(row, kept, "the same instance is stored")
            return None

    def _released(
        self, number: int, stored: StoreBatch, kept: StoreBatch, *, replacing: bool
    ) -> tuple[str, ...]:
        row = self._row(number)
        key = make_quarantine_key(_reference(row.spool_ref))
        if row.state is InstanceState.STORED and self._is_there(self._quarantine, key):
            # Who released it died before the file was gone from here.
            self._clear(row.sop_instance_uid, key, stored, kept)
            return tuple(one.destination for one in self._ledger.deliveries.find_by_instance(number))
        released = self._stored(number, stored, kept, replacing=replacing)
        self._clear(released.sop_instance_uid, row.store_key, stored, kept)
        return released.destinations

    def _is_same(self, row: Instance, other: Instance) -> bool:
        """Whether what is stored has the same data set, in the same transfer syntax."""
        with (
            open_stored_file(self._quarantine, row.store_key) as (ours, facts),
            open_stored_file(self._store, other.store_key) as (there, known),
        ):
            if ours is None or facts is None or there is None or known is None:
                return False
            offsets = facts.data_set_offset, known.data_set_offset
            same_syntax = facts.transfer_syntax_uid == known.transfer_syntax_uid
            return same_syntax and have_same_bytes(ours, there, lambda: None, offsets=offsets)

    def drop(self, number: int) -> None:
        """Remove a quarantined file; its row stays, and says so.

        Raises:
            NotQuarantinedError: It is not in quarantine.
            StoreError: Store or quarantine is away.
            LedgerError: The ledger is away.
        """
        with self._batches() as (_, kept):
            self._drop(self._quarantined(number), kept, "dropped from quarantine by hand")

    def _drop(self, row: Instance, kept: StoreBatch, why: str) -> None:
        # The row last: as long as it says "quarantined", the same command finishes what this one began.
        self._quarantine.remove(kept, row.store_key)
        self._quarantine.sync(kept)
        self._ledger.quarantine.drop(row.id, f"{why}; {row.note}")

    @contextlib.contextmanager
    def _batches(self) -> Iterator[tuple[StoreBatch, StoreBatch]]:
        with self._store.open_batch() as stored, self._quarantine.open_batch() as kept:
            self._store.acquire_removal_lock(stored)
            yield stored, kept

    def _row(self, number: int) -> Instance:
        row = self._ledger.instances.find_by_ids([number]).get(number)
        if row is None:
            raise NotQuarantinedError(f"{number}: there is no instance with this id")
        return row

    def _quarantined(self, number: int) -> Instance:
        row = self._row(number)
        if row.state is not InstanceState.QUARANTINED:
            raise NotQuarantinedError(f"{number}: it is not in quarantine, it is {row.state.value}")
        return row

    def _stored(self, number: int, stored: StoreBatch, kept: StoreBatch, *, replacing: bool) -> NewInstance:
        for _ in range(CONTESTED_MAX):
            row = self._quarantined(number)
            with open_stored_file(self._quarantine, row.store_key, self._router.tags) as (source, facts):
                there = self._releasable(row, source, facts)
                released = self._try(row, *there, stored, kept, replacing=replacing)
            if released is not None:
                return released
        raise StoreError(
            f"{number}: workers store the same SOP instance UID again and again, or another instance has the "
            "place of its file; try again later"
        )

    def _releasable(
        self, row: Instance, source: SourceFile | None, facts: InstanceHeader | None
    ) -> tuple[SourceFile, InstanceHeader]:
        if source is None:
            raise NotQuarantinedError(f"{row.id}: its file {row.store_key} is gone; drop it")
        if facts is None:
            raise NotQuarantinedError(
                f"{row.id}: {row.store_key} cannot be read as a DICOM file, so it cannot be released; "
                "have it sent again, and drop it"
            )
        if row.is_damaged_in_spool:
            # It may read well, and hold another patient's pixels.
            raise NotQuarantinedError(
                f"{row.id}: {row.note}, so it cannot be released; have it sent again, and drop it"
            )
        if facts.conflict:
            raise NotQuarantinedError(
                f"{row.id}: {facts.conflict}, so it cannot be released; have it sent again, and drop it"
            )
        return replace(source, path=str(self._quarantine.root / row.store_key)), facts

    def _try(
        self,
        row: Instance,
        source: SourceFile,
        facts: InstanceHeader,
        stored: StoreBatch,
        kept: StoreBatch,
        *,
        replacing: bool,
    ) -> NewInstance | None:
        """Release it, unless a worker stores the same SOP instance UID at this moment."""
        key = self._layout.key(facts.study_uid, facts.series_uid, facts.sop_instance_uid)
        now = unix_ms()
        rows = self._ledger.instances.find_by_sop_instance_uid(facts.sop_instance_uid)
        # Further copies (`[store] duplicates = "keep-both"`) stay where they are.
        firsts = (one for one in rows if one.state is InstanceState.STORED and not one.copy_digest)
        old = next(firsts, None)
        if old is not None and not replacing:
            raise _OtherStoredError(old)
        safe = {one.store_key for one in (row, *rows) if one.state is InstanceState.QUARANTINED}
        copying = _Copying(kept, row.id, facts.sop_instance_uid, frozenset(safe), now)
        copies = [self._copied(copying, old.store_key, old)] if old is not None else []
        if old is None or old.store_key != key:
            if self._ledger.instances.find_claimed_keys([key]):
                return None
            # What a worker is about to record, or one that died did not.
            copies.append(self._copied(copying, key))
        self._quarantine.sync(kept)
        note = f"gave way to instance {row.id}, which was released from quarantine"
        self._ledger.quarantine.replace_stored(old, note, [copy for copy in copies if copy is not None], now)
        if self._ledger.instances.find_claimed_keys([key]):
            return None
        # Only now, so that no row ever speaks of a file that is another's by now.
        self._store.replace(stored, source, key)
        self._store.sync(stored)
        routing = self._router.route_instance(facts)
        released = NewInstance(
            **_told(facts),
            state=InstanceState.STORED,
            sop_instance_uid=facts.sop_instance_uid,
            store_key=key,
            size=facts.size,
            spool_ref=row.spool_ref,
            note=f"{'released' if replacing else 'tried again'} from quarantine by hand; {row.note}",
            received_at=row.received_at,
            stored_at=now,
            routed=routing.routed,
            destinations=routing.destinations,
        )
        return released if self._ledger.quarantine.release(row.id, released) else None

    def _copied(self, copying: "_Copying", key: str, old: Instance | None = None) -> NewInstance | None:
        """Put what lies in the store under a key into quarantine; None where there is no need.

        Args:
            copying: What is being released.
            key: Where in the store.
            old: The row of what lies there, if it has one.
        """
        with open_stored_file(self._store, key) as (there, facts):
            if there is None or any(self._same(one, there) for one in copying.safe):
                return None
            # The same name again for the same bytes, at a second try.
            name = str(old.id) if old is not None else f"{copying.number}.{_digest(there)}"
            reference = Reference("spool", GAVE_WAY, name)
            source = replace(there, path=str(self._store.root / key))
            self._quarantine.replace(copying.kept, source, make_quarantine_key(reference))
            return NewInstance(
                **_told(old or facts),
                state=InstanceState.QUARANTINED,
                sop_instance_uid=copying.uid,
                store_key=make_quarantine_key(reference),
                size=there.size,
                spool_ref=spool_ref(reference),
                note=f"was stored; gave way to instance {copying.number}, which was released from quarantine",
                received_at=old.received_at if old is not None else copying.now,
                stored_at=copying.now,
            )

    def _same(self, key: str, there: SourceFile) -> bool:
        with open_stored_file(self._quarantine, key) as (kept, _):
            return kept is not None and have_same_bytes(kept, there, lambda: None)

    def _clear(self, uid: str, key: str, stored: StoreBatch, kept: StoreBatch) -> None:
        """Remove the names that files of a released instance, and of what gave way to it, had before."""
        left = self._ledger.instances.find_store_keys([uid]).replaced.get(uid, set())
        for old in left - self._ledger.instances.find_claimed_keys(left):
            if self._is_there(self._store, old):
                self._store.remove(stored, old)
        self._store.sync(stored)
        self._quarantine.remove(kept, key)
        self._quarantine.sync(kept)

    def _is_there(self, store: FileStore, key: str) -> bool:
        try:
            store.read_size(key)
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
            FileStore(config.store_root, durable=durable, shared_lock=ledger.create_removal_lock()),
            FileStore(config.quarantine_dir, durable=durable),
        ]
        for kind, store in zip((STORE, QUARANTINE), opened, strict=True):
            _require(store.root)
            store.prepare(ledger.store_folders.find_folder(kind))
            stack.callback(store.close)
        yield Warden(config, ledger, *opened)


def _require(root: Path) -> None:
    try:
        owner = (root / STAGING).stat().st_uid
    except OSError:
        raise StoreAwayError(f"{root} is not there; mount it, or start the node once") from None
    if owner != os.geteuid():
        # Workers could not use what another user makes there.
        raise StoreError(f"{root} belongs to the user with the id {owner}: run this as that user")


def _told(what: InstanceHeader | Instance | None) -> dict[str, Any]:
    """What a row says of a file; nothing where it cannot be read."""
    if what is None:
        return {name: 0 if name == "data_set_offset" else "" for name in _TOLD}
    return {name: getattr(what, name) for name in _TOLD}


def _digest(source: SourceFile) -> str:
    with open(source.fd, "rb", buffering=0, closefd=False) as file:
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()[:40]


def _reference(name: str) -> Reference:
    """What the ledger calls `name`; see `ingest.workers.persist.spool_entry.spool_ref`."""
    spool, _, place = name.partition(":")
    where, _, offset = place.partition("#")
    return Reference("spool", spool, where, int(offset or 0))


def release(config: Config, ids: Sequence[int]) -> int:
    """Release instances from quarantine, wake their destinations, and say so; returns the exit code."""
    woken: set[str] = set()

    def do(keeper: Warden, number: int) -> None:
        to = keeper.release(number)
        woken.update(to)
        _say(f"{number}: released; to {', '.join(to) or 'no destination'}")

    code = _each(config, lambda _: ids, do)
    _wake(config, woken)
    return code


def retry(config: Config, ids: Sequence[int]) -> int:
    """Store acknowledged instances as though they came now, and say so; returns the exit code.

    Args:
        config: The configuration.
        ids: Of their rows; all that were set aside where none is named.
    """
    woken: set[str] = set()

    def do(keeper: Warden, number: int) -> None:
        to = keeper.retry(number)
        woken.update(to or ())
        said = f"stored; to {', '.join(to) or 'no destination'}" if to is not None else "stored already; gone"
        _say(f"{number}: {said}")

    code = _each(config, lambda ledger: ids or ledger.quarantine.list_acknowledged_ids(RETRIED_MAX), do)
    _wake(config, woken)
    return code


def drop(config: Config, ids: Sequence[int]) -> int:
    """Remove instances from quarantine for good, and say so; returns the exit code."""

    def do(keeper: Warden, number: int) -> None:
        keeper.drop(number)
        _say(f"{number}: dropped")

    code = _each(config, lambda _: ids, do)
    _end_alarm(config)
    return code


def _end_alarm(config: Config) -> None:
    """Clear the alarm of a full quarantine, if there is room by now."""
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        most = config.receive.quarantine_max_bytes
        if not most or ledger.quarantine.sum_refused_bytes() < most:
            clear_alarm(config.run_dir, QUARANTINE_FULL)


def _wake(config: Config, destinations: set[str]) -> None:
    client = connect(config, timeout=2.0)
    try:
        for destination in sorted(destinations):
            send_wake_up(client, destination)
    except redis.RedisError as error:
        _complain(f"the queue is away ({error}); workers find them by themselves within seconds")
    finally:
        client.close()


def _each(config: Config, ids: Callable[[Ledger], Sequence[int]], do: Callable[[Warden, int], None]) -> int:
    """Do it for each; one that cannot be done is named, and keeps back no others."""
    code = 0
    ledger = Ledger(config.ledger_url)
    try:
        ledger.require_schema()
        with warden(config, ledger) as keeper:
            for number in dict.fromkeys(ids(ledger)):
                try:
                    do(keeper, number)
                except NotQuarantinedError as error:
                    _complain(str(error))
                    code = 1
                except OSError as error:
                    _complain(f"{number}: its file cannot be read or kept now: {error}; try again later")
                    code = 1
    finally:
        ledger.close()
    return code


def _say(text: str) -> None:
    Console(highlight=False, soft_wrap=True).print(text, markup=False)


def _complain(text: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)
