"""The store: the interface of all stores, and the store in a file system.

A file is durable after the `sync` of its batch. It gets its store key by link(2), or by renameat2(2) with
RENAME_NOREPLACE. Neither replaces a file: of several workers with one key, one succeeds and the others find
the key taken. A file is linked through its open descriptor, because its path may belong to another file by
then.
"""

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from ingest.dicom.part10 import read_file_meta
from ingest.errors import LedgerError, StoreAwayError, StoreError, StoreMissingError
from ingest.filesystem.calls import NO_LINK, find_mount, read_clock_ns, sync_folder_fd
from ingest.filesystem.folder_identity import KnownFolder, ensure_id, read_id, require_store
from ingest.filesystem.locks import try_lock
from ingest.workers.fault_attribution import ERRORS_OF_NAMES
from ingest.workers.store.folders import BatchFolders
from ingest.workers.store.keys import STAGING, split_key
from ingest.workers.store.staging import FILE_MODE, StagingFolder, is_name_of

LOCK_SECONDS: Final = 10.0
"""How long a worker waits for the removal lock of another worker."""

NEW_FOLDER: Final = KnownFolder()
"""The ledger's knowledge of a store that was never used."""

CLEAR_SECONDS: Final = 600.0
"""Seconds between two searches for staging folders of dead workers; less than `staging.YOUNG_SECONDS`."""

# link(2) cannot give the file another name. Either the file system has no hard links, is another one or
# forbids the link, or another worker was faster and has removed the first name.
_NO_LINK: Final = NO_LINK | {errno.EXDEV, errno.EACCES, errno.ENOENT}


@dataclass(frozen=True, slots=True)
class SourceFile:
    """An open Part 10 file to link or to copy.

    Attributes:
        path: Its name, for logs only. The open file is linked.
        fd: Its descriptor, which the caller closes.
        size: Its bytes.
        device, inode: Its numbers of fstat(2).
        synced: Whether its bytes are on stable storage.
    """

    path: str
    fd: int
    size: int
    device: int
    inode: int
    synced: bool

    @classmethod
    def of(cls, path: str, fd: int, *, synced: bool) -> "SourceFile":
        """Describe the open file `fd` with the name `path`."""
        status = os.fstat(fd)
        return cls(path, fd, status.st_size, status.st_dev, status.st_ino, synced)


@dataclass(slots=True)
class StoreBatch:
    """Files that become durable together.

    Attributes:
        folders: The folders of their store keys.
        lock: Descriptor of the removal lock while this batch holds it.
    """

    folders: BatchFolders
    lock: int | None = None


class SharedLock(Protocol):
    """A lock that all workers of one ledger share, on any host."""

    def acquire(self) -> bool:
        """Acquire the lock without waiting; False while another process holds it.

        Raises:
            LedgerError: The ledger is away.
        """

    def is_held(self) -> bool:
        """Return whether this process holds the lock. The lock ends with the database connection.

        Raises the errors of `acquire`.
        """

    def release(self) -> None:
        """Release the lock."""


class Store(Protocol):
    """A tree of instances on a file system, each under a store key: a relative path with "/".

    The removal lock excludes all other processes from replacing and removing files. New files need no lock.

    Methods raise StoreAwayError while the store is full, failing or missing, and StoreError if it cannot
    keep a file under its key.
    """

    def open_batch(self) -> contextlib.AbstractContextManager[StoreBatch]:
        """Start a batch. Files that were not synced at its end may be lost with the power."""

    def put(self, batch: StoreBatch, source: SourceFile, key: str) -> bool:
        """Keep a file under a key; False if the key is taken, which `sync` then makes durable too."""

    def replace(self, batch: StoreBatch, source: SourceFile, key: str) -> None:
        """Keep a file under a key in place of another one, in one step."""

    def remove(self, batch: StoreBatch, key: str) -> None:
        """Remove the file of a key, if it exists."""

    def acquire_removal_lock(self, batch: StoreBatch) -> None:
        """Acquire the removal lock, until `release_removal_lock` or the end of the batch."""

    def release_removal_lock(self, batch: StoreBatch) -> None:
        """Release the removal lock, if the batch holds it."""

    def sync(self, batch: StoreBatch) -> None:
        """Make durable all files of the batch so far."""

    def open_file(self, key: str) -> int:
        """Open a file for reading. The caller closes the descriptor.

        Raises:
            FileNotFoundError: The store has no file under this key.
        """

    def read_size(self, key: str) -> int:
        """Return the size of a file in bytes. Raises the errors of `open_file`."""

    def read_change_ms(self, key: str) -> int:
        """Return the ctime of a file in Unix milliseconds: when it last got or lost a name.

        Raises the errors of `open_file`.
        """

    def measure_clock_offset_ms(self, batch: StoreBatch) -> int:
        """Return by how much the clock of `read_change_ms` is ahead of ours. Needs the removal lock."""

    def compute_digest(self, key: str) -> str:
        """Return the SHA-256 of the data set in hexadecimal.

        Raises:
            FileNotFoundError: The store has no file under this key.
            PeerError: The file is no DICOM file.
        """


