"""Files and folders to a remote, over as many associations as asked for; returns what happened."""

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
from ingest.dicom.statuses import meaning_of
from ingest.dicom.uids import is_valid_uid
from ingest.errors import AssociationError, IngestError, PeerError, StoreError
from ingest.ext.header import scan
from ingest.requestor.store_scu import Association, Context, Remote, Timeouts, plan, proposals

SOP_CLASS_UID: Final = 0x00080016
SOP_INSTANCE_UID: Final = 0x00080018
HEADER_BYTES: Final = 1 << 14
MEDIA_STORAGE_DIRECTORY: Final = "1.2.840.10008.1.3.10"
"""SOP class of a DICOMDIR (PS3.10 8.6), which belongs to its folder and is not stored."""

OPEN_FAILURES_MAX: Final = 2
BROKEN_MAX: Final = 3
"""Associations that may break in a row before a job takes the remote for broken."""
INTERRUPTED: Final = "not sent: interrupted"
BROKEN_OFF: Final = "interrupted while it was sent: the remote may have it"
INTERRUPTED_SECONDS: Final = 3.0
"""How long files under way are waited for after Ctrl-C; each wait of the sender looks twice a second."""

ATTEMPTS_MAX: Final = 2
"""An association that dies takes a file with it once; the second time the file is to blame."""


@dataclass(slots=True)
class Found:
    """A Part 10 file to send."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    offset: int
    size: int
    attempts: int = 0

    @property
    def context(self) -> Context:
        """The presentation context that it needs."""
        return self.sop_class_uid, self.transfer_syntax_uid


@dataclass(frozen=True, slots=True)
class FileResult:
    """What became of one file.

    Attributes:
        status: The DIMSE status that answered; None where none did.
        error: Why it is not stored, or the remark of a warning; empty after a plain success.
    """

    path: Path
    sop_instance_uid: str = ""
    size: int = 0
    status: int | None = None
    error: str = ""

    @property
    def stored(self) -> bool:
        """Whether the remote has it: success, a warning, or 0111H, which says that it had it already."""
        return self.status is not None and meaning_of(self.status).is_stored


class Unreadable(FileResult):
    """A file that a disk or its permissions keep us from looking at."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far `send_files` is: files and bytes done, of all, and the file that was last."""

    files: int
    files_total: int
    bytes: int
    bytes_total: int
    last: FileResult | None


@dataclass(frozen=True, slots=True)
class SendSummary:
    """What became of everything.

    Attributes:
        results: One for each file that was named, or found in a folder and is Part 10 or cannot be read.
        skipped_files: Files in folders that are not to be stored, each with the reason.
        seconds: How long sending took.
        interrupted: Whether it was ended early, by Ctrl-C.
    """

    results: tuple[FileResult, ...]
    skipped_files: tuple[FileResult, ...]
    seconds: float
    interrupted: bool = False

    @property
    def skipped(self) -> int:
        """How many files in folders are not to be stored."""
        return len(self.skipped_files)

    @property
    def stored(self) -> list[FileResult]:
        """What the remote has."""
        return [result for result in self.results if result.stored]

    @property
    def failed(self) -> list[FileResult]:
        """What it has not."""
        return [result for result in self.results if not result.stored]

    @property
    def warnings(self) -> list[FileResult]:
        """What it has, with a remark."""
        return [result for result in self.results if result.stored and result.status != Status.SUCCESS]

    @property
    def bytes(self) -> int:
        """Bytes of the data sets that the remote has."""
        return sum(result.size for result in self.stored)


