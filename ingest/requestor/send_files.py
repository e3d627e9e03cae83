"""Send files and folders to a remote over one or more associations, and report each result."""

import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ingest import threads
from ingest.dicom import part10
from ingest.dicom.dimse import Status
from ingest.dicom.statuses import find_meaning
from ingest.dicom.uids import is_valid_uid
from ingest.errors import AssociationError, Cause, IngestError, PeerError, StoreError
from ingest.ext.header import scan
from ingest.requestor.store_scu import (
    Context,
    Remote,
    StoreSCU,
    Timeouts,
    make_proposals,
    plan_associations,
)

SOP_CLASS_UID: Final = 0x00080016
SOP_INSTANCE_UID: Final = 0x00080018
HEADER_BYTES: Final = 1 << 14
MEDIA_STORAGE_DIRECTORY: Final = "1.2.840.10008.1.3.10"
"""SOP class of a DICOMDIR (PS3.10 8.6). It belongs to its folder and is not stored."""

OPEN_FAILURES_MAX: Final = 2
"""Failures to open an association in a row after which a job gives up."""

BREAKS_MAX: Final = 3
"""Associations that may break in a row before a job gives up."""

ATTEMPTS_MAX: Final = 2
"""Attempts at one file. After the second broken association the file itself is taken for the cause."""

NOT_SENT: Final = "not sent: interrupted"
SENT_IN_PART: Final = "interrupted while it was sent: the remote may have it"
INTERRUPT_SECONDS: Final = 3.0
"""Time to wait for files in flight after Ctrl-C. Each wait of a job notices the interrupt twice a second."""


@dataclass(slots=True)
class SendableFile:
    """A Part 10 file to send.

    Attributes:
        offset: Position of the data set in the file.
        size: Length of the data set in bytes.
        attempts: Number of broken associations on which it was sent.
    """

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    offset: int
    size: int
    attempts: int = 0

    @property
    def context(self) -> Context:
        """The presentation context for this file."""
        return self.sop_class_uid, self.transfer_syntax_uid


@dataclass(frozen=True, slots=True)
class FileResult:
    """Result of one file.

    Attributes:
        status: DIMSE status of the response; None without a response.
        error: Reason why the file is not stored, or remark of a warning; empty after a plain success.
        cause: The failure of the association, if that is the reason and this side knows it.
    """

    path: Path
    sop_instance_uid: str = ""
    size: int = 0
    status: int | None = None
    error: str = ""
    cause: Cause | None = None

    @property
    def is_stored(self) -> bool:
        """Whether the remote has the instance: success, a warning, or 0111H (it had the instance before)."""
        return self.status is not None and find_meaning(self.status).is_stored


class UnreadableFile(FileResult):
    """A file that cannot be examined because of a disk or its permissions."""


@dataclass(frozen=True, slots=True)
class SendProgress:
    """Progress of `send_files`: finished files and bytes, their totals, and the last result."""

    files: int
    files_total: int
    bytes: int
    bytes_total: int
    last: FileResult | None


@dataclass(frozen=True, slots=True)
class SendSummary:
    """Results of `send_files`.

    Attributes:
        results: One for each file that was named, or that was found in a folder and is Part 10 or unreadable.
        skipped_files: Files in folders that are not to be stored, each with the reason.
        seconds: Duration of sending.
        is_interrupted: Whether Ctrl-C ended it early.
        refusal: The last failure, if no association was ever established.
    """

    results: tuple[FileResult, ...]
    skipped_files: tuple[FileResult, ...]
    seconds: float
    is_interrupted: bool = False
    refusal: AssociationError | None = None

    @property
    def stored_files(self) -> list[FileResult]:
        """Results of the files that the remote has."""
        return [result for result in self.results if result.is_stored]

    @property
    def failed_files(self) -> list[FileResult]:
        """Results of the files that the remote does not have."""
        return [result for result in self.results if not result.is_stored]

    @property
    def warned_files(self) -> list[FileResult]:
        """Results of the files that the remote stored with a warning."""
        return [result for result in self.results if result.is_stored and result.status != Status.SUCCESS]

    @property
    def stored_bytes(self) -> int:
        """Total length of the data sets that the remote has."""
        return sum(result.size for result in self.stored_files)


