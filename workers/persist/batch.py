"""One batch of the persist worker: open the files, store them, commit their rows, release the spool entries.

The order keeps every acknowledged instance: file and folders are durable, then the ledger commits, and only
then the spool entry goes. A worker may die between any two steps. The next one does the same steps again.
"""

import contextlib
import errno
import os
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import redis
import structlog

from ingest.clock import unix_ms
from ingest.dicom.file_header import InstanceHeader, make_unreadable_header, read_instance_header
from ingest.errors import (
    EntryGoneError,
    PathEscapesError,
    PeerError,
    SpoolError,
    StoppedError,
    StoreAwayError,
    StoreError,
)
from ingest.filesystem.beneath import unlink_beneath
from ingest.ledger import InstanceState, NewInstance, Outcome
from ingest.log import RateLimitedLog
from ingest.metrics import families
from ingest.metrics.board import current_board
from ingest.queue.consumer import StreamEntry
from ingest.workers.fault_attribution import is_our_fault
from ingest.workers.persist.commitment_messages import is_commitment_message, record_commitment_message
from ingest.workers.persist.context import PersistContext
from ingest.workers.persist.isolated_reader import read_isolated
from ingest.workers.persist.spool_entry import (
    OpenSegments,
    SpoolEntry,
    copy_queued_file,
    copy_segment_record,
    open_spool_file,
    spool_ref,
)
from ingest.workers.persist.storage import BatchStorage, open_storage, was_refused
from ingest.workers.store.filesystem import SourceFile

DELIVERIES_MAX: Final = 5
"""An entry that was delivered more often, without a fault of ours, gets one last attempt, alone."""

CONTESTED_MAX: Final = 3
"""Attempts to store an instance in one batch while other workers store the same SOP Instance UID."""

COMMIT_SECONDS: Final = 2.0
"""A batch that takes longer commits the instances that it has stored so far, and then continues."""

KEPT_STATES: Final = (InstanceState.STORED, InstanceState.VARIANT)

log = structlog.get_logger()
_seldom: Final = RateLimitedLog()


@dataclass(slots=True)
class BatchResult:
    """The result of a batch. An entry in none of the lists stays on the queue.

    Attributes:
        persisted: Entries to acknowledge, because they are durable in store and ledger or of no use.
        lost: Their data sets are not there: to be taken off the queue, but their listeners must keep the
            files.
        held_up: Not persisted because of a fault of ours: to be tried again, without blame.
        failed: Not persisted for another reason, by the ids of the stream entries.
        destinations: Names of the destinations with new deliveries, in order.
        error: The fault of ours that held entries up, if there was one.
    """

    persisted: list[StreamEntry] = field(default_factory=list)
    lost: list[StreamEntry] = field(default_factory=list)
    held_up: list[StreamEntry] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    destinations: dict[str, None] = field(default_factory=dict)
    error: Exception | None = None

    def find_unresolved(self, entries: Sequence[StreamEntry]) -> list[StreamEntry]:
        """Return the entries of a broken batch that are neither persisted nor lost nor failed."""
        resolved = {entry.id for entry in (*self.persisted, *self.lost)} | self.failed.keys()
        return [entry for entry in entries if entry.id not in resolved]