def send_files(
    remote: Remote,
    paths: Sequence[Path],
    jobs: int = 1,
    on_progress: Callable[[Progress], None] | None = None,
    *,
    timeouts: Timeouts | None = None,
) -> SendSummary:
    """C-STORE files, and all Part 10 files in folders, each in the transfer syntax that it has.

    Args:
        remote: Where to.
        paths: Files and folders.
        jobs: Associations at a time.
        on_progress: Called once at the start and after each file, never by two threads at once.
        timeouts: Deadlines of the associations.

    Returns:
        A result for every file; nothing that a file or the remote does is raised. After a KeyboardInterrupt
        files without an answer have failed. A second one passes.
    """
    try:
        found, unusable, skipped = collect(paths)
    except KeyboardInterrupt:
        return SendSummary((), (), 0.0, interrupted=True)
    sending = _Sending(remote, timeouts or Timeouts(), found, unusable, on_progress)
    started = time.monotonic()
    running = [threads.once(f"send-{n}", sending.job) for n in range(max(1, jobs))]
    interrupted = False
    try:
        for thread in running:
            thread.join()
    except KeyboardInterrupt:
        interrupted = True
        sending.interrupt()
        deadline = time.monotonic() + INTERRUPTED_SECONDS
        for thread in running:
            thread.join(max(0.0, deadline - time.monotonic()))
    except BaseException:
        sending.stop.set()
        raise
    sending.give_up_rest()
    seconds = time.monotonic() - started
    return SendSummary(tuple(sending.results), tuple(skipped), seconds, interrupted)


def collect(paths: Sequence[Path]) -> tuple[list[Found], list[FileResult], list[FileResult]]:
    """What can be sent; what cannot though it was named, or could not be read; what folders hold beside.

    A file in a folder that cannot be read may be an instance: to pass over it would lose it in silence.
    """
    found: list[Found] = []
    unusable: list[FileResult] = []
    skipped: list[FileResult] = []
    for path in paths:
        if not path.is_dir():
            one = _examine(path)
            (found if isinstance(one, Found) else unusable).append(one)  # type: ignore[arg-type]  # each to its own
            continue
        for file in _walk(path, unusable):
            one = _examine(file)
            if isinstance(one, Unreadable):
                unusable.append(one)
            elif isinstance(one, FileResult):
                skipped.append(one)
            elif one.sop_class_uid == MEDIA_STORAGE_DIRECTORY:
                skipped.append(FileResult(file, error="is a DICOMDIR, which belongs to its folder"))
            else:
                found.append(one)
    return found, unusable, skipped


def _walk(folder: Path, unreadable: list[FileResult]) -> Iterator[Path]:
    """All files below a folder; folders that cannot be read are added to `unreadable`."""

    def failed(error: OSError) -> None:
        place = Path(os.fsdecode(error.filename or folder))
        unreadable.append(FileResult(place, error=f"is a folder that cannot be read: {error.strerror}"))

    for place, folders, files in os.walk(folder, onerror=failed):
        folders.sort()
        yield from (Path(place, name) for name in sorted(files))


def _examine(path: Path) -> Found | FileResult:
    """The file as one to send, or why it is none."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return FileResult(path, error="is no regular file")
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        return Unreadable(path, error=f"cannot be opened: {getattr(error, 'strerror', None) or error}")
    try:
        meta, offset = part10.read_file_meta(fd)
        size = os.fstat(fd).st_size - offset
        sop_class, sop_instance = _sop_uids(fd, meta, offset)
    except OSError as error:
        return Unreadable(path, error=f"cannot be read: {error.strerror or error}")
    except (PeerError, IngestError) as error:
        return FileResult(path, error=f"is no DICOM Part 10 file: {error}")
    finally:
        os.close(fd)
    if not (sop_class and sop_instance):
        return FileResult(path, error="has no SOP class or SOP instance UID")
    return Found(path, sop_class, sop_instance, meta.transfer_syntax_uid, offset, size)


def _sop_uids(fd: int, meta: part10.FileMeta, offset: int) -> tuple[str, str]:
    """SOP class and instance UID as the data set has them: a remote compares the command with these.

    What its first part does not tell, or not as a UID, is taken from the File Meta.
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


