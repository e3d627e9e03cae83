"""Where instances stay: the Store seam, and the file system behind it.

What `put` has done is durable once its batch was synced. A name is given by link(2), or by renameat2(2) with
RENAME_NOREPLACE, which never replace a file: of several workers with the same key one wins, and the others
are told. Files are linked by their open descriptors, never by a path that may stand for another file by then.
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
from ingest.filesystem.calls import NO_LINK, clock_ns, mount_of, sync_folder_fd
from ingest.filesystem.folder_identity import KnownFolder, give_id, read_id, require_store
from ingest.workers.fault_attribution import ERRORS_OF_NAMES
from ingest.workers.store.folders import BatchFolders
from ingest.workers.store.keys import STAGING, split_key
from ingest.workers.store.staging import FILE_MODE, StagingFolder, is_name_of, lock

LOCK_SECONDS: Final = 10.0
"""How long one worker waits for another that replaces or removes files."""

NEW_FOLDER: Final = KnownFolder()
"""What is known of a store that nobody has used."""

CLEAR_SECONDS: Final = 600.0
"""Seconds between searches for what dead workers left; less than `store.staging.YOUNG_SECONDS`."""

# Another name for the same file cannot be had: no hard links, other file system, not allowed, or its first
# name is gone, since another worker was quicker with it.
_NO_LINK: Final = NO_LINK | {errno.EXDEV, errno.EACCES, errno.ENOENT}


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A whole Part 10 file that may be linked or copied.

    Attributes:
        path: Its name, for logs: what is linked is the open file.
        fd: Open for reading; stays the caller's.
        size: Bytes.
        device, inode: As fstat(2) gives them.
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
        """The open file `fd` that is called `path`."""
        facts = os.fstat(fd)
        return cls(path, fd, facts.st_size, facts.st_dev, facts.st_ino, synced)


@dataclass(slots=True)
class StoreBatch:
    """What was put together and becomes durable together."""

    folders: BatchFolders
    lock: int | None = None


class SharedLock(Protocol):
    """A lock that all workers of one ledger share, on whatever hosts they are."""

    def acquire(self) -> bool:
        """Take it without waiting; False while another holds it.

        Raises:
            LedgerError: The ledger is away.
        """

    def is_held(self) -> bool:
        """Whether it is ours yet: it ends with the connection to the ledger; raises as `acquire`."""

    def release(self) -> None:
        """Let others take it."""


class Store(Protocol):
    """What the workers ask of a store; a key is a relative path with "/"."""

    def open_batch(self) -> contextlib.AbstractContextManager[StoreBatch]:
        """A batch to put into; what is not synced at its end may be lost with the power."""

    def put(self, batch: StoreBatch, source: SourceFile, key: str) -> bool:
        """Keep a file under a key; False where the key is taken (that key is made durable all the same).

        Raises:
            StoreAwayError: The store is full, failing or not there; trying again later may help.
            StoreError: This key cannot be had.
        """

    def replace(self, batch: StoreBatch, source: SourceFile, key: str) -> None:
        """Keep a file under a key in place of what is there, between two instants; raises as `put`."""

    def remove(self, batch: StoreBatch, key: str) -> None:
        """Forget a key, if it is there; raises as `put`."""

    def acquire_removal_lock(self, batch: StoreBatch) -> None:
        """Keep others from replacing and removing until `release_removal_lock` or the batch's end; as `put`."""

    def release_removal_lock(self, batch: StoreBatch) -> None:
        """Let others replace and remove again."""

    def sync(self, batch: StoreBatch) -> None:
        """Make durable what was put so far; raises as `put`."""

    def open(self, key: str) -> int:
        """A descriptor to read a file from; the caller closes it.

        Raises:
            FileNotFoundError: The key is not there.
            StoreAwayError, StoreError: As `put`.
        """

    def size(self, key: str) -> int:
        """Bytes of the Part 10 file; raises as `open`."""

    def changed_ms(self, key: str) -> int:
        """When a name was last given to the file, or taken from it (Unix milliseconds); raises as `open`."""

    def measure_clock_offset_ms(self, batch: StoreBatch) -> int:
        """By how much the clock that `changed_ms` goes by is ahead of ours, while others are excluded.

        Raises:
            StoreAwayError: As `put`.
        """

    def digest(self, key: str) -> str:
        """SHA-256 of the data set, in hexadecimal; raises as `open`, and PeerError for no DICOM file."""


