"""One batch of references: opened, identified, placed, recorded, and let go of in the spool."""

import contextlib
import errno
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import redis
import structlog

from ingest.clock import unix_ms
from ingest.dicom.part10 import read_file_meta
from ingest.errors import (
    GoneError,
    PathEscapesError,
    PeerError,
    SpoolError,
    StoppedError,
    StoreAwayError,
    StoreError,
)
from ingest.filesystem.beneath import unlink_beneath
from ingest.ledger import Ledger, NewInstance, Outcome
from ingest.log import Seldom
from ingest.queue.consumer import StreamEntry
from ingest.workers.backoff import Backoff, StoppedError, retry_with_backoff
from ingest.workers.fault_attribution import is_ours
from ingest.workers.persist.arrival import (
    Arrival,
    Facts,
    OpenSegments,
    identify,
    open_carried,
    open_in_segment,
    open_spooled,
    spool_ref,
)
from ingest.workers.persist.crash_marks import Deaths
from ingest.workers.persist.isolated_reader import Trial, try_to_read
from ingest.workers.persist.placement import Placer, Placing, was_refused
from ingest.workers.persist.spool_leftovers import Leftovers
from ingest.workers.store.filesystem import FileStore, Source

DELIVERIES_MAX: Final = 5
"""An entry that was delivered more often, without trouble of ours, gets one last try, alone."""

CONTESTED_MAX: Final = 3
"""How often an instance is placed in one batch, while other workers store the same SOP instance UID."""

log = structlog.get_logger()
_seldom: Final = Seldom()


@dataclass(slots=True)
class Results:
    """What came of a batch.

    Attributes:
        done: May be taken off the queue.
        lost: Likewise, but nothing is kept of them: their listeners must not let go of the files.
        away: Could not be kept for trouble of ours; to be tried again, without blame.
        failed: Failed for another reason, which is the value.
        wake: Destinations that something is due for now.
        error: What trouble that is, if there is any.
    """

    done: list[StreamEntry] = field(default_factory=list)
    lost: list[StreamEntry] = field(default_factory=list)
    away: list[StreamEntry] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    wake: dict[str, None] = field(default_factory=dict)
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Tools:
    """What all batches of a worker share.

    Attributes:
        spool_dir: The spool that references with carrier "spool" point into.
        spool: Its id.
        synced: Whether what lies in the spool is on stable storage.
        client: Where data sets with carrier "redis" lie.
        store: Where those go first, and what lies in segments.
        placer: Decides and places.
        ledger: Records.
        ledger_backoff: The failures of the ledger.
        leftovers: What could not be removed from the spool.
        deaths: What workers died of.
        enough: Tells when what was placed so far should be recorded before going on.
        current: Told which entry is being worked on.
        stopping: Whether to leave the rest of the batch on the queue.
    """

    spool_dir: Path
    spool: Callable[[], str | None]
    synced: bool
    client: redis.Redis
    store: FileStore
    placer: Placer
    ledger: Ledger
    ledger_backoff: Backoff
    leftovers: Leftovers
    deaths: Deaths
    enough: Callable[[], bool]
    current: Callable[[StreamEntry | None], None]
    stopping: Callable[[], bool]


@dataclass(slots=True)
class Opened:
    """An entry whose file is open.

    Attributes:
        placed: How often it was placed.
        given_up: Whether it was set aside because it fails again and again.
    """

    entry: StreamEntry
    arrival: Arrival
    facts: Facts
    placed: int = 0
    given_up: bool = False