class FileStore:
    """A store in a folder of a file system."""

    def __init__(
        self,
        root: Path,
        *,
        durable: bool = True,
        progress: Callable[[], None] = lambda: None,
        shared_lock: SharedLock | None = None,
    ) -> None:
        """Describe the store. Reading needs no more; writing needs `prepare` too.

        Args:
            root: The folder.
            durable: Whether `sync` waits for the disk (`[receive] durability = "fsync"`).
            progress: Called often while a large file is copied.
            shared_lock: A second lock for hosts whose file locks do not reach each other.
        """
        self.root = root
        self._durable = durable
        self._progress = progress
        self._shared_lock = shared_lock
        self._clear_at = 0.0
        self._id = ""
        self._durable_names: set[tuple[int, int]] = set()
        self._announced_ns = 0
        self._prepared: StagingFolder | None = None

    def prepare(self, known: KnownFolder = NEW_FOLDER) -> str:
        """Create the store if it is new, create a staging folder, and clear those of dead workers.

        Args:
            known: The ledger's knowledge of the store.

        Returns:
            The id of the store.

        Raises:
            StoreMissingError: The folder is not the one that the ledger knows.
            StoreAwayError: The folder cannot be created or written.
        """
        with self._translate_errors():
            # INVARIANT 13: nothing replaces a folder that is not mounted.
            require_store(self.root, known)
            _create_root(self.root)
            self._prepared = StagingFolder(self.root / STAGING)
            try:
                self._id = ensure_id(self.root)
            except BaseException:
                self.close()
                raise
        self._clear_at = time.monotonic() + CLEAR_SECONDS
        return self._id

    def close(self) -> None:
        """Remove the staging folder."""
        if self._prepared is not None:
            self._prepared.close()
            self._prepared = None

    def retry_removals(self) -> None:
        """Remove temporary files that could not be removed before."""
        if self._prepared is not None:
            self._prepared.retry_removals()

    @property
    def _staging(self) -> StagingFolder:
        if self._prepared is None:
            raise StoreError(f"the store {self.root} was opened for reading only")
        return self._prepared

    @contextlib.contextmanager
    def open_batch(self) -> Iterator[StoreBatch]:
        """See `Store.open_batch`."""
        with self._translate_errors():
            batch = StoreBatch(BatchFolders(self.root, self._durable_names))
            try:
                self._require_id()
            except BaseException:
                batch.folders.close()
                raise
        if self._prepared is not None and time.monotonic() > self._clear_at:
            self._clear_at = time.monotonic() + CLEAR_SECONDS
            self._prepared.clear_dead_folders()
        try:
            yield batch
        finally:
            batch.folders.close()
            self.release_removal_lock(batch)

    # --- write

    def put(self, batch: StoreBatch, source: SourceFile, key: str) -> bool:
        """See `Store.put`."""
        *parents, name = split_key(key)
        with self._translate_errors(key):
            try:
                try:
                    self._give_name(source, batch.folders.open_folder(parents), name)
                except FileNotFoundError:
                    # The remover removed the folder as empty after this batch had opened it.
                    self._give_name(source, batch.folders.reopen_folder(parents), name)
            except FileExistsError:
                return False
            return True

    def replace(self, batch: StoreBatch, source: SourceFile, key: str) -> None:
        """See `Store.replace`."""
        *parents, name = split_key(key)
        with self._translate_errors(key):
            folder = batch.folders.open_folder(parents)
            temporary = self._staging.make_name()
            self._give_name(source, self._staging.fd, temporary)
            linked = os.stat(temporary, dir_fd=self._staging.fd, follow_symlinks=False)
            os.rename(temporary, name, src_dir_fd=self._staging.fd, dst_dir_fd=folder)
            # If both are names of one file, rename(2) leaves both.
            self._staging.remove_file(temporary)
            if not is_name_of(name, folder, linked.st_dev, linked.st_ino):
                raise StoreAwayError(f"{key} was given to another file while it was replaced")

    def remove(self, batch: StoreBatch, key: str) -> None:
        """See `Store.remove`. Folders stay."""
        *parents, name = split_key(key)
        with self._translate_errors(key), contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=batch.folders.open_folder(parents))

    def sync(self, batch: StoreBatch) -> None:
        """See `Store.sync`."""
        self._require_lock(batch)
        if self._durable:
            with self._translate_errors():
                with contextlib.suppress(FileNotFoundError):
                    announced_ns = os.stat(self._lock_path).st_mtime_ns
                    if announced_ns != self._announced_ns:
                        self._durable_names.clear()
                        self._announced_ns = announced_ns
                # INVARIANT 1: names in the store are durable before the rows that depend on them.
                batch.folders.sync()

    def _require_id(self) -> None:
        """Require the store that was prepared, because it may have been unmounted since."""
        # INVARIANT 13: nothing replaces a folder that is not mounted.
        if self._id and read_id(self.root) != self._id:
            cause = f"{self.root} is not the store any more that this worker began with"
            raise StoreMissingError(f"{cause} ({find_mount(self.root)}); mount it")

    def _give_name(self, source: SourceFile, folder: int, name: str) -> None:
        """Link a file to a name, or copy it if that is not possible.

        Raises:
            FileExistsError: The name is taken.
        """
        if source.device == os.fstat(folder).st_dev:
            try:
                if self._durable and not source.synced:
                    os.fdatasync(source.fd)
                # proc(5): this path names the open file itself. Its own path may name another file by now.
                os.link(f"/proc/self/fd/{source.fd}", name, dst_dir_fd=folder, follow_symlinks=True)
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
            else:
                if not is_name_of(name, folder, source.device, source.inode):
                    # Another worker has replaced the file already, so the name counts as taken.
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
                return
        with contextlib.suppress(FileNotFoundError):
            os.stat(name, dir_fd=folder, follow_symlinks=False)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        copy = self._staging.copy_file(source.fd, source.size, durable=self._durable, progress=self._progress)
        with copy as (temporary, fd):
            # INVARIANT 1: the bytes are durable before the name, so a name never belongs to half a file.
            self._staging.move_file(temporary, fd, folder, name)

    # --- removal lock

    def acquire_removal_lock(self, batch: StoreBatch) -> None:
        """See `Store.acquire_removal_lock`."""
        if batch.lock is not None:
            return
        path = self._lock_path
        with self._translate_errors():
            fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
        # INVARIANT 7: every wait has a deadline.
        deadline = time.monotonic() + LOCK_SECONDS
        try:
            while not self._acquire_both_locks(fd):
                if time.monotonic() > deadline:
                    raise StoreAwayError(f"{path} is held by another worker for {LOCK_SECONDS:.0f} s")
                self._progress()
                time.sleep(0.01)
        except BaseException:
            if self._shared_lock is not None:
                self._shared_lock.release()
            os.close(fd)
            raise
        batch.lock = fd

    def _acquire_both_locks(self, fd: int) -> bool:
        """Acquire the file lock, then the shared lock. If only the second is taken, the first stays ours.

        All workers use this order, so two of them never wait for each other.
        """
        with self._translate_errors():
            if not try_lock(fd):
                return False
        try:
            return self._shared_lock is None or self._shared_lock.acquire()
        except LedgerError as error:
            raise StoreAwayError(f"the store {self.root} cannot be locked: {error}") from error

    def release_removal_lock(self, batch: StoreBatch) -> None:
        """See `Store.release_removal_lock`."""
        if batch.lock is not None:
            if self._shared_lock is not None:
                self._shared_lock.release()
            os.close(batch.lock)
            batch.lock = None

    def _require_lock(self, batch: StoreBatch) -> None:
        """Require that an acquired lock is still ours, because the next row depends on it."""
        if batch.lock is None or self._shared_lock is None:
            return
        try:
            is_held = self._shared_lock.is_held()
        except LedgerError as error:
            raise StoreAwayError(f"the lock of the store {self.root} was lost: {error}") from error
        if not is_held:
            raise StoreAwayError(
                f"the lock of the store {self.root} was lost with a connection to the ledger"
            )

    def measure_clock_offset_ms(self, batch: StoreBatch) -> int:
        """See `Store.measure_clock_offset_ms`."""
        if batch.lock is None:
            raise StoreError(f"the clock of {self.root} is asked without its lock")
        with self._translate_errors():
            return (read_clock_ns(batch.lock) - time.time_ns()) // 1_000_000

    def announce_folder_removal(self, batch: StoreBatch) -> None:
        """Announce to all workers that folders are about to go. Needs the removal lock.

        A new folder may get the inode number of a removed one, whose name workers remember as durable.
        """
        if batch.lock is not None:
            os.utime(batch.lock, ns=(time.time_ns(),) * 2)

    @property
    def _lock_path(self) -> Path:
        return self.root / STAGING / "replace.lock"

    # --- read

    def open_file(self, key: str) -> int:
        """See `Store.open_file`. Symbolic links are not followed."""
        split_key(key)
        try:
            return os.open(self.root / key, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            # INVARIANT 13: every store has this folder. Without it the root is an empty mount point, or gone.
            if not (self.root / STAGING).is_dir():
                raise StoreAwayError(f"the store {self.root} is not there; mount it") from None
            raise
        except OSError as error:
            raise _translate_error(error, key, self.root) from error

    def read_size(self, key: str) -> int:
        """See `Store.read_size`."""
        fd = self.open_file(key)
        try:
            return os.fstat(fd).st_size
        finally:
            os.close(fd)

    def read_change_ms(self, key: str) -> int:
        """See `Store.read_change_ms`."""
        fd = self.open_file(key)
        try:
            return os.fstat(fd).st_ctime_ns // 1_000_000
        finally:
            os.close(fd)

    def compute_digest(self, key: str) -> str:
        """See `Store.compute_digest`."""
        with open(self.open_file(key), "rb", buffering=0) as file:
            _, offset = read_file_meta(file.fileno())
            file.seek(offset)
            return hashlib.file_digest(file, "sha256").hexdigest()

    # --- temporary files

    @contextlib.contextmanager
    def create_temporary_file(self) -> Iterator[tuple[str, int]]:
        """Create a file in the staging folder, and yield its path and descriptor. Afterwards it is removed.

        Raises:
            StoreAwayError: The file cannot be created.
        """
        name = self._staging.make_name()
        with self._translate_errors():
            fd = self._staging.create_file(name, os.O_RDWR)
        try:
            yield str(self._staging.path / name), fd
        finally:
            os.close(fd)
            self._staging.remove_file(name)

    def append_data(self, fd: int, data: bytes | memoryview) -> None:
        """Write all of `data` to a temporary file.

        Raises:
            StoreAwayError: The disk is full or failing.
        """
        with self._translate_errors(), memoryview(data) as view:
            written = 0
            while written < len(view):
                written += os.write(fd, view[written:])
        self._progress()

    def sync_sources(self, sources: Sequence[SourceFile]) -> list[SourceFile]:
        """Make open files durable, if this store waits for the disk. One call costs less than one for each.

        Raises:
            StoreAwayError: The disk is full or failing.
        """
        fresh = [source for source in sources if not source.synced]
        if not self._durable or not fresh:
            return list(sources)
        with self._translate_errors():
            for source in fresh:
                # This call makes the kernel start to write, and drops no unwritten page. The first fdatasync
                # then commits the journal of the file system for all files.
                os.posix_fadvise(source.fd, 0, 0, os.POSIX_FADV_DONTNEED)
            for source in fresh:
                os.fdatasync(source.fd)
                self._progress()
        return [source if source.synced else replace(source, synced=True) for source in sources]

    @contextlib.contextmanager
    def _translate_errors(self, key: str = "") -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _translate_error(error, key, self.root) from error


def _create_root(root: Path) -> None:
    """Create the root and missing folders above it, durably."""
    missing = [path for path in (root, *root.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o750, exist_ok=True)
        fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync_folder_fd(fd)
        finally:
            os.close(fd)


_REMEDIES: Final = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "raise the quota of this user, or make room",
    errno.ENOENT: "mount it",
    errno.ESTALE: "mount it again",
    errno.ENOTCONN: "mount it again",
    errno.EROFS: "mount it for writing",
    errno.EACCES: "let this user write it",
    errno.EPERM: "let this user write it",
    errno.EIO: "see to the disk, and to the kernel's log",
    errno.EMFILE: "raise the limit of open files",
    errno.ENFILE: "raise the limit of open files",
    errno.ENOLCK: "mount it with locks: NFS version 4, or 3 with rpc.statd",
}
_UNSUPPORTED: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
"""Errors of calls that a file system does not support."""


def _translate_error(error: OSError, key: str, root: Path) -> StoreError:
    """Translate a system error into one that names the store and the remedy."""
    number = error.errno or 0
    what = f"cannot keep {key}" if key else "cannot be used"
    cause = f"the store {root} {what}: {error.strerror} ({errno.errorcode.get(number, number)})"
    if error.errno in ERRORS_OF_NAMES:
        return StoreError(cause)
    if error.errno in _UNSUPPORTED:
        lack = f"{find_mount(root)} lacks a call that is needed"
        return StoreAwayError(f"{cause}; {lack}: run `ingest check`, and see docs/reference/file-systems.md")
    return StoreAwayError(f"{cause}; {_REMEDIES.get(number, 'see to the disk')}")
