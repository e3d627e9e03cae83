"""Consume the streams of spool references, as one consumer of the group of persist workers.

Each entry is delivered to one consumer and stays pending there until it is acknowledged. The number of its
deliveries distinguishes an entry that kills its worker from an entry that only waits for a disk. Redis counts
the first delivery. Each further one counts only when a worker begins with the entry (`begin_attempts`),
because a worker may stop, or lose Redis, between reading an entry and beginning with it.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import redis
import structlog

from ingest.clock import unix_ms
from ingest.log import RateLimitedLog
from ingest.queue.keys import GROUP, data_key, persisted_key, stream_key
from ingest.queue.stream_writer import append_reference
from ingest.spool.reference import Reference, parse_fields

IDLE_MILLISECONDS: Final = 10_000
"""Any consumer may claim an entry whose own consumer has not renewed its claim for this long."""

AGELESS_LOOKS: Final = 4
"""An entry is claimed after so many looks in a row find it "delivered just now". Looks are seconds apart."""

STREAMS_SECONDS: Final = 2.0
"""Seconds for which a list of streams is used."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEntry(Reference):
    """A reference that a stream delivered to this consumer.

    Attributes:
        stream: Key of the stream.
        id: Id in the stream. It begins with the time of its XADD in Unix milliseconds.
        deliveries: Number of attempts, the one that may begin now included.
    """

    stream: str
    id: str
    deliveries: int = 1

    @property
    def added_at(self) -> int:
        """The time of the XADD in Unix milliseconds."""
        # INVARIANT 12: Redis is input. A client may choose the id of its entry, and with it a time to come.
        return min(int(self.id.partition("-")[0]), unix_ms())


