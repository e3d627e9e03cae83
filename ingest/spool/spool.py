"""The spool: where an instance lies from its first byte until store and ledger hold it.

```
<spool_dir>/id                      names the spool, and with it the stream of its references
<spool_dir>/L<n>/lock               held by the process that fills this slot, and tells its name
                                    (`ingest.filesystem.locks.Owner`); freed by the kernel at its end
<spool_dir>/L<n>/partial/<name>     being received; worthless once the lock is free
<spool_dir>/L<n>/ready/<name>.dcm   promised: a Part 10 file, durable under this name
<spool_dir>/L<n>/segments/<name>.seg  many small instances, promised alike (`ingest.spool.segment`)
<spool_dir>/L<n>/ready/<name>.A900.dcm   refused with that status and kept for quarantine
```

A spool may be shared by hosts. The lock holds between them where the file system carries locks. Where it does
not, the lock is a lease: its owner sets its time of modification every few seconds, and a lock of another
host that was touched lately is taken for held (`LEASE_SECONDS`).

Names sort by time of arrival. The files describe themselves (File Meta holds AE titles and addresses), so
that a spool alone is enough to rebuild every reference. Nothing here knows of DIMSE.
"""

import contextlib
import errno
import itertools
import os
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, Self

from ingest import threads
from ingest.errors import SpoolError
from ingest.ext.commit import Committer, Entry
from ingest.ext.segment import Segments
from ingest.filesystem.calls import clock_ns, name_exclusively, sync_folder_fd
from ingest.filesystem.locks import Owner, lock
from ingest.spool import segment, segment_upkeep

DIRECTORY_MODE: Final = 0o750
FILE_MODE: Final = 0o640
LARGE: Final = 32 << 20
"""Bytes of a file that are freed on a thread of their own."""

TOUCH_SECONDS: Final = 10.0
"""How often the owner of a slot says that it lives."""

LEASE_SECONDS: Final = 60.0
"""For how long a slot belongs to an owner on another host that has said so."""

THREADS: Final = 4
"""How many groups of entries may wait for the disk at the same time."""

_OWNER_BYTES: Final = 96
"""What is written over a lock file: always as long, so that it needs no new block."""


def spool_id(root: Path, *, create: bool = False) -> str | None:
    """The id of the spool in `root`; None where there is none yet and `create` is false.

    Raises:
        SpoolError: The folder cannot be made or read.
    """
    path = root / "id"
    try:
        with contextlib.suppress(FileNotFoundError):
            return path.read_text().strip()
        if not create:
            return None
        root.mkdir(parents=True, exist_ok=True, mode=DIRECTORY_MODE)
        temporary = root / f".id.{uuid.uuid4().hex}"
        with temporary.open("w") as file:
            file.write(f"{uuid.uuid4().hex}\n")
            file.flush()
            # Before it has its name: an empty file under it, after a power cut, would orphan every reference.
            os.fsync(file.fileno())
        try:
            # It fails where the name exists, so that of two processes that start together one decides.
            with contextlib.suppress(FileExistsError), opened_folder(root) as fd:
                name_exclusively(temporary.name, path.name, source_dir=fd, target_dir=fd)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(root)
        return path.read_text().strip()
    except OSError as error:
        raise SpoolError(f"the spool {root} cannot be used: {error.strerror} ({error.filename})") from error


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    with opened_folder(path) as fd:
        sync_folder_fd(fd)


