"""Spools for tests of sweep and hand-off, filled without a listener."""

import os
import select
import time
from collections.abc import Sized
from pathlib import Path

from ingest.config.model import Config, NodeSettings, QueueSettings, ReceiveSettings
from ingest.ext.group_commit import Committer
from ingest.spool.spool import Spool


def config(folder: Path, url: str = "", **sections: object) -> Config:
    """A configuration whose data lies below `folder`; `queue` and `receive` take keys of their sections."""
    queue, receive = sections.pop("queue", {}), sections.pop("receive", {})
    return Config(
        node=NodeSettings(data_dir=folder),
        queue=QueueSettings(url=url, **queue),  # type: ignore[arg-type]
        receive=ReceiveSettings(**receive),  # type: ignore[arg-type]
    )


def claim(config: Config) -> Spool:
    """The first free slot, in this process's hands; commits at once and without a disk's help."""
    return Spool.claim(config.spool_dir, durable=False)


def collect_until(committer: Committer, done: Sized, count: int) -> None:
    """Collect whenever the committer says so, until `done` has got `count` answers."""
    deadline = time.monotonic() + 20
    while len(done) < count:
        left = deadline - time.monotonic()
        assert left > 0, f"{len(done)} of {count} were answered"
        if select.select([committer.wakeup], [], [], left)[0]:
            assert committer.collect() == []


def keep(spool: Spool, data: bytes = b"data", status: int = 0) -> str:
    """Commit one entry, and wait for the disk if it is a durable spool's; returns its place."""
    entry = spool.begin()
    os.write(entry.fd, data)
    answers: list[tuple[str, OSError | None]] = []
    spool.commit(entry, lambda where, error: answers.append((where, error)), status)
    collect_until(spool.committer, answers, 1)
    (where, error), *more = answers
    assert error is None
    assert not more
    return where
