"""Hand-offs for tests, and what they have put on a queue."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from ingest.config.model import Config
from ingest.ext.cstore_service import CStoreService
from ingest.queue.keys import data_key, stream_key
from ingest.queue.publisher import Publisher
from ingest.spool.reference import Location, Reference, parse_fields
from ingest.spool.spool import Spool
from tests.support.servers import Valkey
from tests.support.spools import claim, config


class Handing(Publisher):
    """A hand-off that the test promises things to."""

    def __init__(self, settings: Config, spool: Spool) -> None:
        counters = memoryview(bytearray(16)).cast("Q")
        self.cstore_service = CStoreService(
            spool.committer, spool.slot.name, counters, 0, 1, make_location=Location, durable=False
        )
        super().__init__(settings, spool, self.cstore_service)

    def put(self, place: str | Location) -> None:
        """Hand a committed entry to the publisher; a string is the path of a whole file."""
        self.cstore_service.add_unpublished(Location(place) if isinstance(place, str) else place)

    def put_many(self, places: Iterable[str | Location]) -> None:
        for place in places:
            self.put(place)


@contextmanager
def handing_off(settings: Config, *, start: bool = True) -> Iterator[tuple[Spool, Handing]]:
    spool = claim(settings)
    made = Handing(settings, spool)
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
    return [Reference(*parse_fields(fields)) for _, fields in client.xrange(stream_key(spool.id))]


def places(client: redis.Redis, spool: Spool) -> list[str]:
    return [reference.path for reference in references(client, spool)]


def carried(client: redis.Redis, spool: Spool, where: str) -> bytes:
    return b"".join(client.lrange(data_key(spool.id, where), 0, -1))
