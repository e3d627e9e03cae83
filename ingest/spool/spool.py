"""The spool: where an instance lies from its first byte until store and ledger hold it.

```
<spool_dir>/id                      names the spool, and with it the stream of its references
<spool_dir>/L<n>/lock               held by the process that fills this slot; freed by the kernel at its end
<spool_dir>/L<n>/partial/<name>     being received; worthless once the lock is free
<spool_dir>/L<n>/ready/<name>.dcm   promised: a Part 10 file, durable under this name
<spool_dir>/L<n>/segments/<name>.seg  many small instances, promised alike (`ingest.spool.segment`)
<spool_dir>/L<n>/ready/<name>.A900.dcm   refused with that status and kept for quarantine
```

Names sort by time of arrival. The files describe themselves (File Meta holds AE titles and addresses), so
that a spool alone is enough to rebuild every reference. Nothing here knows of DIMSE.
"""

import contextlib
import fcntl
import itertools
import os
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, Self

from ext.commit import Committer, Entry
from ext.segment import Segments
from ingest import threads
from ingest.errors import SpoolError
from ingest.spool import segment

DIRECTORY_MODE: Final = 0o750
FILE_MODE: Final = 0o640
LARGE: Final = 32 << 20
"""Bytes of a file that are freed on a thread of their own."""

THREADS: Final = 4
"""How many groups of entries may wait for the disk at the same time."""


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
            # link(2) fails where the name exists, so that of two processes that start together one decides.
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
        finally:
            temporary.unlink()
        sync_folder(root)
        return path.read_text().strip()
    except OSError as error:
        raise SpoolError(f"the spool {root} cannot be used: {error.strerror} ({error.filename})") from error


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
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

    def __init__(self, root: Path, name: str, lock: int) -> None:
        self.root = root
        self.name = name
        self.path = root / name
        self._lock = lock

    @classmethod
    def lock(cls, root: Path, name: str) -> Self | None:
        """Make and lock the slot `name`; None while another process holds it."""
        path = root / name
        for folder in (path, path / "partial", path / "ready", path / segment.FOLDER):
            folder.mkdir(parents=True, exist_ok=True, mode=DIRECTORY_MODE)
        fd = os.open(path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, FILE_MODE)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        return cls(root, name, fd)

    def remove_partials(self) -> int:
        """Remove what a dead owner had begun; returns how many."""
        found = list((self.path / "partial").iterdir())
        for path in found:
            path.unlink(missing_ok=True)
        return len(found) + segment.remove_unfinished(self.path)

    def release(self) -> None:
        """Let another process have the slot."""
        os.close(self._lock)


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
                    slot.remove_partials()
                    if durable:
                        sync_upwards(slot.path)
                    return cls(root, identity, slot, durable=durable, segments=segments)
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

    def close(self) -> None:
        """Finish the commits under way and give the slot back; what they came to is there for `collect`."""
        self._closing = True
        self.committer.close()
        if self.segments is not None:
            self.segments.close()
        for thread in self._threads:
            thread.join()
        os.close(self._partial_dir)
        os.close(self._ready_dir)
        os.close(self._segments_dir)
        self.slot.release()

    def recycle(self) -> None:
        """Use segments again that are not needed any more, or remove them; the oldest first."""
        if self.segments is None:
            return
        listed = segment.names(self.slot.path)
        current = self.segments.current  # asked later: a listed one can be left meanwhile, but not taken up
        for name in listed:
            path = self.slot.path / segment.FOLDER / name
            if name == current or not segment.all_done(path):
                return  # what came later is persisted later
            with segment.unused(path) as unused:
                if unused and not self.segments.recycle(name):
                    path.unlink(missing_ok=True)

    def _where(self, entry: Entry) -> str:
        return f"{self.slot.name}/ready/{entry.ready_name}"