@contextlib.contextmanager
def opened_folder(path: Path) -> Iterator[int]:
    """A descriptor of a folder."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def sync_upwards(path: Path) -> None:
    """Make the names in a folder durable, and the folder's own, up to its mount point.

    All of the folders above it may be as new as it is. One that we may not read, we have not made.
    """
    device = path.stat().st_dev
    for folder in (path, *path.absolute().parents):
        with contextlib.suppress(PermissionError):
            if folder.stat().st_dev != device:
                return
            sync_folder(folder)


class Slot:
    """One locked folder of the spool; whoever holds it may tell its partial files from a living process's."""

    def __init__(self, root: Path, name: str, lock_fd: int) -> None:
        self.root = root
        self.name = name
        self.path = root / name
        self._lock = lock_fd
        self._touched_at = -TOUCH_SECONDS

    @classmethod
    def lock(cls, root: Path, name: str, *, leased: bool = True) -> Self | None:
        """Make and lock the slot `name`; None while another process holds it.

        Args:
            root: The spool's folder.
            name: The slot's.
            leased: Whether to respect the lease of an owner on another host: for who deletes or writes there.
        """
        path = root / name
        if path.is_symlink():
            # Workers follow no links below the spool (`ingest.filesystem.beneath`).
            raise OSError(errno.ELOOP, "is a symbolic link; make the spool itself one", str(path))
        for folder in (path, path / "partial", path / "ready", path / segment.FOLDER):
            folder.mkdir(parents=True, exist_ok=True, mode=DIRECTORY_MODE)
        fd = os.open(path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, FILE_MODE)
        try:
            if lock(fd) and not (leased and _is_leased(root, fd)):
                return cls(root, name, fd)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None

    def take(self) -> None:
        """Say whose slot it is from now on."""
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            os.pwrite(self._lock, f"{Owner.me()}\n".ljust(_OWNER_BYTES).encode(), 0)
        self.touch()

    def touch(self) -> None:
        """Say that its owner lives; called often, does something every `TOUCH_SECONDS`."""
        if time.monotonic() - self._touched_at >= TOUCH_SECONDS:
            self._touched_at = time.monotonic()
            with contextlib.suppress(OSError):
                os.utime(self._lock)

    def remove_partials(self) -> int:
        """Remove what a dead owner had begun; returns how many.

        What cannot be removed now does no harm but for its space: it is removed later.

        Raises:
            OSError: The folders cannot be read.
        """
        removed = 0
        for path in list((self.path / "partial").iterdir()):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
                removed += 1
        return removed + segment_upkeep.remove_unfinished(self.path)

    def release(self) -> None:
        """Let another process have the slot."""
        if self._touched_at > 0:
            with contextlib.suppress(OSError):
                os.pwrite(self._lock, b" " * _OWNER_BYTES, 0)
        os.close(self._lock)


