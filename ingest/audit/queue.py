"""The queue of audit messages: a folder in which each message waits as a file until the repository has it.

```
data_dir/audit/           0700
    messages/             0700  one file for each message: a whole SYSLOG-MSG of RFC 5424
        0001796058…-4711-1  0600  its name begins with the time, so names sort in the order of events
    usage                 0600  bytes and counts, written under a lock
    sender.json           0600  what the sender did last (`ingest.audit.sender_state`)
```

A message is durable when `AuditQueue.put` returns: its file is synced and renamed, and its folder is synced.
Any process of the node may put messages. The lock guards only the counts in `usage`. Nobody waits for it for
long, because a stopped process that holds it must not stop the node. If the lock is not free in time, the
message is written all the same, and the sender counts the files again later.

The queue is bounded. When it is full, new messages are dropped and counted, and those that wait stay. A
message that was queued is therefore never lost, and a flood of new events cannot push out the record of older
ones. A reserve beyond the bound has room for messages about the loss itself.

INVARIANT 9: patient data stays in the data sets. These files name patients, because the standard demands it.
Only the user of the node can read them, and nothing else in `data_dir` repeats their content.
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from ingest.config.model import Config
from ingest.filesystem.locks import try_lock

BLOCK_BYTES: Final = 4096
"""A file takes whole blocks of the disk, and the bound is about the disk."""

RESERVE_BYTES: Final = 64 * 1024
"""Room beyond the bound, for messages about dropped messages."""

LOCK_SECONDS: Final = 2.0
"""Longest wait for the lock of the counts."""

LEFTOVER_SECONDS: Final = 600.0
"""Age at which a file without its final name belongs to a process that died."""

_counter = iter(range(1, 1 << 62))
_counter_lock = threading.Lock()


@dataclass(slots=True)
class QueueUsage:
    """The counts of a queue.

    Attributes:
        bytes: Bytes on the disk of all waiting messages.
        dropped: Messages that were dropped since the node was set up.
        dropped_now: Messages that were dropped since the queue last had room; 0 while it has room.
    """

    bytes: int = 0
    dropped: int = 0
    dropped_now: int = 0


class AuditQueue:
    """The queue in one `data_dir`. All methods may be called by any process and thread."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Describe the queue; `put` creates its folder.

        Args:
            folder: `data_dir/audit`.
            max_bytes: `[audit] queue_max_bytes`.
        """
        self.folder = folder
        self.messages = folder / "messages"
        self.max_bytes = max_bytes

    # --- write

    def put(self, name: str, data: bytes, *, uses_reserve: bool = False) -> bool:
        """Write a message durably. Return False, and count, if the queue is full.

        A name that is there already keeps its message: a derived event that is reported again after a crash
        has the same name.

        Args:
            name: File name: `make_name`, or a name that is derived from the event.
            data: The SYSLOG-MSG.
            uses_reserve: Whether the message may use the reserve.

        Raises:
            OSError: The disk is full or failing. Nothing was queued.
        """
        self._make_folders()
        path = self.messages / name
        if path.exists():
            return True
        size = _count_blocks(len(data))
        limit = self.max_bytes + (RESERVE_BYTES if uses_reserve else 0)
        with self._edit_usage() as usage:
            if usage.bytes + size > limit:
                usage.dropped += 1
                usage.dropped_now += 1
                return False
            self._write(path, data)
            usage.bytes += size
        return True

    def note_dropped(self) -> None:
        """Count a message that could not be written, because the disk is full or failing."""
        with contextlib.suppress(OSError), self._edit_usage() as usage:
            usage.dropped += 1
            usage.dropped_now += 1

    def _write(self, path: Path, data: bytes) -> None:
        new = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(fd)
            new.rename(path)
            _sync_folder(path.parent)
        except OSError:
            with contextlib.suppress(OSError):
                new.unlink()
            raise

    # --- read

    def list_names(self) -> list[str]:
        """Return the names of all waiting messages, the oldest first."""
        try:
            return sorted(name for name in os.listdir(self.messages) if not name.startswith("."))
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes | None:
        """Return a message; None if another process has removed it."""
        try:
            return (self.messages / name).read_bytes()
        except FileNotFoundError:
            return None

    def remove(self, names: Iterable[str]) -> None:
        """Remove messages that the repository has.

        Raises:
            OSError: The disk fails. Messages that are still there are sent again.
        """
        freed = 0
        for name in names:
            path = self.messages / name
            with contextlib.suppress(FileNotFoundError):
                size = path.stat().st_size
                path.unlink()
                freed += _count_blocks(size)
        if freed:
            _sync_folder(self.messages)
            with self._edit_usage() as usage:
                usage.bytes = max(0, usage.bytes - freed)

    def read_usage(self) -> QueueUsage:
        """Return the counts without the lock."""
        try:
            return _decode_usage((self.folder / "usage").read_bytes())
        except OSError:
            return QueueUsage()

    def recount(self) -> QueueUsage:
        """Count the files again, and remove what dead processes left. Return the counts.

        After a crash between a file and its count, the count is wrong by that file.
        """
        self._make_folders()
        with self._edit_usage() as usage:
            total = 0
            oldest = time.time() - LEFTOVER_SECONDS
            for entry in os.scandir(self.messages):
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    if not entry.name.startswith("."):
                        total += _count_blocks(status.st_size)
                    elif status.st_mtime < oldest:
                        os.unlink(entry.path)
            usage.bytes = total
            return usage

    def take_dropped_now(self) -> int:
        """Return how many messages were dropped since the queue last had room, once there is room again."""
        if not self.read_usage().dropped_now:
            return 0
        with self._edit_usage() as usage:
            if usage.bytes > self.max_bytes * 9 // 10:
                return 0
            dropped, usage.dropped_now = usage.dropped_now, 0
            return dropped

    # --- files

    def _make_folders(self) -> None:
        for folder in (self.folder, self.messages):
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)

    @contextlib.contextmanager
    def _edit_usage(self) -> Iterator[QueueUsage]:
        """Read the counts under the lock, and write them back if they changed.

        INVARIANT 7: every wait has a deadline. Without the lock the counts may be wrong until `recount`.
        """
        self._make_folders()
        fd = os.open(self.folder / "usage", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + LOCK_SECONDS
            while not try_lock(fd) and time.monotonic() < deadline:
                time.sleep(0.005)
            usage = _decode_usage(os.pread(fd, 4096, 0))
            before = asdict(usage)
            yield usage
            if asdict(usage) != before:
                # The counts have a fixed length, so a shorter text never follows a longer one.
                os.pwrite(fd, json.dumps(asdict(usage)).ljust(256).encode(), 0)
        finally:
            os.close(fd)


def open_queue(config: Config) -> AuditQueue:
    """Return the queue of a node. Without `[audit]` it has no room."""
    return AuditQueue(config.data_dir / "audit", config.audit.queue_max_bytes if config.audit else 0)


def make_name(unix_ms: int) -> str:
    """Return a name that sorts by time and that no other process has."""
    with _counter_lock:
        number = next(_counter)
    return f"{unix_ms:016d}-{time.time_ns():020d}-{os.getpid()}-{number}"


def read_time_of(name: str) -> int:
    """Return the time of the event, in Unix milliseconds, from the name of its message."""
    digits = name.partition("-")[0]
    return int(digits) if digits.isdigit() else 0


def _decode_usage(data: bytes) -> QueueUsage:
    try:
        values = json.loads(data)
        return QueueUsage(*(max(0, int(values[name])) for name in ("bytes", "dropped", "dropped_now")))
    except (ValueError, KeyError, TypeError):
        return QueueUsage()


def _count_blocks(size: int) -> int:
    return -(-max(size, 1) // BLOCK_BYTES) * BLOCK_BYTES


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