class Work:
    """A batch at work; `results` is filled step by step, so that it is true even after an error."""

    def __init__(self, tools: Tools) -> None:
        self.results = Results()
        self._tools = tools
        self._placed: list[Opened] = []
        self._refused: list[tuple[NewInstance, Outcome]] = []
        self._unwritten: list[tuple[Opened, Exception]] = []
        self._segments = OpenSegments(tools.spool_dir)

    def persist(self, entries: Sequence[StreamEntry]) -> None:
        """Persist what the entries point to, as far as that can be done now.

        Raises:
            redis.RedisError: Redis is away.
            StoppedError: The worker was told to stop while the ledger was away.
            StoreAwayError: The store is not there at all.
        """
        with contextlib.ExitStack() as stack:
            placing = stack.enter_context(self._tools.placer.batch())
            stack.enter_context(self._segments)
            opened = self._settled(self._open(stack, entries))
            placing.look_up([one.facts for one in opened])
            for one in opened:
                self._place(placing, one)
                if self._tools.enough():
                    self._record(placing)
                if self._tools.stopping():
                    break
            while self._placed:
                self._record(placing)

    def _open(self, stack: contextlib.ExitStack, entries: Sequence[StreamEntry]) -> list[Opened]:
        opened: list[Opened] = []
        gone: list[StreamEntry] = []
        for entry in entries:
            self._tools.current(entry)
            try:
                arrival = stack.enter_context(self._opened(entry))
                opened.append(Opened(entry, arrival, self._identified(stack, entry, arrival)))
            except GoneError:
                gone.append(entry)
            except SpoolError as error:
                self._unusable(entry, error)
            except Exception as error:
                self._failed(entry, error)
            self._tools.enough()
        self._tools.current(None)
        if gone:
            self._report_gone(gone)
        return opened

    def _settled(self, opened: Sequence[Opened]) -> Sequence[Opened]:
        """The same; what was copied is durable before it gets a name, if it has to be at all."""
        sources = self._tools.store.settled([one.arrival.source for one in opened])
        for one, source in zip(opened, sources, strict=True):
            if source is not one.arrival.source:
                one.arrival = replace(one.arrival, source=source)
        return opened

    def _unusable(self, entry: StreamEntry, error: SpoolError) -> None:
        """A reference that this worker cannot follow; perhaps another can."""
        if entry.deliveries > DELIVERIES_MAX:
            log.error("reference_dropped", error=str(error), attempts=entry.deliveries)
            self.results.done.append(entry)
        else:
            log.error("reference_unusable", error=str(error))
            self.results.failed[entry.id] = str(error)

    def _opened(self, entry: StreamEntry) -> contextlib.AbstractContextManager[Arrival]:
        tools, reference = self._tools, entry.reference
        if reference.carrier == "redis":
            return open_carried(reference, tools.client, tools.store, entry.added_at)
        spool = tools.spool()
        if spool is None:
            raise FileNotFoundError(errno.ENOENT, "the spool is not there; mount it", str(tools.spool_dir))
        if reference.spool != spool:
            raise SpoolError(
                f"{reference.path} lies in the spool {reference.spool}, which is not {tools.spool_dir}; "
                'share one [receive] spool_dir, or set [queue] carrier = "redis"'
            )
        if reference.offset:
            return open_in_segment(reference, self._segments, tools.store)
        return open_spooled(reference, tools.spool_dir, synced=tools.synced)

    def _identified(self, stack: contextlib.ExitStack, entry: StreamEntry, arrival: Arrival) -> Facts:
        """What the file says; for an entry that failed often, after a trial in a process of its own.

        Redis says how often it failed. Only a mark of this host proves that a worker died of it.

        Raises:
            OSError: The disk is failing, or there cannot be another process now.
        """
        if arrival.damage:
            return _unreadable(arrival.source, arrival.damage)
        if entry.deliveries <= DELIVERIES_MAX:
            return self._read(entry, arrival)
        trial = try_to_read(arrival.source.fd, self._tools.placer.router.tags, self._tools.enough)
        last = trial.fault or "its worker died each time"
        if not trial.fault and not self._tools.deaths.are_proved(arrival.spool_ref):
            # Until all is done that this batch does with it.
            stack.enter_context(self._tools.deaths.in_hand(arrival.spool_ref))
            try:
                return self._read(entry, arrival)
            except Exception as error:
                if is_ours(error):
                    raise
                last = f"{type(error).__name__}: {error}"
        stack.callback(self._tools.deaths.end, arrival.spool_ref)
        return _told(arrival, trial, _why(entry, last))

    def _read(self, entry: StreamEntry, arrival: Arrival) -> Facts:
        source, tags = arrival.source, self._tools.placer.router.tags
        facts = _facts(source, tags)
        if facts.conflict and not was_refused(entry.reference):
            # It was sound when it was acknowledged. Read it once more, from the disk.
            os.posix_fadvise(source.fd, 0, 0, os.POSIX_FADV_DONTNEED)
            facts = _facts(source, tags)
        return facts

    def _place(self, placing: Placing, one: Opened) -> None:
        self._tools.current(one.entry)
        try:
            if one.placed == CONTESTED_MAX:
                raise StoreAwayError("other workers store the same SOP instance UID again and again")
            one.placed += 1
            placing.place(one.arrival, one.facts)
            self._placed.append(one)
        except Exception as error:
            self._placing_failed(placing, one, error)
        finally:
            self._tools.current(None)

    def _placing_failed(self, placing: Placing, one: Opened, error: Exception) -> None:
        """Set an entry aside whose last try this was; it lies in quarantine then, with its UIDs."""
        if is_ours(error) or isinstance(error, StoppedError) or one.entry.deliveries <= DELIVERIES_MAX:
            self._failed(one.entry, error)
            return
        try:
            if one.given_up:
                raise error
            one.given_up = True
            reason = _why(one.entry, f"{type(error).__name__}: {error}")
            placing.set_aside(one.arrival, one.facts, reason)
            self._placed.append(one)
        except Exception as last:
            self._failed(one.entry, last)

    def _failed(self, entry: StreamEntry, error: Exception) -> None:
        """Keep one entry's failure from the others; what concerns all of them goes on upwards."""
        if isinstance(error, redis.RedisError | StoppedError):
            raise error
        if is_ours(error):
            self.results.away.append(entry)
            self.results.error = error
            return
        self.results.failed[entry.id] = f"{type(error).__name__}: {error}"
        log.error("not_persisted", where=entry.reference.path, attempt=entry.deliveries, exc_info=error)

    def _record(self, placing: Placing) -> None:
        """Make what was placed durable, then its rows; only then let go of the spool's copies.

        What another worker stored at the same time under another name is placed again, and not let go of.
        """
        if not self._placed:
            return
        try:
            placing.sync()
        except StoreAwayError as error:
            self.results.away += [one.entry for one in self._placed]
            self.results.error = error
            self._placed.clear()
            raise
        self._refused.clear()
        self._write(placing, placing.rows)
        again = placing.contested(self._refused)
        self._note_duplicates(again)
        try:
            placing.recorded()
        except StoreError as error:
            log.error("replaced_file_stays", error=str(error), remedy="remove it by hand")
        placed, self._placed = self._placed, []
        contested = [one for one in placed if one.arrival.spool_ref in again]
        for one in placed:
            if one.arrival.spool_ref not in again:
                self._release(one.entry)
                self.results.done.append(one.entry)
        for one in contested:
            self._place(placing, one)
        unwritten, self._unwritten = self._unwritten, []
        for one, why in unwritten:
            self._placing_failed(placing, one, why)

    def _write(self, placing: Placing, rows: Sequence[NewInstance]) -> None:
        """All rows at once; one by one where the ledger refuses some, so that these keep back no others."""
        tools = self._tools
        try:
            outcomes = retry_with_backoff(tools.ledger_backoff, tools.ledger.instances.record, rows)
        except StoppedError:
            raise
        except Exception as error:
            if len(rows) > 1:
                for row in list(rows):
                    self._write(placing, [row])
                return
            refused = [one for one in self._placed if one.arrival.spool_ref == rows[0].spool_ref]
            self._placed = [one for one in self._placed if one not in refused]
            self._unwritten += [(one, error) for one in refused]
            return
        for row, outcome in zip(rows, outcomes, strict=True):
            if outcome is Outcome.RECORDED:
                self.results.wake.update(dict.fromkeys(row.destinations))
            else:
                self._refused.append((row, outcome))

    def _note_duplicates(self, again: Collection[str]) -> None:
        """Leave proof of what is not kept, for listeners that remove their own copies (carrier `redis`).

        Args:
            again: References that are placed again.
        """
        tools = self._tools
        placed = [one.arrival for one in self._placed if one.entry.reference.carrier == "redis"]
        refs = {arrival.spool_ref for arrival in placed if arrival.spool_ref not in again}
        known = (
            retry_with_backoff(tools.ledger_backoff, tools.ledger.spool_references.find_recorded, refs)
            if refs
            else refs
        )
        without_rows = refs - known
        if without_rows:
            retry_with_backoff(
                tools.ledger_backoff,
                tools.ledger.spool_references.record_duplicates,
                sorted(without_rows),
                unix_ms(),
            )

    def _release(self, entry: StreamEntry) -> None:
        reference = entry.reference
        if reference.carrier != "spool":
            return
        try:
            if reference.offset:
                self._segments.mark_done(reference)
            else:
                with contextlib.suppress(FileNotFoundError):
                    unlink_beneath(self._tools.spool_dir, reference.path)
        except OSError as error:
            self._tools.leftovers.add(reference.location.name, error)
        except PathEscapesError as error:
            remedy = "look at the spool: somebody has put a link there"
            log.error("spool_file_stays", file=reference.location.name, error=str(error), remedy=remedy)

    def _report_gone(self, gone: Sequence[StreamEntry]) -> None:
        refs = {spool_ref(entry.reference): entry for entry in gone}
        tools = self._tools
        known = retry_with_backoff(
            tools.ledger_backoff, tools.ledger.spool_references.find_removable, list(refs)
        )
        for ref in refs.keys() - known:
            # Persisted as a duplicate before a crash; or lost, or (carrier "redis") put back by its listener.
            log.warning("reference_without_file", reference=ref)
        for entry in gone:
            kept = spool_ref(entry.reference) in known
            (self.results.done if kept else self.results.lost).append(entry)


