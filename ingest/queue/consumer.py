"""The persist workers' side of the streams: what is theirs to do, what others left, and what is done.

Every entry is delivered to one consumer and stays pending there until `done`. The count of its deliveries
tells an entry that kills its worker from one that merely waits for a disk.
"""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import redis
import structlog

from ingest.clock import unix_ms
from ingest.log import Seldom
from ingest.queue.keys import GROUP, data_key, persisted_key, stream_key
from ingest.spool.reference import Reference

IDLE_MILLISECONDS: Final = 10_000
"""An entry that its consumer has not touched for so long is anybody's."""

AGELESS_LOOKS: Final = 4
"""How often in a row an entry was delivered "just now" before we take it over: looks are seconds apart."""

STREAMS_SECONDS: Final = 2.0
"""How old the list of streams may be."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a stream, delivered to us.

    Attributes:
        stream: The stream's key.
        id: Its id there, which begins with when it was added, in Unix milliseconds.
        reference: What it says.
        deliveries: How often it was delivered, this time included.
    """

    stream: str
    id: str
    reference: Reference
    deliveries: int = 1

    @property
    def added_at(self) -> int:
        """When it was added, in Unix milliseconds."""
        # Whoever adds an entry may choose its id.
        return min(int(self.id.partition("-")[0]), unix_ms())