class StreamConsumer:
    """One consumer of the group, on all streams of the node.

    Every method that asks Redis raises `redis.RedisError` while Redis is away. To repeat it does no harm.
    """

    def __init__(
        self,
        client: redis.Redis,
        consumer: str,
        streams: Callable[[], Sequence[str]],
        carriers: Collection[str] = ("spool", "redis"),
    ) -> None:
        """Prepare the consumer without asking Redis.

        Args:
            client: Client of Redis.
            consumer: Name of this consumer in the group.
            streams: Finds the streams that exist now.
            carriers: Accepted carriers. With "redis" a data set comes out of Redis: where that is not
                configured, any client of Redis could have the node store anything.
        """
        self._client = client
        self._carriers = carriers
        self._seldom = RateLimitedLog()
        self._consumer = consumer
        self._find_existing = streams
        self._streams: list[str] = []
        self._streams_until = 0.0
        self._own_after: dict[str, str] = {}
        self._ageless_looks: dict[str, dict[str, int]] = {}

    def find_streams(self) -> list[str]:
        """Return the streams that exist, and make the group on each new one."""
        if time.monotonic() >= self._streams_until:
            found = list(self._find_existing())
            for stream in found:
                if stream not in self._streams:
                    self._create_group(stream)
            self._streams = found
            self._streams_until = time.monotonic() + STREAMS_SECONDS
        return self._streams

    # --- read and claim

    def read_new(self, count: int, block_milliseconds: int) -> list[StreamEntry]:
        """Read entries that no consumer has, at most `count` of each stream."""
        wanted = dict.fromkeys(self.find_streams(), ">")
        return self._read_streams(wanted, count, block_milliseconds) if wanted else []

    def restart_own(self) -> None:
        """Make `read_own` start again with the oldest entry."""
        self._own_after = {}
        self._streams_until = 0.0
        self._streams = []

    def read_own(self, count: int) -> list[StreamEntry]:
        """Read entries that this consumer has not acknowledged: of its last run, or failed since.

        An entry that was delivered more than once comes alone. If it kills the worker, no other entry is
        delivered once more for that.
        """
        # INVARIANT 2: a restarted worker continues with its own entries at once.
        for stream in self.find_streams():
            after = self._own_after.get(stream, "0")
            counts = self._count_deliveries(stream, f"({after}", "+", count)
            if not counts:
                continue
            if max(counts.values()) > 1:
                counts = dict([next(iter(counts.items()))])
            self._own_after[stream] = next(reversed(counts))
            found = self._claim_entries(stream, counts)
            if found:
                return found
        return []

    def claim_abandoned(self, count: int) -> list[StreamEntry]:
        """Claim entries whose consumer has not renewed its claim for a while."""
        # INVARIANT 2: other workers continue the work of a killed one within seconds.
        for stream in self.find_streams():
            idle = self._count_deliveries(stream, "-", "+", count, idle_milliseconds=IDLE_MILLISECONDS)
            found = self._claim_entries(stream, idle, idle_milliseconds=IDLE_MILLISECONDS)
            found = found or self._claim_entries(stream, self._find_ageless(stream, count))
            if found:
                return found
        return []

    def _find_ageless(self, stream: str, count: int) -> dict[str, int]:
        """Find entries whose delivery lies in the future, because the clock of Redis was set back.

        Redis reports such an entry as delivered just now, each time, until the clock catches up. A consumer
        that works on an entry renews its claim every few seconds, so its entries show other times in between.
        """
        pending = self._ask_group(
            stream, lambda: self._client.xpending_range(stream, GROUP, min="-", max="+", count=10 * count)
        )
        counts = {
            row["message_id"].decode(): int(row["times_delivered"])
            for row in pending
            if row["time_since_delivered"] == 0
        }
        before = self._ageless_looks.get(stream, {})
        looks = {entry_id: before.get(entry_id, 0) + 1 for entry_id in counts}
        stuck = [entry_id for entry_id, seen in looks.items() if seen >= AGELESS_LOOKS][:count]
        self._ageless_looks[stream] = {
            entry_id: seen for entry_id, seen in looks.items() if entry_id not in stuck
        }
        return {entry_id: counts[entry_id] for entry_id in stuck}

    def redeliver_orphans(self) -> None:
        """Have entries delivered again that the group counts as delivered and that no consumer has.

        Our own commands leave no such entry, because XACK and XDEL are one transaction. Another client may
        acknowledge entries, delete a consumer or move the position of the group. The sweep would find the
        references of such entries on the stream, and leave them there for ever.
        """
        for stream in self.find_streams():
            pipeline = self._client.pipeline(transaction=True)
            pipeline.xlen(stream)
            pipeline.xinfo_groups(stream)
            pipeline.xrevrange(stream, count=1)
            length, groups, newest = cast("tuple[int, list[dict[str, Any]], list[Any]]", pipeline.execute())
            ours = next((group for group in groups if group["name"] == GROUP.encode()), None)
            if ours is None or not newest or length <= ours["pending"]:
                continue
            if _parse_id(ours["last-delivered-id"]) >= _parse_id(newest[0][0]):
                log.warning("stream_entries_rescued", stream=stream, entries=length - ours["pending"])
                self._client.xgroup_setid(stream, GROUP, "0")

    # --- work on entries

    def begin_attempts(self, entries: Iterable[StreamEntry]) -> None:
        """Count an attempt for each entry. Redis has counted that of a fresh entry when it was read."""
        # INVARIANT 11: our faults quarantine no image. What no worker begins with counts against no entry.
        self._set_counts({entry: entry.deliveries for entry in entries if entry.deliveries > 1})

    def renew_claims(self, entries: Iterable[StreamEntry], *, forgives: bool = False) -> None:
        """Renew the claim on entries that this consumer works on.

        Args:
            entries: The entries.
            forgives: Whether to forget their earlier attempts, because they failed without blame.
        """
        # INVARIANT 11: our faults quarantine no image.
        self._set_counts(dict.fromkeys(entries, 1 if forgives else None))

    def put_back(self, entries: Iterable[StreamEntry]) -> None:
        """Give up entries that are not to be blamed, as if this consumer had never read them.

        A fresh entry is appended again, so that the next reader gets it at once. An entry with earlier
        attempts stays pending with their count, because the count tells an entry that kills its workers from
        others. Any consumer may claim it after a while.
        """
        fresh, again = [], {}
        for entry in entries:
            if entry.deliveries == 1:
                fresh.append(entry)
            else:
                again[entry] = entry.deliveries - 1
        # INVARIANT 2: the stream holds each reference at every moment, also if this process dies here.
        pipeline = self._client.pipeline(transaction=True)
        for entry in fresh:
            append_reference(pipeline, entry)
            pipeline.xack(entry.stream, GROUP, entry.id)
            pipeline.xdel(entry.stream, entry.id)
        pipeline.execute()
        self._set_counts(again)

    def _set_counts(self, counts: Mapping[StreamEntry, int | None]) -> None:
        """Renew the claim on entries, and set how often they were delivered; None keeps the number."""
        by_command: dict[tuple[str, int | None], list[Any]] = {}
        for entry, count in counts.items():
            by_command.setdefault((entry.stream, count), []).append(entry.id)
        pipeline = self._client.pipeline(transaction=False)
        for (stream, count), ids in by_command.items():
            pipeline.xclaim(stream, GROUP, self._consumer, 0, ids, retrycount=count, justid=True)
        # A flushed Redis has no group. Then no entry is pending, and there is nothing to renew.
        pipeline.execute(raise_on_error=False)

    # --- acknowledge

    def acknowledge_entries(self, entries: Sequence[StreamEntry]) -> None:
        """Take persisted entries off their streams. With carrier "redis", report them to their listeners."""
        self._remove_entries(entries, are_persisted=True)

    def discard_entries(self, entries: Sequence[StreamEntry]) -> None:
        """Take entries without a data set off their streams. Their listeners still have the files."""
        self._remove_entries(entries, are_persisted=False)

    def _remove_entries(self, entries: Sequence[StreamEntry], *, are_persisted: bool) -> None:
        pipeline = self._client.pipeline(transaction=True)
        by_stream: dict[str, list[str]] = {}
        for entry in entries:
            by_stream.setdefault(entry.stream, []).append(entry.id)
            if entry.carrier == "redis":
                if are_persisted:
                    pipeline.rpush(persisted_key(entry.spool), entry.location.name)
                pipeline.delete(data_key(entry.spool, entry.location.name))
        for stream, ids in by_stream.items():
            # Without a group XACK answers 0, which is no error.
            pipeline.xack(stream, GROUP, *ids)
            pipeline.xdel(stream, *ids)
        pipeline.execute()

    # --- commands and answers

    def _claim_entries(
        self, stream: str, counts: Mapping[str, int], *, idle_milliseconds: int = 0
    ) -> list[StreamEntry]:
        """Claim pending entries, and read them. With JUSTID a claim leaves the number of deliveries as it is.

        Args:
            stream: Key of the stream.
            counts: Earlier deliveries of each entry by its id.
            idle_milliseconds: Leave entries alone that a consumer has claimed since.
        """
        if not counts:
            return []
        claimed = cast(
            "list[bytes]",
            self._client.xclaim(stream, GROUP, self._consumer, idle_milliseconds, list(counts), justid=True),
        )
        pipeline = self._client.pipeline(transaction=False)
        for entry_id in claimed:
            pipeline.xrange(stream, min=entry_id, max=entry_id)
        # An entry that was deleted while pending is not on the stream.
        raw = [
            (entry_id, found[0][1] if found else None)
            for entry_id, found in zip(claimed, pipeline.execute(), strict=True)
        ]
        return [replace(entry, deliveries=counts[entry.id] + 1) for entry in self._parse_entries(stream, raw)]

    def _read_streams(self, wanted: dict[str, str], count: int, block: int) -> list[StreamEntry]:
        try:
            answer = self._client.xreadgroup(
                GROUP, self._consumer, cast("dict[Any, Any]", wanted), count=count, block=block
            )
        except redis.ResponseError as error:
            if not _is_missing_group(error):
                raise
            for stream in wanted:
                self._create_group(stream)
            return []
        found: list[StreamEntry] = []
        for name, entries in cast("list[tuple[bytes, list[Any]]]", answer or []):
            found += self._parse_entries(name.decode(), entries)
        return found

    def _parse_entries(
        self, stream: str, raw: Iterable[tuple[bytes, dict[bytes, bytes] | None]]
    ) -> list[StreamEntry]:
        """Parse entries as redis-py returns them. Entries that are no spool reference leave the stream."""
        found, useless = [], []
        for entry_id, fields in raw:
            # An entry that was deleted while pending has no fields.
            entry = self._parse_entry(stream, entry_id, fields) if fields else None
            if entry is None:
                useless.append(entry_id)
            else:
                found.append(entry)
        if useless:
            pipeline = self._client.pipeline(transaction=True)
            pipeline.xack(stream, GROUP, *useless)
            pipeline.xdel(stream, *useless)
            pipeline.execute()
        return found

    def _parse_entry(self, stream: str, entry_id: bytes, fields: dict[bytes, bytes]) -> StreamEntry | None:
        """Parse an entry; None if the spool of the stream cannot have published it."""
        try:
            # INVARIANT 12: Redis is input.
            entry = StreamEntry(*parse_fields(fields), stream=stream, id=entry_id.decode())
            if stream_key(entry.spool) != stream or entry.carrier not in self._carriers:
                raise ValueError(f"carrier {entry.carrier}, spool {entry.spool}")
        except ValueError as error:
            self._seldom.warning(
                "stream_entry_refused", stream=stream, id=entry_id.decode(), error=str(error)[:300]
            )
            return None
        return entry

    def _count_deliveries(
        self, stream: str, first: str, last: str, count: int, *, idle_milliseconds: int | None = None
    ) -> dict[str, int]:
        """Return how often pending entries were delivered, by id, in the order of the stream.

        Args:
            stream: Key of the stream.
            first: First id.
            last: Last id.
            count: Largest number of entries.
            idle_milliseconds: Ask for entries of all consumers that were claimed that long ago. Otherwise
                ask for our own.
        """
        consumer = self._consumer if idle_milliseconds is None else None
        pending = self._ask_group(
            stream,
            lambda: self._client.xpending_range(
                stream, GROUP, min=first, max=last, count=count, consumername=consumer, idle=idle_milliseconds
            ),
        )
        return {row["message_id"].decode(): int(row["times_delivered"]) for row in pending}

    def _ask_group(self, stream: str, ask: Callable[[], Any]) -> Any:
        """Ask Redis; if a flushed Redis has no group any more, make it and ask once more."""
        try:
            return ask()
        except redis.ResponseError as error:
            if not _is_missing_group(error):
                raise
            self._create_group(stream)
            return ask()

    def _create_group(self, stream: str) -> None:
        try:
            # From the first entry on, because entries may be older than the group.
            self._client.xgroup_create(stream, GROUP, id="0", mkstream=True)
        except redis.ResponseError as error:
            if _read_error_code(error) != "BUSYGROUP":  # the group exists
                raise


def _is_missing_group(error: redis.ResponseError) -> bool:
    """Whether Redis answered that the stream or its group does not exist."""
    return _read_error_code(error) == "NOGROUP"


def _read_error_code(error: redis.ResponseError) -> str:
    """Return the error code of a RESP error reply: its first word. redis-py has no field for these codes."""
    return str(error).partition(" ")[0]


def _parse_id(entry_id: bytes) -> tuple[int, ...]:
    """Parse the id of an entry into numbers, which compare as Redis compares ids."""
    return tuple(int(part) for part in entry_id.split(b"-"))