def send_files(
    remote: Remote,
    paths: Sequence[Path],
    jobs: int = 1,
    on_progress: Callable[[SendProgress], None] | None = None,
    *,
    timeouts: Timeouts | None = None,
) -> SendSummary:
    """Send files, and all Part 10 files in folders, each in the transfer syntax that it has.

    Errors of files and of the remote are results and are not raised. After a KeyboardInterrupt, files without
    a response have failed. A second KeyboardInterrupt is passed on.

    Args:
        remote: The acceptor.
        paths: Files and folders.
        jobs: Number of concurrent associations.
        on_progress: Called once at the start and after each file, never by two threads at once.
        timeouts: Deadlines of the associations.
    """
    try:
        found, unusable, skipped = find_files(paths)
    except KeyboardInterrupt:
        return SendSummary((), (), 0.0, is_interrupted=True)
    batch = _SendBatch(remote, timeouts or Timeouts(), found, unusable, on_progress)
    started = time.monotonic()
    batch.start_jobs(max(1, jobs))
    is_interrupted = False
    try:
        # Not Thread.join: CPython 3.11 takes a thread for ended if a signal interrupts the join.
        batch.ended.wait()
    except KeyboardInterrupt:
        is_interrupted = True
        batch.interrupt()
        batch.ended.wait(INTERRUPT_SECONDS)
    except BaseException:
        batch.stop.set()
        raise
    batch.fail_unsent_files()
    seconds = time.monotonic() - started
    return SendSummary(tuple(batch.results), tuple(skipped), seconds, is_interrupted, batch.refusal)


def find_files(paths: Sequence[Path]) -> tuple[list[SendableFile], list[FileResult], list[FileResult]]:
    """Find the files to send, and return them, the unusable files and the skipped files of folders.

    A file in a folder that cannot be read may be an instance. It counts as unusable, because a skipped
    instance would be lost without notice.
    """
    found: list[SendableFile] = []
    unusable: list[FileResult] = []
    skipped: list[FileResult] = []
    for path in paths:
        if not path.is_dir():
            file = _examine_file(path)
            if isinstance(file, SendableFile):
                found.append(file)
            else:
                unusable.append(file)
            continue
        for entry in _walk_folder(path, unusable):
            file = _examine_file(entry)
            if isinstance(file, UnreadableFile):
                unusable.append(file)
            elif isinstance(file, FileResult):
                skipped.append(file)
            elif file.sop_class_uid == MEDIA_STORAGE_DIRECTORY:
                skipped.append(FileResult(entry, error="is a DICOMDIR, which belongs to its folder"))
            else:
                found.append(file)
    return found, unusable, skipped


def _walk_folder(folder: Path, unreadable: list[FileResult]) -> Iterator[Path]:
    """Yield all files below a folder. Folders that cannot be read are added to `unreadable`."""

    def add_unreadable(error: OSError) -> None:
        path = Path(os.fsdecode(error.filename or folder))
        unreadable.append(FileResult(path, error=f"is a folder that cannot be read: {error.strerror}"))

    for parent, folders, files in os.walk(folder, onerror=add_unreadable):
        folders.sort()
        yield from (Path(parent, name) for name in sorted(files))