def _is_leased(root: Path, lock_fd: int) -> bool:
    """Whether the owner that a lock names is on another host and has lately said that it lives."""
    owner = Owner.parse(os.pread(lock_fd, _OWNER_BYTES, 0).decode(errors="replace").strip())
    if owner is None or owner.is_of_this_kernel:
        return False
    try:
        clock = os.open(root / "clock", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
        try:
            now_ns = clock_ns(clock)
        finally:
            os.close(clock)
    except OSError:  # a full disk
        now_ns = time.time_ns()
    # A time that lies ahead by more than a lease was written before the clock was set back.
    return abs(now_ns - os.fstat(lock_fd).st_mtime_ns) < LEASE_SECONDS * 1e9


class Spool:
    """One process's hold on a spool: begins entries in its own slot, commits or discards them.

    Attributes:
        committer: Makes entries durable; `collect` is to be called when its `wakeup` is readable.
    """

    def __init__(self, root: Path, identity: str, slot: Slot, *, durable: bool, segments: bool) -> None:
        self.root = root
        self.id = identity
        self.slot = slot
        self._partial_dir = os.open(slot.path / "partial", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._ready_dir = os.open(slot.path / "ready", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._segments_dir = os.open(slot.path / segment.FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.segments = Segments(self._segments_dir, durable=durable) if segments else None
        self.committer = Committer(
            self._partial_dir, self._ready_dir, durable=durable, segments=self.segments
        )
        bodies = [self.committer.run] * (THREADS if durable else 0)
        self._commit_threads = len(bodies)
        if self.segments is not None:
            bodies.append(self.segments.run)
        # Without one of these, what was received would never be answered.
        self._closing = False
        self._threads = [threads.guard("commit", body, lambda: self._closing) for body in bodies]

    @classmethod
    def claim(cls, root: Path, *, durable: bool, segments: bool = False) -> Self:
        """Take the first free slot of the spool in `root`, and clear away what its last owner had begun.

        Args:
            root: The spool's folder.
            durable: Whether what is committed has to be on stable storage.
            segments: Whether small instances may share a file.

        Raises:
            SpoolError: The folder cannot be made, read or locked.
        """
        identity = spool_id(root, create=True)
        if identity is None:
            raise SpoolError(f"the spool {root} has no id")
        try:
            for number in itertools.count():
                slot = Slot.lock(root, f"L{number}")
                if slot is not None:
                    try:
                        slot.take()
                        slot.remove_partials()
                        if durable:
                            sync_upwards(slot.path)
                        return cls(root, identity, slot, durable=durable, segments=segments)
                    except BaseException:
                        # Whoever tries again would find it held, and take another one each time.
                        slot.release()
                        raise
        except OSError as error:
            raise SpoolError(
                f"the spool {root} cannot be used: {error.strerror} ({error.filename})"
            ) from error
        raise AssertionError("unreachable")  # pragma: no cover - itertools.count has no end

    def begin(self) -> Entry:
        """Open a new partial file.

        Raises:
            OSError: The disk is full or failing.
        """
        return self.committer.begin()

    def commit(self, entry: Entry, done: Callable[[str, OSError | None], object], status: int = 0) -> None:
        """Make an entry durable under its final name, then call `done(where, error)`.

        `where` is what a `Reference` says of it. A `status` other than 0 marks an instance that was refused
        with it and is only kept for quarantine.
        """
        self.committer.commit(entry, status, lambda error: done(self._where(entry), error))

    def discard(self, entry: Entry) -> None:
        """Close and remove a partial file."""
        if entry.fd < 0:
            return
        self.committer.discard(entry)
        # The last close frees the blocks: of gigabytes, longer than an event loop may wait.
        if os.fstat(entry.fd).st_size > LARGE:
            threads.once("discard", partial(os.close, entry.fd))
        else:
            os.close(entry.fd)

    def full(self, min_free_bytes: int, max_bytes: int, used: int) -> str:
        """Why the spool takes nothing more, or an empty string.

        Args:
            min_free_bytes: What must stay free on its file system.
            max_bytes: What its ready files may take together; 0 is no limit.
            used: What they took when last counted.
        """
        self.slot.touch()
        try:
            facts = os.fstatvfs(self._ready_dir)
        except OSError as error:
            return f"{self.root} cannot be asked for its free space: {error.strerror}"
        free = facts.f_bavail * facts.f_frsize
        if free < min_free_bytes:
            return f"{free} bytes free, [receive] min_free_bytes is {min_free_bytes}"
        if max_bytes and used >= max_bytes:
            return f"{used} bytes wait in the spool, [receive] spool_max_bytes is {max_bytes}"
        return ""

    def finish(self) -> None:
        """Finish the commits under way; what they came to is there for `collect`. The slot stays ours."""
        self._closing = True
        self.committer.close()
        commits, others = self._threads[: self._commit_threads], self._threads[self._commit_threads :]
        for thread in commits:
            thread.join()
        if self.segments is not None:
            self.segments.close()  # now that nothing more is put into them
        for thread in others:
            thread.join()

    def close(self) -> None:
        """Finish, and give the slot back, as the last thing of all.

        From then on another process may own the files of the slot: none of our threads may be at them still.
        """
        self.finish()
        os.close(self._partial_dir)
        os.close(self._ready_dir)
        os.close(self._segments_dir)
        self.slot.release()

    def _where(self, entry: Entry) -> str:
        return f"{self.slot.name}/ready/{entry.ready_name}"