class FileStore:
    """A folder of Part 10 files."""

    def __init__(
        self,
        root: Path,
        *,
        durable: bool = True,
        progress: Callable[[], None] = lambda: None,
        shared_lock: SharedLock | None = None,
    ) -> None:
        """Describe it; who only reads needs no more.

        Args:
            root: The folder.
            durable: Whether `sync` waits for the disk (`[receive] durability = "fsync"`).
            progress: Called often while something large is copied.
            shared_lock: What else excludes others from replacing; without, a lock on a file of the store alone.
        """
        self.root = root
        self._durable = durable
        self._progress = progress
        self._shared_lock = shared_lock
        self._clear_at = 0.0
        self._id = ""
        self._durable_names: set[tuple[int, int]] = set()
        self._announced = 0
        self._prepared: StagingFolder | None = None

    def prepare(self, known: KnownFolder = NEW_FOLDER) -> str:
        """Make the folder if it is new, take a place to copy to, and clear the places of dead workers.

        Args:
            known: What the ledger knows of it.

        Returns:
            The id of the store.

        Raises:
            StoreMissingError: It is not the folder that the ledger knows.
            StoreAwayError: The folder cannot be made or written to.
        """
        with self._blamed():
            require_store(self.root, known)
            _make_root(self.root)
            self._prepared = StagingFolder(self.root / STAGING)
            try:
                self._id = give_id(self.root)
            except BaseException:
                self.close()
                raise
        self._clear_at = time.monotonic() + CLEAR_SECONDS
        return self._id

    def close(self) -> None:
        """Give the place to copy to back."""
        if self._prepared is not None:
            self._prepared.close()
            self._prepared = None

    def retry_removals(self) -> None:
        """Remove temporary files that could not be removed before; also between batches."""
        if self._prepared is not None:
            self._prepared.retry_removals()

    @property
    def _staging(self) -> StagingFolder:
        if self._prepared is None:
            raise StoreError(f"the store {self.root} was opened for reading only")
        return self._prepared

    @contextlib.contextmanager
    def open_batch(self) -> Iterator[StoreBatch]:
        """See `Store.batch`."""
        with self._blamed():
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

    def put(self, batch: StoreBatch, source: SourceFile, key: str) -> bool:
        """See `Store.put`."""
        *parents, name = split_key(key)
        with self._blamed(key):
            try:
                try:
                    self._give_name(source, batch.folders.open(parents), name)
                except FileNotFoundError:
                    # The folder was empty, and has been removed since this batch opened it.
                    self._give_name(source, batch.folders.reopen(parents), name)
            except FileExistsError:
                return False
            return True

    def replace(self, batch: StoreBatch, source: SourceFile, key: str) -> None:
        """See `Store.replace`."""
        *parents, name = split_key(key)
        with self._blamed(key):
            folder = batch.folders.open(parents)
            temporary = self._staging.make_name()
            self._give_name(source, self._staging.fd, temporary)
            linked = os.stat(temporary, dir_fd=self._staging.fd, follow_symlinks=False)
            os.rename(temporary, name, src_dir_fd=self._staging.fd, dst_dir_fd=folder)
            # Of two names of one file rename(2) removes neither.
            self._staging.remove_file(temporary)
            if not is_name_of(name, folder, linked.st_dev, linked.st_ino):
                raise StoreAwayError(f"{key} was given to another file while it was replaced")

    def remove(self, batch: StoreBatch, key: str) -> None:
        """See `Store.remove`; folders stay."""
        *parents, name = split_key(key)
        with self._blamed(key), contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=batch.folders.open(parents))

    def acquire_removal_lock(self, batch: StoreBatch) -> None:
        """See `Store.acquire_removal_lock`."""
        if batch.lock is not None:
            return
        path = self._lock_path
        with self._blamed():
            fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
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
        """Take both locks, always in this order; the first stays taken if only the second is not free."""
        with self._blamed():
            if not lock(fd):
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

    def measure_clock_offset_ms(self, batch: StoreBatch) -> int:
        """See `Store.measure_clock_offset_ms`."""
        if batch.lock is None:
            raise StoreError(f"the clock of {self.root} is asked without its lock")
        with self._blamed():
            return (clock_ns(batch.lock) - time.time_ns()) // 1_000_000

    def announce_folder_removal(self, batch: StoreBatch) -> None:
        """Tell all workers that folders are about to go; with others kept from replacing.

        A new folder may get the inode number of one that is gone, whose name was known to be durable.
        """
        if batch.lock is not None:
            os.utime(batch.lock, ns=(time.time_ns(),) * 2)

    def sync(self, batch: StoreBatch) -> None:
        """See `Store.sync`."""
        self._require_lock(batch)
        if self._durable:
            with self._blamed():
                with contextlib.suppress(FileNotFoundError):
                    announced = os.stat(self._lock_path).st_mtime_ns
                    if announced != self._announced:
                        self._durable_names.clear()
                        self._announced = announced
                batch.folders.sync()

    def _require_id(self) -> None:
        """Make sure that it is yet the store that was prepared: it may have been unmounted since."""
        if self._id and read_id(self.root) != self._id:
            cause = f"{self.root} is not the store any more that this worker began with"
            raise StoreMissingError(f"{cause} ({mount_of(self.root)}); mount it")

    def _require_lock(self, batch: StoreBatch) -> None:
        """Make sure that a lock that was taken is ours yet: a row is written next that depends on it."""
        if batch.lock is None or self._shared_lock is None:
            return
        try:
            held = self._shared_lock.is_held()
        except LedgerError as error:
            raise StoreAwayError(f"the lock of the store {self.root} was lost: {error}") from error
        if not held:
            raise StoreAwayError(
                f"the lock of the store {self.root} was lost with a connection to the ledger"
            )

    @property
    def _lock_path(self) -> Path:
        return self.root / STAGING / "replace.lock"

    def open(self, key: str) -> int:
        """See `Store.open`; symbolic links are not followed."""
        split_key(key)
        try:
            return os.open(self.root / key, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            # Whoever made the store made that folder, too: without it this is a mount point, or nothing.
            if not (self.root / STAGING).is_dir():
                raise StoreAwayError(f"the store {self.root} is not there; mount it") from None
            raise
        except OSError as error:
            raise _blame(error, key, self.root) from error

    def size(self, key: str) -> int:
        """See `Store.size`."""
        fd = self.open(key)
        try:
            return os.fstat(fd).st_size
        finally:
            os.close(fd)

    def changed_ms(self, key: str) -> int:
        """See `Store.changed_ms`."""
        fd = self.open(key)
        try:
            return os.fstat(fd).st_ctime_ns // 1_000_000
        finally:
            os.close(fd)

    def digest(self, key: str) -> str:
        """See `Store.digest`."""
        with open(self.open(key), "rb", buffering=0) as file:
            _, offset = read_file_meta(file.fileno())
            file.seek(offset)
            return hashlib.file_digest(file, "sha256").hexdigest()

    @contextlib.contextmanager
    def temporary(self) -> Iterator[tuple[str, int]]:
        """A new file beside the store, as path and descriptor to read and write; gone afterwards.

        Raises:
            StoreAwayError: It cannot be made.
        """
        name = self._staging.make_name()
        with self._blamed():
            fd = self._staging.create_file(name, os.O_RDWR)
        try:
            yield str(self._staging.path / name), fd
        finally:
            os.close(fd)
            self._staging.remove_file(name)

    def append(self, fd: int, data: bytes | memoryview) -> None:
        """Write all of `data` to a file of `temporary`.

        Raises:
            StoreAwayError: There is no room for it.
        """
        with self._blamed(), memoryview(data) as left:
            done = 0
            while done < len(left):
                done += os.write(fd, left[done:])
        self._progress()

    def settled(self, sources: Sequence[SourceFile]) -> list[SourceFile]:
        """The same open files, on stable storage if this store waits for that.

        Together it costs far less than each by itself.

        Raises:
            StoreAwayError: A disk is failing, or full.
        """
        fresh = [source for source in sources if not source.synced]
        if not self._durable or not fresh:
            return list(sources)
        with self._blamed():
            for source in fresh:
                # It makes the kernel begin to write, and drops nothing that is not written. The journal of
                # the file system is then committed once, with the first of them, for all.
                os.posix_fadvise(source.fd, 0, 0, os.POSIX_FADV_DONTNEED)
            for source in fresh:
                os.fdatasync(source.fd)
                self._progress()
        return [source if source.synced else replace(source, synced=True) for source in sources]

    @contextlib.contextmanager
    def _blamed(self, key: str = "") -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _blame(error, key, self.root) from error

    def _give_name(self, source: SourceFile, folder: int, name: str) -> None:
        """Link where that works, else copy.

        Raises:
            FileExistsError: The name is taken.
        """
        if source.device == os.fstat(folder).st_dev:
            try:
                if self._durable and not source.synced:
                    os.fdatasync(source.fd)
                # proc(5): this names the open file itself, whatever its path stands for by now.
                os.link(f"/proc/self/fd/{source.fd}", name, dst_dir_fd=folder, follow_symlinks=True)
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
            else:
                if not is_name_of(name, folder, source.device, source.inode):
                    # Another worker has replaced it already: the name is taken, and is to be looked at.
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
                return
        with contextlib.suppress(FileNotFoundError):
            os.stat(name, dir_fd=folder, follow_symlinks=False)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        copy = self._staging.copy_file(source.fd, source.size, durable=self._durable, progress=self._progress)
        with copy as (temporary, fd):
            # Durable before it has its name: a name never stands for half a file.
            self._staging.move_file(temporary, fd, folder, name)


def _make_root(root: Path) -> None:
    """Make the root and what is missing above it, durably."""
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
"""What calls answer that a file system does not have."""


def _blame(error: OSError, key: str, root: Path) -> StoreError:
    number = error.errno or 0
    what = f"cannot keep {key}" if key else "cannot be used"
    cause = f"the store {root} {what}: {error.strerror} ({errno.errorcode.get(number, number)})"
    if error.errno in ERRORS_OF_NAMES:
        return StoreError(cause)
    if error.errno in _UNSUPPORTED:
        lack = f"{mount_of(root)} lacks a call that is needed"
        return StoreAwayError(f"{cause}; {lack}: run `ingest check`, and see docs/reference/file-systems.md")
    return StoreAwayError(f"{cause}; {_REMEDIES.get(number, 'see to the disk')}")