def _examine_file(path: Path) -> SendableFile | FileResult:
    """Return the file as one to send, or a result with the reason why not."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return FileResult(path, error="is no regular file")
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        return UnreadableFile(path, error=f"cannot be opened: {getattr(error, 'strerror', None) or error}")
    try:
        meta, offset = part10.read_file_meta(fd)
        size = os.fstat(fd).st_size - offset
        sop_class, sop_instance = _read_sop_uids(fd, meta, offset)
    except OSError as error:
        return UnreadableFile(path, error=f"cannot be read: {error.strerror or error}")
    except (PeerError, IngestError) as error:
        return FileResult(path, error=f"is no DICOM Part 10 file: {error}")
    finally:
        os.close(fd)
    if not (sop_class and sop_instance):
        return FileResult(path, error="has no SOP class or SOP instance UID")
    return SendableFile(path, sop_class, sop_instance, meta.transfer_syntax_uid, offset, size)


def _read_sop_uids(fd: int, meta: part10.FileMeta, offset: int) -> tuple[str, str]:
    """Read SOP class and instance UID from the data set, because a remote compares the command set with it.

    A UID that is missing in the first part of the data set, or is not valid, is taken from the File Meta.
    """
    data = os.pread(fd, HEADER_BYTES, offset)
    try:
        found = scan(
            data, meta.transfer_syntax_uid, (SOP_CLASS_UID, SOP_INSTANCE_UID), len(data) < HEADER_BYTES
        )
    except PeerError:
        found = None
    values = [
        (found or {}).get(tag, b"").decode("ascii", "replace").strip("\0 ")
        for tag in (SOP_CLASS_UID, SOP_INSTANCE_UID)
    ]
    sop_class, sop_instance = (value if is_valid_uid(value) else "" for value in values)
    return sop_class or meta.sop_class_uid, sop_instance or meta.sop_instance_uid


class _SendBatch:
    """The files, results and settings that the jobs of one `send_files` share."""

    def __init__(
        self,
        remote: Remote,
        timeouts: Timeouts,
        found: Sequence[SendableFile],
        unusable: Sequence[FileResult],
        on_progress: Callable[[SendProgress], None] | None,
    ) -> None:
        self.results: list[FileResult] = []
        self.stop = threading.Event()
        self.ended = threading.Event()
        self.refusal: AssociationError | None = None
        self._was_established = False
        self._running_jobs = 0
        self._remote = remote
        self._timeouts = timeouts
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._last_failure = "the remote could not be used"
        self._last_cause: Cause | None = None
        self._files_total = len(found) + len(unusable)
        self._bytes_total = sum(file.size for file in found)
        self._bytes_done = 0
        self._in_flight: list[SendableFile] = []
        self._is_closed = False
        self._groups: list[tuple[tuple[Context, ...], deque[SendableFile]]] = []
        group_of_context: dict[Context, deque[SendableFile]] = {}
        for contexts in plan_associations(file.context for file in found):
            group: deque[SendableFile] = deque()
            self._groups.append((contexts, group))
            group_of_context.update(dict.fromkeys(contexts, group))
        for file in found:
            group_of_context[file.context].append(file)
        self._report_progress(None)
        for result in unusable:
            self._add_result(result)

    def start_jobs(self, count: int) -> None:
        """Start the threads of the jobs. `ended` is set when the last one has ended."""
        self._running_jobs = count
        for number in range(count):
            threads.start_task(f"send-{number}", self._run_job)

    def _run_job(self) -> None:
        """Send files over one association at a time, until none is left or the remote fails repeatedly."""
        try:
            for contexts, waiting in self._groups:
                if not self._send_group(contexts, waiting):
                    return
        finally:
            with self._lock:
                self._running_jobs -= 1
                if not self._running_jobs:
                    self.ended.set()

    def interrupt(self) -> None:
        """Stop all jobs: break off the files in flight, and start no others."""
        self._last_failure = NOT_SENT
        self.stop.set()

    def fail_unsent_files(self) -> None:
        """Add a failure for each file that has no result yet, and accept no further results.

        After Ctrl-C a slow job may still wait for the remote. Its file is counted as well: no file of a batch
        is missing in the summary.
        """
        for _, waiting in self._groups:
            while waiting:
                self._add_failure(waiting.popleft(), self._last_failure, self._last_cause)
        with self._lock:
            for file in self._in_flight:
                self._append(_failure(file, SENT_IN_PART))
            self._is_closed = True

    def _send_group(self, contexts: tuple[Context, ...], waiting: deque[SendableFile]) -> bool:
        association: StoreSCU | None = None
        open_failures = breaks = 0
        try:
            while open_failures < OPEN_FAILURES_MAX and breaks < BREAKS_MAX and not self.stop.is_set():
                if not waiting:
                    return True
                try:
                    if association is None or not association.is_established:
                        association = self._open_association(contexts)
                    open_failures = 0
                except AssociationError as error:
                    if not self.stop.is_set():
                        self._note_refusal(error)
                    open_failures += OPEN_FAILURES_MAX if error.permanent else 1
                    continue
                breaks = 0 if self._send_next_file(association, waiting) else breaks + 1
            return False
        finally:
            if association is not None:
                association.release()

    def _open_association(self, contexts: tuple[Context, ...]) -> StoreSCU:
        association = StoreSCU.open(
            self._remote,
            make_proposals(contexts),
            timeouts=self._timeouts,
            on_tick=self._raise_if_stopped,
        )
        self._was_established, self.refusal = True, None
        return association

    def _note_refusal(self, error: AssociationError) -> None:
        self._last_failure, self._last_cause = str(error), error.cause
        if not self._was_established:
            self.refusal = error

    def _send_next_file(self, association: StoreSCU, waiting: deque[SendableFile]) -> bool:
        """Send the next file if one is left. Returns False if the association broke."""
        try:
            with self._lock:
                file = waiting.popleft()
                self._in_flight.append(file)
        except IndexError:  # Another job has sent it.
            return True
        try:
            self._add_result(_store_file(association, file), file)
        except AssociationError as error:
            if self.stop.is_set():
                self._add_failure(file, SENT_IN_PART)
                return False
            self._last_failure, self._last_cause = str(error), error.cause
            file.attempts += 1
            if file.attempts < ATTEMPTS_MAX:
                with self._lock:
                    self._in_flight.remove(file)
                    waiting.append(file)
            else:
                self._add_failure(file, str(error), error.cause)
            return False
        return True

    def _add_failure(self, file: SendableFile, error: str, cause: Cause | None = None) -> None:
        self._add_result(_failure(file, error, cause), file)

    def _add_result(self, result: FileResult, file: SendableFile | None = None) -> None:
        with self._lock:
            if self._is_closed:
                return
            if file in self._in_flight:
                self._in_flight.remove(file)
            self._append(result)

    def _append(self, result: FileResult) -> None:
        self.results.append(result)
        self._bytes_done += result.size
        self._report_progress(result)

    def _report_progress(self, last: FileResult | None) -> None:
        if self._on_progress is not None:
            self._on_progress(
                SendProgress(len(self.results), self._files_total, self._bytes_done, self._bytes_total, last)
            )

    def _raise_if_stopped(self) -> None:
        if self.stop.is_set():
            raise AssociationError("stopped")


def _failure(file: SendableFile, error: str, cause: Cause | None = None) -> FileResult:
    return FileResult(file.path, file.sop_instance_uid, file.size, error=error, cause=cause)


def _store_file(association: StoreSCU, file: SendableFile) -> FileResult:
    def make_result(status: int | None, error: str) -> FileResult:
        return FileResult(file.path, file.sop_instance_uid, file.size, status, error)

    if association.accepted_context_id(*file.context) is None:
        said = f"{association.remote} accepts no {file.sop_class_uid} in {file.transfer_syntax_uid}"
        return make_result(None, said)
    try:
        response = association.store_instance(
            file.path,
            file.offset,
            file.size,
            sop_class=file.sop_class_uid,
            sop_instance=file.sop_instance_uid,
            transfer_syntax=file.transfer_syntax_uid,
        )
    except StoreError as error:
        return make_result(None, str(error))
    if response.status == Status.SUCCESS:
        return make_result(response.status, "")
    comment = f": {response.error_comment}" if response.error_comment else ""
    return make_result(response.status, f"answered {response.status:04X}H{comment}")