class PersistBatch:
    """One batch. Its result is filled step by step, and is therefore right after an error too.

    Attributes:
        result: The result for each entry.
    """

    def __init__(self, context: PersistContext) -> None:
        self.result = BatchResult()
        self._context = context
        # Asked once: the property of the configuration joins paths at each use, and a batch has many entries.
        self._spool_dir = context.config.spool_dir
        self._segments = OpenSegments(self._spool_dir)
        self._tags = context.router.tags
        self._indexed_tags = context.attribute_reader.tags
        self._began_at = self._committed_at = time.monotonic()
        # Entries since the last commit: stored ones, refused rows, and entries whose row raised an error.
        self._stored: list[SpoolEntry] = []
        self._recorded_count = 0
        self._refused_rows: list[tuple[NewInstance, Outcome]] = []
        self._unrecorded: list[tuple[SpoolEntry, Exception]] = []

    def persist(self, stream_entries: Sequence[StreamEntry]) -> None:
        """Persist the instances of stream entries, as far as that is possible now.

        Raises:
            redis.RedisError: Redis is away.
            StoppedError: The worker was asked to stop while the ledger was away.
            StoreAwayError: The store is not there.
        """
        with open_storage(self._context) as storage, contextlib.ExitStack() as stack:
            stack.enter_context(self._segments)
            entries = self._open_entries(stack, stream_entries)
            self._sync_copies(entries)
            storage.look_up_uids([entry.header.sop_instance_uid for entry in entries])
            for entry in entries:
                self._store_entry(storage, entry)
                if self._is_commit_due():
                    self._commit(storage)
                if self._must_end_early():
                    break
            # A commit may store contested instances again, which the next commit records.
            while self._stored:
                self._commit(storage)

    # --- open

    def _open_entries(
        self, stack: contextlib.ExitStack, stream_entries: Sequence[StreamEntry]
    ) -> list[SpoolEntry]:
        entries: list[SpoolEntry] = []
        gone: list[StreamEntry] = []
        for stream_entry in stream_entries:
            self._context.claims.current = stream_entry
            try:
                entry = stack.enter_context(self._open_file(stream_entry))
                entry.header = self._read_header(stack, entry)
                if is_commitment_message(entry):
                    record_commitment_message(self._context, entry)
                    self._release_spool_entry(stream_entry)
                    self.result.persisted.append(stream_entry)
                else:
                    entries.append(entry)
            except EntryGoneError:
                gone.append(stream_entry)
            except SpoolError as error:
                self._refuse_reference(stream_entry, error)
            except Exception as error:
                self._note_failure(stream_entry, error)
            self._context.claims.renew_if_due()
        self._context.claims.current = None
        if gone:
            self._resolve_gone(gone)
        return entries

    def _open_file(self, entry: StreamEntry) -> contextlib.AbstractContextManager[SpoolEntry]:
        context = self._context
        if entry.carrier == "redis":
            return copy_queued_file(entry, context.client, context.store)
        spool_dir, spool_id = self._spool_dir, context.streams.spool_id
        if spool_id is None:
            # INVARIANT 13: nothing replaces a folder that is not mounted.
            raise FileNotFoundError(errno.ENOENT, "the spool is not there; mount it", str(spool_dir))
        if entry.spool != spool_id:
            raise SpoolError(
                f"{entry.path} lies in the spool {entry.spool}, which is not {spool_dir}; "
                'share one [receive] spool_dir, or set [queue] carrier = "redis"'
            )
        if entry.offset:
            return copy_segment_record(entry, self._segments, context.store)
        is_synced = context.config.receive.durability == "fsync"
        return open_spool_file(entry, spool_dir, synced=is_synced)

    def _read_header(self, stack: contextlib.ExitStack, entry: SpoolEntry) -> InstanceHeader:
        """Read the header of a file; if the entry failed often, in a separate process first.

        Redis only says how often the entry was delivered. Only a crash mark of this host proves that a worker
        died of it.

        Raises:
            OSError: The disk is failing, or no other process can be started now.
        """
        source = entry.source
        if entry.damage:
            return make_unreadable_header(source.fd, source.size, entry.damage)
        if entry.stream_entry.deliveries <= DELIVERIES_MAX:
            return self._read_header_here(entry)
        isolated = read_isolated(source.fd, self._tags, self._context.claims.renew_if_due)
        cause = isolated.fault or "its worker died each time"
        crash_marks = self._context.crash_marks
        # INVARIANT 11: our faults quarantine no image. Without a mark there is no proof, so try once more
        # here.
        if not isolated.fault and not crash_marks.is_marked(entry.spool_ref):
            # The mark stays until the batch is done with the entry.
            stack.enter_context(crash_marks.keep_mark(entry.spool_ref))
            try:
                return self._read_header_here(entry)
            except Exception as error:
                if is_our_fault(error):
                    raise
                cause = f"{type(error).__name__}: {error}"
        stack.callback(crash_marks.remove_mark, entry.spool_ref)
        return replace(isolated.header, size=source.size, conflict=_describe_attempts(entry, cause))

    def _read_header_here(self, entry: SpoolEntry) -> InstanceHeader:
        source = entry.source
        header = _read_header_or_conflict(source, self._tags, self._indexed_tags)
        if header.conflict and not was_refused(entry.stream_entry):
            # The listener found no conflict when it acknowledged the instance. The page cache may be wrong
            # where the disk is right, so read the file once more from the disk.
            os.posix_fadvise(source.fd, 0, 0, os.POSIX_FADV_DONTNEED)
            header = _read_header_or_conflict(source, self._tags, self._indexed_tags)
        return header

    def _sync_copies(self, entries: Sequence[SpoolEntry]) -> None:
        """Make copies durable before they get a name in the store, with one wait for all of them."""
        sources = self._context.store.sync_sources([entry.source for entry in entries])
        for entry, source in zip(entries, sources, strict=True):
            entry.source = source

    def _refuse_reference(self, entry: StreamEntry, error: SpoolError) -> None:
        """Leave an unusable reference to another worker, or drop it after many attempts."""
        if entry.deliveries > DELIVERIES_MAX:
            log.error("reference_dropped", error=str(error), attempts=entry.deliveries)
            self.result.persisted.append(entry)
        else:
            log.error("reference_unusable", error=str(error))
            self.result.failed[entry.id] = str(error)

    def _resolve_gone(self, gone: Sequence[StreamEntry]) -> None:
        """Ask the ledger which entries without a file were persisted before."""
        refs = {spool_ref(entry) for entry in gone}
        persisted = self._context.ask_ledger(self._context.ledger.spool_references.find_removable, refs)
        for ref in refs - persisted:
            # A duplicate that was persisted before a crash, an entry that is lost, or (carrier "redis") one
            # that its listener publishes again.
            log.warning("reference_without_file", reference=ref)
        for entry in gone:
            known = spool_ref(entry) in persisted
            (self.result.persisted if known else self.result.lost).append(entry)
            if not known:
                current_board().add(families.PERSISTED, "lost")

    # --- store

    def _store_entry(self, storage: BatchStorage, entry: SpoolEntry) -> None:
        self._context.claims.current = entry.stream_entry
        try:
            if entry.attempts == CONTESTED_MAX:
                raise StoreAwayError("other workers store the same SOP instance UID again and again")
            entry.attempts += 1
            storage.store_entry(entry)
            self._stored.append(entry)
        except Exception as error:
            self._handle_storing_failure(storage, entry, error)
        finally:
            self._context.claims.current = None

    def _handle_storing_failure(self, storage: BatchStorage, entry: SpoolEntry, error: Exception) -> None:
        """Put an entry into quarantine if this was its last attempt. It keeps its UIDs there."""
        is_blameless = is_our_fault(error) or isinstance(error, StoppedError)
        # INVARIANT 11: our faults quarantine no image.
        if is_blameless or entry.stream_entry.deliveries <= DELIVERIES_MAX:
            self._note_failure(entry.stream_entry, error)
            return
        try:
            if entry.is_given_up:
                raise error
            entry.is_given_up = True
            storage.quarantine_entry(entry, _describe_attempts(entry, f"{type(error).__name__}: {error}"))
            self._stored.append(entry)
        except Exception as last:
            self._note_failure(entry.stream_entry, last)

    def _note_failure(self, entry: StreamEntry, error: Exception) -> None:
        """Note the failure of one entry. A failure that concerns all entries is raised again."""
        if isinstance(error, redis.RedisError | StoppedError):
            raise error
        if is_our_fault(error):
            # INVARIANT 8: a failing disk does not stop the node. INVARIANT 11: our faults quarantine no
            # image.
            self.result.held_up.append(entry)
            self.result.error = error
            return
        self.result.failed[entry.id] = f"{type(error).__name__}: {error}"
        log.error("not_persisted", where=entry.path, attempt=entry.deliveries, exc_info=error)

    # --- commit

    def _is_commit_due(self) -> bool:
        self._context.claims.renew_if_due()
        return time.monotonic() - self._committed_at >= COMMIT_SECONDS

    def _must_end_early(self) -> bool:
        """Whether the worker was asked to stop, and this batch takes longer than most."""
        return self._context.stop.is_set() and time.monotonic() - self._began_at > COMMIT_SECONDS

    def _commit(self, storage: BatchStorage) -> None:
        """Make stored files durable, commit their rows, and only then release their spool entries.

        An instance is stored again if another worker stored its SOP Instance UID under another key meanwhile.
        """
        self._committed_at = time.monotonic()
        if not self._stored:
            return
        try:
            # INVARIANT 1: files and folders are durable before their rows.
            storage.sync()
        except StoreAwayError as error:
            self.result.held_up += [entry.stream_entry for entry in self._stored]
            self.result.error = error
            self._stored.clear()
            raise
        self._refused_rows.clear()
        self._recorded_count = 0
        self._record_rows(storage.rows)
        contested = storage.find_contested(self._refused_rows)
        self._record_duplicates(contested)
        self._note_duplicates(contested)
        try:
            storage.finish_commit()
        except StoreError as error:
            log.error("replaced_file_stays", error=str(error), remedy="remove it by hand")
        stored, self._stored = self._stored, []
        # INVARIANT 1: the spool entry goes only after the rows are durable.
        for entry in stored:
            if entry.spool_ref not in contested:
                self._release_spool_entry(entry.stream_entry)
                self.result.persisted.append(entry.stream_entry)
        # An entry that was released without a new row is in the store already.
        duplicates = len(stored) - len(contested) - self._recorded_count
        if duplicates > 0:
            current_board().add(families.PERSISTED, "duplicate", value=duplicates)
        for entry in stored:
            if entry.spool_ref in contested:
                self._store_entry(storage, entry)
        unrecorded, self._unrecorded = self._unrecorded, []
        for entry, cause in unrecorded:
            self._handle_storing_failure(storage, entry, cause)

    def _record_rows(self, rows: Sequence[NewInstance]) -> None:
        """Record all rows in one transaction; if the ledger refuses one, record each alone."""
        try:
            outcomes = self._context.ask_ledger(self._context.ledger.instances.record, rows)
        except StoppedError:
            raise
        except Exception as error:
            if len(rows) > 1:
                for row in list(rows):
                    self._record_rows([row])
                return
            refused = [entry for entry in self._stored if entry.spool_ref == rows[0].spool_ref]
            self._stored = [entry for entry in self._stored if entry not in refused]
            self._unrecorded += [(entry, error) for entry in refused]
            return
        for row, outcome in zip(rows, outcomes, strict=True):
            if outcome is Outcome.RECORDED:
                self._count_recorded(row)
                self.result.destinations.update(dict.fromkeys(row.destinations))
            else:
                self._refused_rows.append((row, outcome))

    def _count_recorded(self, row: NewInstance) -> None:
        board = current_board()
        board.add(families.PERSISTED, row.state)
        board.observe(families.PERSIST_SECONDS, time.monotonic() - self._began_at)
        if row.state in KEPT_STATES:
            board.observe(families.QUEUE_SECONDS, (unix_ms() - row.received_at) / 1000)
        self._recorded_count += 1
        if self._context.spans is not None:
            self._context.spans.add_stored(row, time.monotonic() - self._began_at)

    def _record_duplicates(self, contested: Collection[str]) -> None:
        """Record references without a row, for carrier "redis".

        A listener removes its copy only if the ledger proves that the instance was persisted.

        Args:
            contested: References that are stored again, and need no proof yet.
        """
        context = self._context
        refs = {entry.spool_ref for entry in self._stored if entry.stream_entry.carrier == "redis"}
        refs -= set(contested)
        if not refs:
            return
        without_row = refs - context.ask_ledger(context.ledger.spool_references.find_recorded, refs)
        if without_row:
            context.ask_ledger(
                context.ledger.spool_references.record_duplicates, sorted(without_row), unix_ms()
            )

    def _note_duplicates(self, contested: Collection[str]) -> None:
        """Note duplicates for the audit trail, because they were transferred too.

        Their rows describe the object that is in the store. The association is that of the entry.
        """
        context = self._context
        if not context.config.records_transfers or not self._refused_rows:
            return
        headers = {entry.spool_ref: entry.header for entry in self._stored}
        rows = [
            replace(row, calling_ae=header.calling_ae, called_ae=header.called_ae, source=header.source)
            for row, outcome in self._refused_rows
            if outcome is Outcome.TAKEN and row.spool_ref not in contested
            if (header := headers.get(row.spool_ref)) is not None
        ]
        if rows:
            context.ask_ledger(context.ledger.transfers.note_duplicates, rows)

    def _release_spool_entry(self, entry: StreamEntry) -> None:
        """Remove a file from the spool, or mark a record of a segment as done."""
        if entry.carrier != "spool":
            return
        try:
            if entry.offset:
                self._segments.mark_done(entry)
            else:
                with contextlib.suppress(FileNotFoundError):
                    # INVARIANT 12: Redis is input. The path must not lead out of the spool through a link.
                    unlink_beneath(self._spool_dir, entry.path)
        except OSError as error:
            self._context.leftovers.add(entry.location.name, error)
        except PathEscapesError as error:
            remedy = "look at the spool: somebody has put a link there"
            log.error("spool_file_stays", file=entry.location.name, error=str(error), remedy=remedy)


def _read_header_or_conflict(
    source: SourceFile, tags: Sequence[int], indexed_tags: Collection[int]
) -> InstanceHeader:
    """Read the header of a file. If that is not possible, the conflict of the header names the cause."""
    try:
        header = read_instance_header(source.fd, source.size, tags, indexed_tags)
    except PeerError as error:
        return make_unreadable_header(source.fd, source.size, str(error))
    if header.note:
        _seldom.warning("header_damaged", sop_instance=header.sop_instance_uid, note=header.note)
    return header


def _describe_attempts(entry: SpoolEntry, cause: str) -> str:
    return f"not persisted in {entry.stream_entry.deliveries} attempts: {cause}"
