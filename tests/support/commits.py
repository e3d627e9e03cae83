"""A committer of the spool between two folders of a test's own."""

import contextlib
import gc
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ingest.ext.group_commit import Committer, Entry
from tests.support.spools import collect_until

THREADS = 4


@dataclass
class Bench:
    """Two folders, a committer between them, and what it said."""

    folder: Path
    committer: Committer
    answers: dict[str, OSError | None] = field(default_factory=dict)
    threads: list[threading.Thread] = field(default_factory=list)

    def begin(self, data: bytes = b"data") -> Entry:
        entry = self.committer.begin()
        os.write(entry.fd, data)
        return entry

    def commit(
        self, entry: Entry, status: int = 0, done: Callable[[OSError | None], object] | None = None
    ) -> str:
        """Have it committed; its name."""
        name = entry.name
        self.committer.commit(entry, status, done or (lambda error: self.answers.__setitem__(name, error)))
        return name

    def start(self, count: int = THREADS) -> None:
        """Let threads work on what is submitted, and on what was before."""
        self.threads = [threading.Thread(target=self.committer.run) for _ in range(count)]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        self.committer.close()
        for thread in self.threads:
            thread.join(20)
            assert not thread.is_alive()

    def wait(self, count: int) -> None:
        collect_until(self.committer, self.answers, count)

    def ready(self) -> set[str]:
        return set(os.listdir(self.folder / "ready"))

    def partial(self) -> set[str]:
        return set(os.listdir(self.folder / "partial"))


@contextlib.contextmanager
def bench(folder: Path, *, durable: bool, ready_flags: int = os.O_RDONLY) -> Iterator[Bench]:
    for name in ("partial", "ready"):
        (folder / name).mkdir()
    partial = os.open(folder / "partial", os.O_RDONLY | os.O_CLOEXEC)
    ready = os.open(folder / "ready", ready_flags | os.O_CLOEXEC)
    made = Bench(folder, Committer(partial, ready, durable=durable))
    try:
        yield made
    finally:
        made.stop()
        os.close(partial)
        os.close(ready)


def unsynced(entry: Entry) -> None:
    """Put in the place of the entry's file something that fdatasync(2) refuses."""
    reader, writer = os.pipe()
    os.dup2(writer, entry.fd, inheritable=False)
    os.close(reader)
    os.close(writer)


def descriptors() -> int:
    """How many this process has open, garbage apart."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))
