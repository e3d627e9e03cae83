"""The streams that one persist worker reads."""

import itertools
from typing import Final, cast

import redis

from ingest.config.model import Config
from ingest.queue.keys import SPOOLS_KEY, persisted_key, stream_key
from ingest.queue.wakeups import RQ_KEYS, drain_key
from ingest.spool.reference import SPOOL_ID_PATTERN
from ingest.spool.spool import read_spool_id

STREAMS_MAX: Final = 1_000
"""Limit on the spools of one node. Any client of Redis can announce more."""


class SpoolStreams:
    """Finds the stream of each spool.

    Attributes:
        spool_id: The id of the spool on this host, or None while there is none.
    """

    def __init__(self, config: Config, client: redis.Redis) -> None:
        """Prepare to find streams. Nothing is read yet."""
        self._config = config
        self._client = client
        self._found: list[str] = []
        self.spool_id: str | None = None

    def find_streams(self) -> list[str]:
        """Return the stream of the spool on this host, and with carrier "redis" those of other hosts.

        Raises:
            redis.RedisError: Redis is away.
            SpoolError: The spool cannot be used.
        """
        self.spool_id = read_spool_id(self._config.spool_dir)
        streams = {stream_key(self.spool_id)} if self.spool_id else set()
        if self._config.queue.carrier == "redis":
            streams |= self._find_announced()
        self._found = sorted(streams)
        return self._found

    def _find_announced(self) -> set[str]:
        """Return the streams that listeners on other hosts announced and that exist."""
        # INVARIANT 12: Redis is input. Only ids that a spool can have count, and not more than STREAMS_MAX.
        names = cast("set[bytes]", self._client.smembers(SPOOLS_KEY))
        spools = [name.decode("ascii", "replace") for name in names]
        streams = sorted(stream_key(spool) for spool in spools if SPOOL_ID_PATTERN.fullmatch(spool))
        pipeline = self._client.pipeline(transaction=False)
        for stream in streams:
            pipeline.exists(stream)
        exist = pipeline.execute()
        return set(itertools.islice(itertools.compress(streams, exist), STREAMS_MAX))

    def key_types(self) -> dict[str, str]:
        """Return the keys in Redis that persist workers use, with the type of each."""
        types = {**RQ_KEYS, SPOOLS_KEY: "set", **dict.fromkeys(self._found, "stream")}
        types |= {persisted_key(stream.removeprefix(stream_key(""))): "list" for stream in self._found}
        return types | {drain_key(name): "string" for name in self._config.target_names}
