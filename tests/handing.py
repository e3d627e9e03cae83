"""Hand-offs for tests, and what they have put on a queue."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from ingest.config.model import Config
from ingest.handoff import Handoff
from ingest.queue import data_key, stream_key
from ingest.spool.reference import Reference
from ingest.spool.spool import Spool
from tests.servers import Valkey
from tests.spools import claim, config


@contextmanager
def handing_off(settings: Config, *, start: bool = True) -> Iterator[tuple[Spool, Handoff]]:
    spool = claim(settings)
    made = Handoff(settings, spool)
    if start:
        made.start()
    try:
        yield spool, made
    finally:
        if start:
            made.close(10)
        spool.close()


def settings_of(tmp_path: Path, server: Valkey, carrier: str = "spool", **queue: int) -> Config:
    return config(tmp_path, server.url, queue={"carrier": carrier, **queue})


def references(client: redis.Redis, spool: Spool) -> list[Reference]:
    return [Reference.from_fields(fields) for _, fields in client.xrange(stream_key(spool.id))]


def places(client: redis.Redis, spool: Spool) -> list[str]:
    return [reference.where for reference in references(client, spool)]


def carried(client: redis.Redis, spool: Spool, where: str) -> bytes:
    return b"".join(client.lrange(data_key(spool.id, where), 0, -1))
