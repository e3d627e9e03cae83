"""The spool: where each entry lies until store and ledger have it.

```
<spool_dir>/id                      names the spool and the stream of its references
<spool_dir>/L<n>/lock               held by the process that fills this slot, until that process ends; names
                                    its owner (`ingest.filesystem.locks.Owner`)
<spool_dir>/L<n>/partial/<name>     an entry that is being received; worthless once the lock is free
<spool_dir>/L<n>/ready/<name>.dcm   a committed entry: a Part 10 file, durable under this name
<spool_dir>/L<n>/segments/<name>.seg  many small committed entries (`ingest.spool.segment`)
<spool_dir>/L<n>/ready/<name>.A900.dcm   refused with that status, and kept for quarantine
```

Names sort by time of arrival. The File Meta of each file holds the AE titles and the address of its sender,
so the spool alone is enough to rebuild every reference. The spool knows nothing of DIMSE.
"""

import contextlib
import itertools
import os
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, Self

from ingest import threads
from ingest.errors import SpoolError
from ingest.ext.group_commit import Committer, Entry
from ingest.ext.segment_writer import Segments
from ingest.filesystem.calls import move_exclusively
from ingest.spool import segment
from ingest.spool.slot import FOLDER_MODE, Slot, open_folder, sync_folder, sync_with_parents

LARGE_BYTES: Final = 32 << 20
"""A discarded file of more bytes is closed on a separate thread."""

COMMIT_THREADS: Final = 4
"""How many group commits may wait for the disk at the same time."""


def read_spool_id(root: Path, *, create: bool = False) -> str | None:
    """Return the id of the spool in `root`; None if it has none yet and `create` is false.

    Raises:
        SpoolError: The folder cannot be created or read.
    """
    path = root / "id"
    try:
        with contextlib.suppress(FileNotFoundError):
            return path.read_text().strip()
        if not create:
            return None
        root.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)
        temporary = root / f".id.{uuid.uuid4().hex}"
        with temporary.open("w") as file:
            file.write(f"{uuid.uuid4().hex}\n")
            file.flush()
            # Sync before the file gets its name. After a power cut an empty file under that name would give
            # the spool another id, and no reference would match.
            os.fsync(file.fileno())
        try:
            # Naming fails if the name exists, so only one of two processes that start together creates the
            # id.
            with contextlib.suppress(FileExistsError), open_folder(root) as fd:
                move_exclusively(temporary.name, path.name, source_dir=fd, target_dir=fd)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(root)
        return path.read_text().strip()
    except OSError as error:
        raise SpoolError(f"the spool {root} cannot be used: {error.strerror} ({error.filename})") from error


class Spool:
    """The spool as one process fills it: begins entries in its own slot, and commits or discards them.

    Attributes:
        committer: Commits entries in groups. Call its `collect` when its `wakeup` is readable.
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
        bodies = [self.committer.run] * (COMMIT_THREADS if durable else 0)
        self._commit_threads = len(bodies)
        if self.segments is not None:
            bodies.append(self.segments.run)
        # Without these threads no C-STORE would be answered, so the process ends if one of them ends.
        self._closing = False
        self._threads = [threads.start_guarded("commit", body, lambda: self._closing) for body in bodies]

    @classmethod
    def claim(cls, root: Path, *, durable: bool, segments: bool = False) -> Self:
        """Lock the first free slot of the spool in `root`, and remove the partial files of its last owner.

        Args:
            root: The folder of the spool.
            durable: Whether committed entries must be on stable storage.
            segments: Whether small instances may share a file.

        Raises:
            SpoolError: The folder cannot be created, read or locked.
        """
        identity = read_spool_id(root, create=True)
        if identity is None:
            raise SpoolError(f"the spool {root} has no id")
        try:
            for number in itertools.count():
                slot = Slot.try_lock(root, f"L{number}")
                if slot is not None:
                    try:
                        slot.record_owner()
                        slot.remove_partials()
                        if durable:
                            sync_with_parents(slot.path)
                        return cls(root, identity, slot, durable=durable, segments=segments)
                    except BaseException:
                        # A caller that tries again would otherwise lock one more slot each time.
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

    def commit(
        self, entry: Entry, on_committed: Callable[[str, OSError | None], object], status: int = 0
    ) -> None:
        """Make an entry durable under its final name, then call `on_committed(path, error)`.

        `path` is the one of the entry's `Reference`. A `status` other than 0 marks an instance that was
        refused with that status and is only kept for quarantine.
        """
        # INVARIANT 1: durable before Success. The caller answers in `on_committed`, not before.
        self.committer.commit(entry, status, lambda error: on_committed(self._path_of(entry), error))

    def discard(self, entry: Entry) -> None:
        """Close and remove a partial file."""
        if entry.fd < 0:
            return
        self.committer.discard(entry)
        # The last close frees the blocks. For gigabytes that takes longer than an event loop may wait.
        if os.fstat(entry.fd).st_size > LARGE_BYTES:
            threads.start_task("discard", partial(os.close, entry.fd))
        else:
            os.close(entry.fd)

    def find_refusal_reason(self, min_free_bytes: int, max_bytes: int, used_bytes: int) -> str:
        """Return why the spool accepts no more entries, for logs and people; empty if it accepts them.

        Args:
            min_free_bytes: Bytes that must stay free on its file system.
            max_bytes: Bytes that all waiting entries may take; 0 means no limit.
            used_bytes: Bytes that they took when they were last counted.
        """
        self.slot.renew_lease()
        try:
            facts = os.fstatvfs(self._ready_dir)
        except OSError as error:
            return f"{self.root} cannot be asked for its free space: {error.strerror}"
        free = facts.f_bavail * facts.f_frsize
        if free < min_free_bytes:
            return f"{free} bytes free, [receive] min_free_bytes is {min_free_bytes}"
        if max_bytes and used_bytes >= max_bytes:
            return f"{used_bytes} bytes wait in the spool, [receive] spool_max_bytes is {max_bytes}"
        return ""

    def finish_commits(self) -> None:
        """Finish the commits under way; `collect` gets their results. The slot stays locked."""
        self._closing = True
        self.committer.close()
        commits, others = self._threads[: self._commit_threads], self._threads[self._commit_threads :]
        for thread in commits:
            thread.join()
        if self.segments is not None:
            self.segments.close()  # no commit thread writes to them any more
        for thread in others:
            thread.join()

    def close(self) -> None:
        """Finish all commits and release the slot. This must be the last call.

        Afterwards another process may own the files of the slot, so none of our threads may use them.
        """
        self.finish_commits()
        os.close(self._partial_dir)
        os.close(self._ready_dir)
        os.close(self._segments_dir)
        self.slot.release()

    def _path_of(self, entry: Entry) -> str:
        return f"{self.slot.name}/ready/{entry.ready_name}"
