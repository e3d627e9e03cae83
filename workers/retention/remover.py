"""The remover: studies that the retention policy selects leave the store, and later the ledger.

One process at a time runs retention on a store. Each batch is marked in the ledger, removed from the store,
and marked again, under the removal lock. A remover that dies in between leaves marked rows. The next run
starts with them, and a worker that receives such an instance again finishes its removal first.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog

from ingest.alarms import clear_alarm, raise_alarm
from ingest.clock import unix_ms
from ingest.config.model import Config
from ingest.errors import BootError, LedgerError, RetentionBusyError, StoppedError, StoreAwayError, StoreError
from ingest.filesystem.folder_identity import require_store
from ingest.filesystem.locks import try_lock
from ingest.ledger import Ledger
from ingest.ledger.retention import CHUNK, RemovableFile, StoredInstance, StoredStudy
from ingest.ledger.store_folders import STORE
from ingest.spool import store_capacity
from ingest.workers.backoff import Backoff, retry_with_backoff
from ingest.workers.host_recorder import HostRecorder
from ingest.workers.retention import clock
from ingest.workers.retention.policy import (
    RetentionDecision,
    RetentionGoal,
    compute_cutoff_ms,
    compute_disk_excess,
    order_by_age,
    plan_removals,
)
from ingest.workers.store.filesystem import FileStore, StoreBatch
from ingest.workers.store.keys import STAGING
from ingest.workers.store.removal import FileRemoval
from ingest.workers.store.staging import FILE_MODE

BATCH: Final = 256
"""Files that are removed under one removal lock. Workers that replace or compare files wait for it."""

PAUSE_FACTOR: Final = 9
"""The pause after a run lasts at least so many times as long as the run."""

CLOCK_ALARM: Final = "retention_clock"

_SLICE_SECONDS: Final = 0.05

log = structlog.get_logger()


@dataclass(slots=True)
class RetentionReport:
    """The result of a retention run.

    Attributes:
        studies, instances, size: Removed studies and instances, and their bytes.
        held: Studies that were held back, because they are owed to a destination.
        held_size: Their bytes.
        forgotten: Rows that were deleted from the ledger.
    """

    studies: int = 0
    instances: int = 0
    size: int = 0
    held: int = 0
    held_size: int = 0
    forgotten: int = 0


class Remover:
    """Runs retention on one store. Make it after the fork.

    Methods raise LedgerError while the ledger is away, and StoreAwayError while the store is not there.
    """

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        stopping: Callable[[], bool] = lambda: False,
        *,
        statvfs: Callable[[os.PathLike[str]], os.statvfs_result] = os.statvfs,
        now: Callable[[], int] = unix_ms,
        retention_ms: Callable[[], int] | None = None,
        pass_share: float = 0.0,
    ) -> None:
        """Prepare without asking or opening anything.

        Args:
            config: The configuration.
            ledger: A ledger of this schema version.
            stopping: Whether to end after the current batch.
            statvfs: Reads how full a file system is.
            now: The time in Unix milliseconds.
            retention_ms: The time by which studies age; 0 ages none. The same as `now` if it is None.
            pass_share: Share of the stored bytes that one run may remove for their age; 0 is no limit.
        """
        self._limits = config.retention
        self._awaited = _list_committing(config) if config.retention.only_committed else []
        self._quarantine_dir = config.quarantine_dir
        self._ledger = ledger
        self._stopping = stopping
        self._statvfs = statvfs
        self._now = now
        self._retention_ms = retention_ms or now
        self._pass_share = pass_share
        self._store = FileStore(config.store_root, shared_lock=ledger.create_removal_lock())

    def plan(self) -> Iterator[RetentionDecision]:
        """Decide about studies as they are now, the oldest first."""
        summarize = partial(self._ledger.retention.summarize_studies, awaited=self._awaited)
        studies = order_by_age(self._read_instances(), summarize)
        return plan_removals(studies, self._compute_goal())

    def describe_full_store(self) -> str:
        """Describe why listeners must refuse instances, or return an empty text. Other runs may go on."""
        limit = self._limits.max_bytes
        total = self._ledger.retention.sum_stored_bytes() if limit and self._limits.refuses_when_full else 0
        return f"{total} bytes in the store, [retention] max_bytes is {limit}" if 0 < limit <= total else ""

    def run(self) -> RetentionReport:
        """Run retention once: finish a broken run, remove studies, delete old rows.

        Raises:
            RetentionBusyError: Another process runs retention on this store.
            StoreError: Another process holds the removal lock for long.
        """
        report = RetentionReport()
        self._require_store()
        with self._exclude_other_runs():
            self._finish_broken_run()
            for studies in self._collect_batches(report):
                self._remove_studies(studies, report)
            self._delete_old_rows(report)
        return report

    def _require_store(self) -> None:
        """Require the store that the ledger knows. On an empty mount point every file would look removed."""
        try:
            # INVARIANT 13: nothing is removed where the store is not mounted.
            require_store(self._store.root, self._ledger.store_folders.find_folder(STORE))
        except OSError as error:
            raise StoreAwayError(f"the store {self._store.root} fails: {error.strerror}") from error

    # --- plan

    def _read_instances(self) -> Iterator[Sequence[StoredInstance]]:
        chunk = self._ledger.retention.list_oldest()
        while chunk and not self._stopping():
            yield chunk
            chunk = self._ledger.retention.list_oldest(chunk[-1]) if len(chunk) == CHUNK else []

    def _compute_goal(self) -> RetentionGoal:
        limits = self._limits
        try:
            disk = self._statvfs(self._store.root)
        except OSError as error:
            raise StoreAwayError(f"the store {self._store.root} is not there: {error.strerror}") from error
        removes_for_size = limits.max_bytes > 0 and not limits.refuses_when_full
        has_pass_limit = bool(self._pass_share and limits.keep_days)
        needs_total = removes_for_size or has_pass_limit
        stored_bytes = self._ledger.retention.sum_stored_bytes() if needs_total else 0
        disk_excess = compute_disk_excess(disk, limits.high_watermark, limits.low_watermark)
        return RetentionGoal(
            before_ms=compute_cutoff_ms(limits.keep_days, self._retention_ms()),
            aged_max_bytes=int(self._pass_share * stored_bytes) if has_pass_limit else None,
            excess_bytes=max(0, stored_bytes - limits.max_bytes) if removes_for_size else 0,
            disk_excess_bytes=max(0, disk_excess - self._sum_refused_bytes()),
            only_delivered=limits.only_delivered,
            only_committed=limits.only_committed,
        )

    def _sum_refused_bytes(self) -> int:
        """Return the bytes of refused copies on the file system of the store. No study goes for them."""
        if not self._limits.high_watermark:
            return 0
        with contextlib.suppress(OSError):
            if os.stat(self._quarantine_dir).st_dev == os.stat(self._store.root).st_dev:
                return self._ledger.quarantine.sum_refused_bytes()
        return 0

    # --- remove

    def _collect_batches(self, report: RetentionReport) -> Iterator[list[StoredStudy]]:
        """Yield removable studies, as many at a time as fill a batch of files."""
        studies: list[StoredStudy] = []
        for decision in self.plan():
            if not decision.is_removable:
                report.held += 1
                report.held_size += decision.study.size
                continue
            studies.append(decision.study)
            if sum(study.instances for study in studies) >= BATCH:
                yield studies
                studies = []
        if studies:
            yield studies

    def _remove_studies(self, studies: Sequence[StoredStudy], report: RetentionReport) -> None:
        is_full = True
        while is_full and not self._stopping():
            with self._hold_removal_lock() as batch:
                files = self._ledger.retention.mark_removing(
                    studies,
                    BATCH,
                    self._now(),
                    only_delivered=self._limits.only_delivered,
                    awaited=self._awaited,
                )
                self._remove_files(batch, files)
            is_full = len(files) == BATCH
            report.instances += len(files)
            report.size += sum(file.size for file in files)
        if not is_full:
            report.studies += len(studies)

    def _finish_broken_run(self) -> None:
        """Remove the files that a dead remover had marked."""
        after = 0
        while not self._stopping() and self._ledger.retention.list_removing(1, after):
            with self._hold_removal_lock() as batch:
                files = self._ledger.retention.list_removing(BATCH, after)
                self._remove_files(batch, files)
            after = files[-1].id if files else after

    def _remove_files(self, batch: StoreBatch, files: Sequence[RemovableFile]) -> None:
        """Remove marked files, and mark them as removed. A file that stays keeps its first mark."""
        if not files:
            return
        # If a remover died here before, the key of its file may belong to a new instance by now.
        claimed = self._ledger.instances.find_claimed_keys(file.store_key for file in files)
        removal, removed = FileRemoval(self._store.root), []
        now = self._now() + self._store.measure_clock_offset_ms(batch)
        for file in files:
            try:
                if file.store_key in claimed or removal.remove_file(file.store_key, file.stored_at, now):
                    removed.append(file.id)
            except (OSError, StoreError) as error:
                log.error("file_stays", error=str(error), remedy="see to the disk; it is tried again")
        self._store.announce_folder_removal(batch)
        try:
            removal.sync()
        except OSError as error:
            raise StoreAwayError(f"the store {self._store.root} fails: {error.strerror}") from error
        self._ledger.retention.mark_removed(removed)

    def _delete_old_rows(self, report: RetentionReport) -> None:
        before = compute_cutoff_ms(self._limits.ledger_keep_days, self._retention_ms())
        while before and not self._stopping():
            deleted = self._ledger.retention.delete_removed_rows(before)
            report.forgotten += deleted
            if deleted < CHUNK:
                return

    # --- locks

    @contextlib.contextmanager
    def _hold_removal_lock(self) -> Iterator[StoreBatch]:
        with self._store.open_batch() as batch:
            self._store.acquire_removal_lock(batch)
            yield batch

    @contextlib.contextmanager
    def _exclude_other_runs(self) -> Iterator[None]:
        """Hold the lock of retention runs. It excludes other processes on all hosts that share the store."""
        path = self._store.root / STAGING / "retain.lock"
        try:
            fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
        except OSError as error:
            cause = f"{path} cannot be opened: {error.strerror}"
            raise StoreAwayError(f"{cause}; mount the store, or have a persist worker make it") from error
        try:
            if not try_lock(fd):
                raise RetentionBusyError(f"another process removes from this store: it holds {path}")
            yield
        finally:
            os.close(fd)


class RetentionClock:
    """The time by which studies age, checked before each run. See `ingest.workers.retention.clock`."""

    def __init__(self, config: Config, ledger: Ledger) -> None:
        self._config = config
        self._ledger = ledger
        self._retention_ms = 0

    def retention_ms(self) -> int:
        """Return the time of the last check in Unix milliseconds; 0 while the wall clock is not plausible."""
        return self._retention_ms

    def check(self, *, accept: bool = False) -> int:
        """Check the wall clock. Returns by how many milliseconds the clock is later than plausible.

        Args:
            accept: Whether a person has confirmed the wall clock.

        Raises:
            LedgerError: The ledger is away.
        """
        run_dir, now = self._config.run_dir, clock.read_clocks()
        jump_ms = 0 if accept else clock.measure_jump_ms(clock.read_mark(run_dir), now)
        if jump_ms:
            self._retention_ms = 0
            hours = jump_ms / 3_600_000
            raise_alarm(
                run_dir,
                CLOCK_ALARM,
                f"the clock is {hours:.0f} hours ahead of what is plausible; no study goes for its age",
                "correct the clock, or if it is right run `ingest retention --accept-clock`",
            )
            return jump_ms
        clock.write_mark(run_dir, now)
        clear_alarm(run_dir, CLOCK_ALARM)
        newest_ms = None if accept else self._ledger.retention.find_newest_stored_ms()
        self._retention_ms = clock.compute_retention_ms(now.wall_ms, newest_ms)
        return 0


def _publish_store_capacity(config: Config, remover: Remover, stop: threading.Event) -> None:
    """Tell the listeners whether the store may take more, unless a successor of this process does that."""
    cause = remover.describe_full_store()
    if stop.is_set():
        return
    try:
        store_capacity.write_store_full(config.run_dir, cause)
    except OSError as error:
        log.error("word_not_left", error=str(error), remedy=f"let this user write {config.run_dir}")


def _log_report(report: RetentionReport) -> None:
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


def _sleep_until_stopped(seconds: float, stopping: Callable[[], bool]) -> None:
    # A signal handler sets the event. If it interrupted `Event.wait`, `Event.set` would wait for the lock
    # that the interrupted call holds. Short sleeps hold no lock.
    until = time.monotonic() + seconds
    while not stopping() and time.monotonic() < until:
        time.sleep(_SLICE_SECONDS)


def run(config: Config, stop: threading.Event) -> None:
    """Run retention again and again until `stop` is set. The current batch is finished first.

    Raises:
        BootError: The configuration cannot be used.
    """
    try:
        ledger = Ledger(config.ledger_url)
    except LedgerError as error:
        raise BootError(str(error)) from error
    backoff = Backoff(stop, "retention_away", "nothing is removed meanwhile")
    retention_clock = RetentionClock(config, ledger)
    remover = Remover(
        config,
        ledger,
        stop.is_set,
        retention_ms=retention_clock.retention_ms,
        pass_share=config.retention.max_pass_share,
    )
    with contextlib.closing(ledger), contextlib.suppress(StoppedError):
        retry_with_backoff(backoff, ledger.migrate)
        host = HostRecorder(config, ledger, "retain")
        while not stop.is_set():
            host.record_if_due()
            began = time.monotonic()
            try:
                _publish_store_capacity(config, remover, stop)
                retention_clock.check()
                report = remover.run()
                if report.instances:
                    _publish_store_capacity(config, remover, stop)
                _log_report(report)
                backoff.reset()
            except (LedgerError, StoreError, OSError, MemoryError) as error:
                # INVARIANT 8: only a wrong configuration stops the node.
                backoff.wait_after(error)
            except RetentionBusyError:
                log.debug("another_removes")
            run_seconds = time.monotonic() - began
            _sleep_until_stopped(max(config.retention.check_seconds, PAUSE_FACTOR * run_seconds), stop.is_set)


def main(config: Config, stop: threading.Event) -> int:
    """Run the child process until SIGTERM or SIGINT, and return its exit code.

    Raises:
        BootError: The configuration cannot be used.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    run(config, stop)
    return 0


def _list_committing(config: Config) -> list[str]:
    """Return the names in `deliveries.destination` whose instances a destination is asked to commit.

    A row of a group has the name of the group. A row of a member without `commitment` waits for nothing.
    """
    members = {destination.name for destination in config.destinations if destination.commitment}
    return sorted(members | {group.name for group in config.groups if members & set(group.members)})