def _facts(source: Source, tags: Sequence[int]) -> Facts:
    """What a file says; where it cannot be read, what can be said of it."""
    try:
        facts = identify(source, tags)
    except PeerError as error:
        return _unreadable(source, str(error))
    if facts.note:
        _seldom.warning("header_damaged", sop_instance=facts.sop_instance_uid, note=facts.note)
    return facts


def _blank(source: Source, conflict: str) -> Facts:
    return Facts("", "", "", "", "", "", "", "", source.size, 0, conflict)


def _why(entry: StreamEntry, last: str) -> str:
    return f"not persisted in {entry.deliveries} attempts: {last}"


def _told(arrival: Arrival, trial: Trial, conflict: str) -> Facts:
    """What a trial has said of a file that is set aside."""
    return replace(_blank(arrival.source, conflict), **{**trial.said, "size": arrival.source.size})


def _unreadable(source: Source, reason: str) -> Facts:
    """What can be said of a file whose data set cannot be read."""
    try:
        meta, offset = read_file_meta(source.fd)
    except PeerError:
        return _blank(source, reason)
    return Facts(
        sop_instance_uid=meta.sop_instance_uid,
        sop_class_uid=meta.sop_class_uid,
        study_uid="",
        series_uid="",
        transfer_syntax_uid=meta.transfer_syntax_uid,
        calling_ae=meta.calling_ae,
        called_ae=meta.called_ae,
        source=meta.source_address or "",
        size=source.size,
        data_set_offset=offset,
        conflict=reason,
    )
