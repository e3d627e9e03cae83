"""The remover: what `[retention]` wants gone leaves the store, and later the ledger. One at a time per store.

Each batch is marked in the ledger, removed from the store and marked again, while no worker replaces or
compares anything there. Whoever dies in between leaves rows that say so: the next pass begins with them, and
a worker that gets such an instance again finishes with it first.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from ingest.alarms import clear_alarm, raise_alarm
from ingest.clock import unix_ms
from ingest.config.model import Config
from ingest.errors import BootError, LedgerError, RetentionBusyError, StoppedError, StoreAwayError, StoreError
from ingest.filesystem.folder_identity import require_store
from ingest.ledger import Ledger
from ingest.ledger.retention import CHUNK, RemovableFile, StoredInstance, StoredStudy
from ingest.ledger.store_folders import STORE
from ingest.spool import store_capacity
from ingest.workers.backoff import Backoff, retry_with_backoff
from ingest.workers.retention import clock
from ingest.workers.retention.policy import Decision, Goal, cutoff, decide, disk_over, oldest_first
from ingest.workers.store.filesystem import FileStore, StoreBatch
from ingest.workers.store.keys import STAGING
from ingest.workers.store.removal import FileRemoval
from ingest.workers.store.staging import FILE_MODE, lock

BATCH: Final = 256
"""Files removed at a time: others wait for it who replace or compare."""

SHARE: Final = 10
"""A pass that takes long is followed by a pause of so many times its length, less one."""

CLOCK_ALARM: Final = "retention_clock"

_SLICE_SECONDS: Final = 0.05

log = structlog.get_logger()


@dataclass(slots=True)
class Report:
    """What a pass has done.

    Attributes:
        studies, instances, size: What was removed; size in bytes.
        held: Studies that should have gone, and are owed to a destination.
        held_size: Their bytes.
        forgotten: Rows of the ledger.
    """

    studies: int = 0
    instances: int = 0
    size: int = 0
    held: int = 0
    held_size: int = 0
    forgotten: int = 0


class Remover:
    """What one process needs to remove; made after the fork."""

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        stopping: Callable[[], bool] = lambda: False,
        *,
        statvfs: Callable[[os.PathLike[str]], os.statvfs_result] = os.statvfs,
        now: Callable[[], int] = unix_ms,
        ageing_time: Callable[[], int] | None = None,
        pass_share: float = 0.0,
    ) -> None:
        """Prepare; nothing is asked or opened yet.

        Args:
            config: The configuration.
            ledger: Of this program's schema version.
            stopping: Whether to end after the batch in hand.
            statvfs: How full a file system is.
            now: The time, in Unix milliseconds.
            ageing_time: The time that studies are aged by; 0 ages none. As `now` where it is None.
            pass_share: The share of the store's bytes that one pass may remove for their age; 0 is no bound.
        """
        self._limits = config.retention
        self._quarantine_dir = config.quarantine_dir
        self._ledger = ledger
        self._stopping = stopping
        self._statvfs = statvfs
        self._now = now
        self._ageing_time = ageing_time or now
        self._pass_share = pass_share
        self._store = FileStore(config.store_root, shared_lock=ledger.create_removal_lock())

    def decisions(self) -> Iterator[Decision]:
        """What would become of studies now, the oldest first.

        Raises:
            LedgerError: The ledger is away.
            StoreAwayError: The store is not there.
        """
        return decide(oldest_first(self._rows(), self._ledger.retention.summarize_studies), self._goal())

    def full(self) -> str:
        """Why listeners are to take nothing more, or an empty string; whoever else removes may be at it.

        Raises:
            LedgerError: The ledger is away.
        """
        limit = self._limits.max_bytes
        total = self._ledger.retention.sum_stored_bytes() if limit and self._limits.refuses_when_full else 0
        return f"{total} bytes in the store, [retention] max_bytes is {limit}" if 0 < limit <= total else ""

    def remove(self) -> Report:
        """One pass: finish what was begun, remove what is to go, forget what is to be forgotten.

        Raises:
            RetentionBusyError: Another process is doing that.
            LedgerError: The ledger is away.
            StoreError: The store is not there, or another worker replaces for long.
        """
        report = Report()
        self._require_store()
        with self._alone():
            self._finish()
            for studies in self._batches(report):
                self._remove(studies, report)
            self._forget(report)
        return report

    def _require_store(self) -> None:
        """Remove nothing where another file system is mounted, or none: every file would look gone."""
        try:
            require_store(self._store.root, self._ledger.store_folders.find_folder(STORE))
        except OSError as error:
            raise StoreAwayError(f"the store {self._store.root} fails: {error.strerror}") from error

    # --- what is there

    def _rows(self) -> Iterator[Sequence[StoredInstance]]:
        piece = self._ledger.retention.list_oldest()
        while piece and not self._stopping():
            yield piece
            piece = self._ledger.retention.list_oldest(piece[-1]) if len(piece) == CHUNK else []

    def _goal(self) -> Goal:
        limits = self._limits
        try:
            disk = self._statvfs(self._store.root)
        except OSError as error:
            raise StoreAwayError(f"the store {self._store.root} is not there: {error.strerror}") from error
        sized = limits.max_bytes > 0 and not limits.refuses_when_full
        bounded = bool(self._pass_share and limits.keep_days)
        kept = self._ledger.retention.sum_stored_bytes() if sized or bounded else 0
        return Goal(
            before=cutoff(limits.keep_days, self._ageing_time()),
            aged_most=int(self._pass_share * kept) if bounded else None,
            over=max(0, kept - limits.max_bytes) if sized else 0,
            disk_over=max(
                0, disk_over(disk, limits.high_watermark, limits.low_watermark) - self._refused_beside()
            ),
            only_delivered=limits.only_delivered,
        )

    def _refused_beside(self) -> int:
        """Bytes that copies of refused instances take on the store's file system: no study goes for them."""
        if not self._limits.high_watermark:
            return 0
        with contextlib.suppress(OSError):
            if os.stat(self._quarantine_dir).st_dev == os.stat(self._store.root).st_dev:
                return self._ledger.quarantine.sum_refused_bytes()
        return 0

    # --- what goes

    def _batches(self, report: Report) -> Iterator[list[StoredStudy]]:
        """Studies that go, as many at a time as fill a batch."""
        studies: list[StoredStudy] = []
        for decision in self.decisions():
            if not decision.goes:
                report.held += 1
                report.held_size += decision.study.size
                continue
            studies.append(decision.study)
            if sum(study.instances for study in studies) >= BATCH:
                yield studies
                studies = []
        if studies:
            yield studies

    def _remove(self, studies: Sequence[StoredStudy], report: Report) -> None:
        full = True
        while full and not self._stopping():
            with self._excluding() as batch:
                files = self._ledger.retention.mark_removing(
                    studies, BATCH, self._now(), only_delivered=self._limits.only_delivered
                )
                self._unlink(batch, files)
            full = len(files) == BATCH
            report.instances += len(files)
            report.size += sum(file.size for file in files)
        if not full:
            report.studies += len(studies)

    def _finish(self) -> None:
        """Do what a remover that died has left."""
        after = 0
        while not self._stopping() and self._ledger.retention.list_removing(1, after):
            with self._excluding() as batch:
                files = self._ledger.retention.list_removing(BATCH, after)
                self._unlink(batch, files)
            after = files[-1].id if files else after

    def _unlink(self, batch: StoreBatch, files: Sequence[RemovableFile]) -> None:
        """From mark to mark. What cannot be removed now keeps the first, for the next pass."""
        if not files:
            return
        # Where a remover died, the name may be that of a new instance by now.
        claimed = self._ledger.instances.find_claimed_keys(file.store_key for file in files)
        removal, gone = FileRemoval(self._store.root), []
        now = self._now() + self._store.measure_clock_offset_ms(batch)
        for file in files:
            try:
                if file.store_key in claimed or removal.remove_file(file.store_key, file.stored_at, now):
                    gone.append(file.id)
            except (OSError, StoreError) as error:
                log.error("file_stays", error=str(error), remedy="see to the disk; it is tried again")
        self._store.announce_folder_removal(batch)
        try:
            removal.sync()
        except OSError as error:
            raise StoreAwayError(f"the store {self._store.root} fails: {error.strerror}") from error
        self._ledger.retention.mark_removed(gone)

    def _forget(self, report: Report) -> None:
        before = cutoff(self._limits.ledger_keep_days, self._ageing_time())
        while before and not self._stopping():
            forgotten = self._ledger.retention.delete_removed_rows(before)
            report.forgotten += forgotten
            if forgotten < CHUNK:
                return

    # --- who else is there

    @contextlib.contextmanager
    def _excluding(self) -> Iterator[StoreBatch]:
        with self._store.open_batch() as batch:
            self._store.acquire_removal_lock(batch)
            yield batch

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Of several processes, on whatever hosts, one removes from a store."""
        path = self._store.root / STAGING / "retain.lock"
        try:
            fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
        except OSError as error:
            cause = f"{path} cannot be opened: {error.strerror}"
            raise StoreAwayError(f"{cause}; mount the store, or have a persist worker make it") from error
        try:
            if not lock(fd):
                raise RetentionBusyError(f"another process removes from this store: it holds {path}")
            yield
        finally:
            os.close(fd)


class Ageing:
    """The time a remover ages studies by, checked before each pass: see `ingest.workers.retention.clock`."""

    def __init__(self, config: Config, ledger: Ledger) -> None:
        self._config = config
        self._ledger = ledger
        self._time = 0

    def time(self) -> int:
        """Unix milliseconds as the last look found them; 0 while the wall clock is not believed."""
        return self._time

    def look(self, *, accept: bool = False) -> int:
        """Look at the clocks; returns by how many milliseconds the wall clock is ahead of what is believed.

        Args:
            accept: Believe the wall clock from now on: a person has looked at it.

        Raises:
            LedgerError: The ledger is away.
        """
        run_dir, now = self._config.run_dir, clock.look()
        ahead = 0 if accept else clock.ahead_ms(clock.read_mark(run_dir), now)
        if ahead:
            self._time = 0
            hours = ahead / 3_600_000
            raise_alarm(
                run_dir,
                CLOCK_ALARM,
                f"the clock is {hours:.0f} hours ahead of what is plausible; no study goes for its age",
                "correct the clock, or where it is right run `ingest retention --accept-clock`",
            )
            return ahead
        clock.leave_mark(run_dir, now)
        clear_alarm(run_dir, CLOCK_ALARM)
        self._time = (
            now.wall_ms
            if accept
            else clock.ageing_time(now.wall_ms, self._ledger.retention.find_newest_stored_ms())
        )
        return 0


def _tell(config: Config, remover: Remover, stop: threading.Event) -> None:
    """Leave word for the listeners, unless a successor does so already."""
    why = remover.full()
    if stop.is_set():
        return
    try:
        store_capacity.write_store_full(config.run_dir, why)
    except OSError as error:
        log.error("word_not_left", error=str(error), remedy=f"let this user write {config.run_dir}")


def _say(report: Report) -> None:
    if report.instances or report.forgotten:
        log.info(
            "removed",
            studies=report.studies,
            instances=report.instances,
            bytes=report.size,
            forgotten=report.forgotten,
        )
    if report.held:
        log.warning(
            "held_back",
            studies=report.held,
            bytes=report.held_size,
            remedy="destinations are owed them; `ingest retention --dry-run` names them",
        )


def _pause(seconds: float, stopping: Callable[[], bool]) -> None:
    # A signal handler sets the event: waiting on it could hold the very lock that setting it takes.
    until = time.monotonic() + seconds
    while not stopping() and time.monotonic() < until:
        time.sleep(_SLICE_SECONDS)


def run(config: Config, stop: threading.Event) -> None:
    """Remove in this process until `stop` is set; the batch in hand is finished first.

    Raises:
        BootError: The configuration cannot be used.
    """
    try:
        ledger = Ledger(config.ledger_url)
    except LedgerError as error:
        raise BootError(str(error)) from error
    backoff = Backoff(stop, "retention_away", "nothing is removed meanwhile")
    ageing = Ageing(config, ledger)
    remover = Remover(
        config, ledger, stop.is_set, ageing_time=ageing.time, pass_share=config.retention.max_pass_share
    )
    with contextlib.closing(ledger), contextlib.suppress(StoppedError):
        retry_with_backoff(backoff, ledger.migrate)
        while not stop.is_set():
            began = time.monotonic()
            try:
                _tell(config, remover, stop)
                ageing.look()
                report = remover.remove()
                if report.instances:
                    _tell(config, remover, stop)
                _say(report)
                backoff.reset()
            except (LedgerError, StoreError, OSError, MemoryError) as error:
                backoff.wait_after(error)
            except RetentionBusyError:
                log.debug("another_removes")
            took = time.monotonic() - began
            _pause(max(config.retention.check_seconds, (SHARE - 1) * took), stop.is_set)


def main(config: Config, stop: threading.Event) -> int:
    """Entry point of the child process: TERM and INT end it in good order; returns the exit code.

    Raises:
        BootError: As `run`.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    run(config, stop)
    return 0