class _Sending:
    """What the jobs of one `send_files` share."""

    def __init__(
        self,
        remote: Remote,
        timeouts: Timeouts,
        found: Sequence[Found],
        unusable: Sequence[FileResult],
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self.results: list[FileResult] = []
        self.stop = threading.Event()
        self._remote = remote
        self._timeouts = timeouts
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._reason = "the remote could not be used"
        self._files_total = len(found) + len(unusable)
        self._bytes_total = sum(file.size for file in found)
        self._bytes_done = 0
        self._groups: list[tuple[tuple[Context, ...], deque[Found]]] = []
        by_context = {}
        for contexts in plan(file.context for file in found):
            group: deque[Found] = deque()
            self._groups.append((contexts, group))
            by_context.update(dict.fromkeys(contexts, group))
        for file in found:
            by_context[file.context].append(file)
        self._progress(None)
        for result in unusable:
            self._done(result)

    def job(self) -> None:
        """One association at a time, until all is sent or the remote is taken for broken."""
        for contexts, waiting in self._groups:
            if not self._send_group(contexts, waiting):
                return

    def interrupt(self) -> None:
        """End early: files under way are broken off, and none is begun any more."""
        self._reason = INTERRUPTED
        self.stop.set()

    def give_up_rest(self) -> None:
        """Whatever no job wanted any more has failed for the reason that the last one had."""
        for _, waiting in self._groups:
            while waiting:
                file = waiting.popleft()
                self._done(FileResult(file.path, file.sop_instance_uid, file.size, error=self._reason))

    def _send_group(self, contexts: tuple[Context, ...], waiting: deque[Found]) -> bool:
        association: Association | None = None
        not_opened = broken = 0
        try:
            while not_opened < OPEN_FAILURES_MAX and broken < BROKEN_MAX and not self.stop.is_set():
                if not waiting:
                    return True
                try:
                    if association is None or not association.alive:
                        association = self._open(contexts)
                    not_opened = 0
                except AssociationError as error:
                    if not self.stop.is_set():
                        self._reason = str(error)
                    not_opened += OPEN_FAILURES_MAX if error.permanent else 1
                    continue
                broken = 0 if self._send_one(association, waiting) else broken + 1
            return False
        finally:
            if association is not None:
                association.release()

    def _open(self, contexts: tuple[Context, ...]) -> Association:
        return Association.open(
            self._remote, proposals(contexts), timeouts=self._timeouts, on_tick=self._look_for_stop
        )

    def _send_one(self, association: Association, waiting: deque[Found]) -> bool:
        """Send the next file, if there still is one; False if the association broke."""
        try:
            file = waiting.popleft()
        except IndexError:
            return True
        try:
            self._done(_store(association, file))
        except AssociationError as error:
            if self.stop.is_set():
                self._done(FileResult(file.path, file.sop_instance_uid, file.size, error=BROKEN_OFF))
                return False
            self._reason = str(error)
            file.attempts += 1
            if file.attempts < ATTEMPTS_MAX:
                waiting.append(file)
            else:
                self._done(FileResult(file.path, file.sop_instance_uid, file.size, error=str(error)))
            return False
        return True

    def _done(self, result: FileResult) -> None:
        with self._lock:
            self.results.append(result)
            self._bytes_done += result.size
            self._progress(result)

    def _progress(self, last: FileResult | None) -> None:
        if self._on_progress is not None:
            self._on_progress(
                Progress(len(self.results), self._files_total, self._bytes_done, self._bytes_total, last)
            )

    def _look_for_stop(self) -> None:
        if self.stop.is_set():
            raise AssociationError("stopped")


def _store(association: Association, file: Found) -> FileResult:
    def result(status: int | None, error: str) -> FileResult:
        return FileResult(file.path, file.sop_instance_uid, file.size, status, error)

    if association.accepted(*file.context) is None:
        return result(
            None, f"{association.remote} accepts no {file.sop_class_uid} in {file.transfer_syntax_uid}"
        )
    try:
        response = association.store(
            file.path,
            file.offset,
            file.size,
            sop_class=file.sop_class_uid,
            sop_instance=file.sop_instance_uid,
            transfer_syntax=file.transfer_syntax_uid,
        )
    except StoreError as error:
        return result(None, str(error))
    if response.status == Status.SUCCESS:
        return result(response.status, "")
    comment = f": {response.error_comment}" if response.error_comment else ""
    return result(response.status, f"answered {response.status:04X}H{comment}")