class Inbox:
    """The consumer `consumer` in the group of persist workers, on every stream that `streams` names."""

    def __init__(
        self,
        client: redis.Redis,
        consumer: str,
        streams: Callable[[], Sequence[str]],
        carriers: Collection[str] = ("spool", "redis"),
    ) -> None:
        """Prepare; asks nothing yet.

        Args:
            client: Of Redis.
            consumer: Our name in the group.
            streams: Finds the streams that there are now.
            carriers: Those that references may have. With `redis` a data set comes out of Redis: where that
                is not configured, whoever can write there could have us store anything.
        """
        self._client = client
        self._carriers = carriers
        self._seldom = Seldom()
        self._consumer = consumer
        self._find_streams = streams
        self._streams: list[str] = []
        self._streams_until = 0.0
        self._own_after: dict[str, str] = {}
        self._ageless_looks: dict[str, dict[bytes, int]] = {}

    def streams(self) -> list[str]:
        """The streams as they are now; their groups are there.

        Raises:
            redis.RedisError: Redis is away.
        """
        if time.monotonic() >= self._streams_until:
            found = list(self._find_streams())
            for stream in found:
                if stream not in self._streams:
                    self._make_group(stream)
            self._streams = found
            self._streams_until = time.monotonic() + STREAMS_SECONDS
        return self._streams

    def fresh(self, count: int, block_milliseconds: int) -> list[Entry]:
        """New entries, at most `count` of each stream.

        Raises:
            redis.RedisError: Redis is away.
        """
        wanted = dict.fromkeys(self.streams(), ">")
        return self._read(wanted, count, block_milliseconds) if wanted else []

    def begin_own(self) -> None:
        """Have `own` begin anew."""
        self._own_after = {}
        self._streams_until = 0.0
        self._streams = []

    def own(self, count: int) -> list[Entry]:
        """What was delivered to this consumer before and is not done: its last run's, or what failed.

        An entry that was delivered often comes alone: if it kills the worker, it alone has one delivery more.

        Raises:
            redis.RedisError: Redis is away.
        """
        for stream in self.streams():
            after = self._own_after.get(stream, "0")
            deliveries = self._deliveries(stream, f"({after}", "+", count)
            if not deliveries:
                continue
            alone = max(deliveries.values()) > 1
            found = self._read({stream: after}, 1 if alone else count, None)
            self._own_after[stream] = next(reversed(deliveries)) if not alone else next(iter(deliveries))
            if found:
                return self._counted(stream, found)
        return []

    def abandoned(self, count: int) -> list[Entry]:
        """What nobody has touched for a while, from any consumer; now ours.

        Raises:
            redis.RedisError: Redis is away.
        """
        for stream in self.streams():
            start = "0-0"
            while True:
                # One call looks at ten times `count` entries; idle ones may stand behind those in hand.
                answer = self._claim(stream, start, count)
                found = self._entries(stream, answer[1])
                if found:
                    return self._counted(stream, found)
                start = answer[0].decode()
                if start == "0-0":
                    break
            found = self._ageless(stream, count)
            if found:
                return self._counted(stream, found)
        return []

    def _ageless(self, stream: str, count: int) -> list[Entry]:
        """What was delivered at a time that lies ahead, for the clock of Redis was set back; now ours.

        Redis says of such an entry that it was touched just now, each time that it is asked, and would say so
        for as long as the clock was set back. An entry that somebody works on is touched every few seconds.
        """
        pending = self._grouped(
            stream, lambda: self._client.xpending_range(stream, GROUP, min="-", max="+", count=10 * count)
        )
        ids = {row["message_id"] for row in pending if row["time_since_delivered"] == 0}
        before = self._ageless_looks.get(stream, {})
        looks = {number: before.get(number, 0) + 1 for number in ids}
        stuck = [number for number, seen in looks.items() if seen >= AGELESS_LOOKS][:count]
        self._ageless_looks[stream] = {number: seen for number, seen in looks.items() if number not in stuck}
        if not stuck:
            return []
        return self._entries(
            stream, cast("list[Any]", self._client.xclaim(stream, GROUP, self._consumer, 0, stuck))
        )

    def rescue(self) -> None:
        """Have entries delivered again that the group takes for delivered, and that no consumer has.

        Our own commands leave none such: what is done is acknowledged and deleted in one step. Another client
        may acknowledge entries, delete a consumer, or move the group's position. The sweep would find their
        references on the stream, and leave them there for ever.

        Raises:
            redis.RedisError: Redis is away.
        """
        for stream in self.streams():
            pipeline = self._client.pipeline(transaction=True)
            pipeline.xlen(stream)
            pipeline.xinfo_groups(stream)
            pipeline.xrevrange(stream, count=1)
            length, groups, newest = cast("tuple[int, list[dict[str, Any]], list[Any]]", pipeline.execute())
            ours = next((group for group in groups if group["name"] == GROUP.encode()), None)
            if ours is None or not newest or length <= ours["pending"]:
                continue
            if _position(ours["last-delivered-id"]) >= _position(newest[0][0]):
                log.warning("stream_entries_rescued", stream=stream, entries=length - ours["pending"])
                self._client.xgroup_setid(stream, GROUP, "0")

    def touch(self, entries: Iterable[Entry], *, forgive: bool = False) -> None:
        """Say that these are still in hand.

        Args:
            entries: Them.
            forgive: Whether their earlier deliveries are to be forgotten: what failed was not theirs to mend.

        Raises:
            redis.RedisError: Redis is away.
        """
        by_stream: dict[str, list[str]] = {}
        for entry in entries:
            by_stream.setdefault(entry.stream, []).append(entry.id)
        pipeline = self._client.pipeline(transaction=False)
        for stream, ids in by_stream.items():
            count = 1 if forgive else None
            pipeline.xclaim(
                stream, GROUP, self._consumer, 0, cast("list[Any]", ids), retrycount=count, justid=True
            )
        # Without the group, which a flushed Redis has forgotten, nothing is pending either.
        pipeline.execute(raise_on_error=False)

    def done(self, entries: Sequence[Entry]) -> None:
        """Take entries off their streams; with carrier `redis`, let the listeners know what is persisted.

        Raises:
            redis.RedisError: Redis is away; doing it again does no harm.
        """
        self._take_off(entries, persisted=True)

    def drop(self, entries: Sequence[Entry]) -> None:
        """Take entries off their streams whose data sets are not there; their listeners still have the files.

        Raises:
            redis.RedisError: Redis is away; doing it again does no harm.
        """
        self._take_off(entries, persisted=False)

    def _take_off(self, entries: Sequence[Entry], *, persisted: bool) -> None:
        pipeline = self._client.pipeline(transaction=True)
        by_stream: dict[str, list[str]] = {}
        for entry in entries:
            by_stream.setdefault(entry.stream, []).append(entry.id)
            reference = entry.reference
            if reference.carrier == "redis":
                if persisted:
                    pipeline.rpush(persisted_key(reference.spool), reference.location.name)
                pipeline.delete(data_key(reference.spool, reference.location.name))
        for stream, ids in by_stream.items():
            # XACK of an entry without a group answers 0; it is no error.
            pipeline.xack(stream, GROUP, *ids)
            pipeline.xdel(stream, *ids)
        pipeline.execute()

    def _claim(self, stream: str, start: str, count: int) -> list[Any]:
        return cast(
            "list[Any]",
            self._grouped(
                stream,
                lambda: self._client.xautoclaim(
                    stream, GROUP, self._consumer, IDLE_MILLISECONDS, start_id=start, count=count
                ),
            ),
        )

    def _read(self, wanted: dict[str, str], count: int, block: int | None) -> list[Entry]:
        try:
            answer = self._client.xreadgroup(
                GROUP, self._consumer, cast("dict[Any, Any]", wanted), count=count, block=block
            )
        except redis.ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise
            for stream in wanted:
                self._make_group(stream)
            return []
        found: list[Entry] = []
        for name, entries in cast("list[tuple[bytes, list[Any]]]", answer or []):
            found += self._entries(name.decode(), entries)
        return found

    def _entries(self, stream: str, raw: Iterable[tuple[bytes, dict[bytes, bytes] | None]]) -> list[Entry]:
        found, useless = [], []
        for number, fields in raw:
            # An entry that was deleted while pending has no fields.
            reference = self._reference(stream, number, fields) if fields else None
            if reference is None:
                useless.append(number)
            else:
                found.append(Entry(stream, number.decode(), reference))
        if useless:
            pipeline = self._client.pipeline(transaction=True)
            pipeline.xack(stream, GROUP, *useless)
            pipeline.xdel(stream, *useless)
            pipeline.execute()
        return found

    def _reference(self, stream: str, number: bytes, fields: dict[bytes, bytes]) -> Reference | None:
        """The reference in an entry; None where it is not one that the stream's spool can have put there."""
        try:
            reference = Reference.from_fields(fields)
            if stream_key(reference.spool) != stream or reference.carrier not in self._carriers:
                raise ValueError(f"carrier {reference.carrier}, spool {reference.spool}")
        except ValueError as error:
            self._seldom.warning(
                "stream_entry_refused", stream=stream, id=number.decode(), error=str(error)[:300]
            )
            return None
        return reference

    def _counted(self, stream: str, entries: Sequence[Entry]) -> list[Entry]:
        deliveries = self._deliveries(stream, entries[0].id, entries[-1].id, 10 * len(entries))
        return [Entry(stream, entry.id, entry.reference, deliveries.get(entry.id, 1)) for entry in entries]

    def _deliveries(self, stream: str, first: str, last: str, count: int) -> dict[str, int]:
        """How often our own pending entries were delivered, by id, in order."""
        pending = self._grouped(
            stream,
            lambda: self._client.xpending_range(
                stream, GROUP, min=first, max=last, count=count, consumername=self._consumer
            ),
        )
        return {row["message_id"].decode(): int(row["times_delivered"]) for row in pending}

    def _grouped(self, stream: str, ask: Callable[[], Any]) -> Any:
        """Ask; once more where a flushed Redis had forgotten the group."""
        try:
            return ask()
        except redis.ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise
            self._make_group(stream)
            return ask()

    def _make_group(self, stream: str) -> None:
        try:
            # From the first entry on: what was added before the group was made is to be done, too.
            self._client.xgroup_create(stream, GROUP, id="0", mkstream=True)
        except redis.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise


def _position(identifier: bytes) -> tuple[int, ...]:
    """An entry's id as numbers, which compare as Redis compares them."""
    return tuple(int(part) for part in identifier.split(b"-"))
