"""Spools for tests of sweep and hand-off, filled without a listener."""

import os
from pathlib import Path

from ingest.config.model import Config, Node, Queue, Receive
from ingest.spool.spool import Spool


def config(folder: Path, url: str = "", **sections: object) -> Config:
    """A configuration whose data lies below `folder`; `queue` and `receive` take keys of their sections."""
    queue, receive = sections.pop("queue", {}), sections.pop("receive", {})
    return Config(
        node=Node(data_dir=folder),
        queue=Queue(url=url, **queue),  # type: ignore[arg-type]
        receive=Receive(**receive),  # type: ignore[arg-type]
    )


def claim(config: Config) -> Spool:
    """The first free slot, in this process's hands; commits at once and without a disk's help."""
    return Spool.claim(config.spool_dir, durable=False, post=lambda call: call())


def keep(spool: Spool, data: bytes = b"data") -> str:
    """Commit one entry; returns its place."""
    entry = spool.begin()
    os.write(entry.fd, data)
    places: list[str] = []
    spool.commit(entry, lambda where, error: places.append(where if error is None else ""))
    assert places[0]
    return places[0]
