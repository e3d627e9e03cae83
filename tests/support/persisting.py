"""A site for tests of the persist worker: spool, store, ledger and queue, without listeners."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import redis

from ingest.config.model import Config
from ingest.ledger import Instance, Ledger
from ingest.queue.consumer import StreamEntry
from ingest.queue.keys import DATA_CHUNK_BYTES, GROUP, SPOOLS_KEY, data_key, persisted_key, stream_key
from ingest.spool.reference import Location, Reference
from ingest.spool.segment import Segment
from ingest.spool.spool import read_spool_id
from ingest.workers.persist.worker import PersistWorker
from tests.support.instances import Made
from tests.support.ledgers import find_newest_instances
from tests.support.segments import SegmentWriter


@dataclass
class Site:
    """What a listener has left, and what became of it.

    Attributes:
        config: What workers get.
        client: The queue.
        spool: The spool's id.
        in_segments: Whether what is received goes into a segment.
    """

    config: Config
    client: redis.Redis
    spool: str
    number: int = 0
    in_segments: bool = False
    segment: SegmentWriter | None = None

    @property
    def stream(self) -> str:
        return stream_key(self.spool)

    def spooled(self, content: bytes, name: str = "", suffix: str = "") -> str:
        """Commit a file to the spool; returns where."""
        self.number += 1
        where = f"L0/ready/{name or f'{self.number:04x}'}{suffix}.dcm"
        path = self.config.spool_dir / where
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return where

    def in_segment(self, content: bytes, **how: Any) -> Location:
        """Write a file into the segment of this site; `how` as `SegmentWriter.append` takes it."""
        self.segment = self.segment or SegmentWriter(self.config.spool_dir)
        return Location(self.segment.path_in_spool, self.segment.append(content, **how), len(content))

    def receive(self, made: Made | bytes, **how: str) -> str:
        """Commit a file and hand its reference off, as a listener does; returns its place's name."""
        content = made.file if isinstance(made, Made) else made
        place = self.in_segment(content) if self.in_segments else Location(self.spooled(content, **how))
        self.hand_off(place)
        return place.name

    def hand_off(self, place: Location | str) -> None:
        """Put the reference on the stream; a string is the place of a whole file."""
        place, carrier = Location(place) if isinstance(place, str) else place, self.config.queue.carrier
        if carrier == "redis":
            content = (self.config.spool_dir / place.path).read_bytes()[place.offset :]
            content = content[: place.length] if place.length else content
            for start in range(0, len(content), DATA_CHUNK_BYTES):
                self.client.rpush(data_key(self.spool, place.name), content[start : start + DATA_CHUNK_BYTES])
            self.client.sadd(SPOOLS_KEY, self.spool)
            place = place._replace(length=len(content))
        self.refer(Reference(carrier, self.spool, *place))

    def refer(self, reference: Reference) -> None:
        """Put any reference on the stream."""
        self.client.xadd(self.stream, cast("dict[Any, Any]", reference.to_fields()))

    def work(self, consumer: str = "one", kind: "type[Drainer] | None" = None, **changes: Any) -> "Drainer":
        """Have a worker in this process do all that there is, and end."""
        config = self.config.model_copy(update=changes) if changes else self.config
        worker = (kind or Drainer)(config, threading.Event(), consumer)
        worker.run()
        return worker

    def instances(self) -> list[Instance]:
        """All rows, oldest first."""
        with self.ledger() as ledger:
            return find_newest_instances(ledger, 1_000_000)[::-1]

    @contextmanager
    def ledger(self) -> Iterator[Ledger]:
        """The ledger, migrated."""
        ledger = Ledger(self.config.ledger_url)
        try:
            ledger.migrate()
            yield ledger
        finally:
            ledger.close()

    def deliveries(self) -> int:
        """How many there are."""
        with self.ledger() as ledger:
            return sum(sum(states.values()) for states in ledger.count_rows().deliveries.values())

    def waiting(self) -> list[str]:
        """What lies in the spool."""
        return sorted(path.name for path in self.config.spool_dir.glob("L*/ready/*"))

    def undone(self) -> list[str]:
        """The places of what waits in segments."""
        found = []
        for path in sorted(self.config.spool_dir.glob("L*/segments/*.seg")):
            with Segment(path) as segment:
                where = str(path.relative_to(self.config.spool_dir))
                found += [Location(where, record.offset).name for record in segment.waiting()]
        return found

    def stored(self) -> list[str]:
        """All files of the store, below its root."""
        root = self.config.store_root
        return sorted(
            str(path.relative_to(root))
            for path in root.rglob("*")
            if path.is_file() and not path.is_relative_to(root / ".incoming")
        )

    def quarantined(self) -> list[Path]:
        """All files of the quarantine."""
        return sorted(self.config.quarantine_dir.glob("*.dcm"))

    def pending(self) -> int:
        """Entries that were delivered and are not done."""
        return int(cast("dict[str, int]", self.client.xpending(self.stream, GROUP))["pending"])

    def settled(self) -> bool:
        """Whether neither stream nor spool holds anything any more."""
        gone = not self.waiting() + self.undone() if self.config.queue.carrier == "spool" else True
        return gone and self.client.xlen(self.stream) == 0

    def persisted(self) -> list[str]:
        """What the listener is told of (`redis` carrier)."""
        return [
            where.decode()
            for where in cast("list[bytes]", self.client.lrange(persisted_key(self.spool), 0, -1))
        ]


class Drainer(PersistWorker):
    """A worker that ends when there is nothing left for it."""

    def _read_entries(self) -> list[StreamEntry]:
        entries = super()._read_entries()
        if not entries and not self._reads_own:
            self._stop.set()
        return entries


def sections_of(policy: str, carried: str, elsewhere: Path) -> dict[str, Any]:
    """Sections for a policy of duplicates, and for a way from the spool: "link", "copy", "segment", "redis".

    Args:
        policy: `[store] duplicates`.
        carried: The way; with "segment" the test sets `Site.in_segments`.
        elsewhere: A folder on another file system.
    """
    sections: dict[str, Any] = {"store": {"duplicates": policy}}
    if carried == "copy":
        sections["receive"] = {"spool_dir": elsewhere / "spool"}
    if carried == "redis":
        sections["queue"] = {"carrier": "redis"}
    return sections


def make_site(folder: Path, url: str, **sections: Any) -> Site:
    """A site below a folder; sections of the configuration as keywords, as dictionaries."""
    values: dict[str, Any] = {
        "node": {"data_dir": folder / "a var"},
        "queue": {"url": url},
        "destinations": [{"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1"}],
        "routes": [{"to": ["pacs"]}],
    }
    for section, changes in sections.items():
        values[section] = {**values.get(section, {}), **changes} if isinstance(changes, dict) else changes
    config = Config.model_validate(values)
    config.data_dir.mkdir(parents=True, exist_ok=True)
    identity = read_spool_id(config.spool_dir, create=True)
    assert identity is not None
    return Site(config, redis.Redis.from_url(url, socket_timeout=10), identity)
