"""Whether a Redis can have forgotten references that were put on its stream: it was emptied, or began anew.

As long as it stands, looking for what is missing can wait: that reads the whole spool and the whole stream.
"""

import uuid

import redis

from ingest.queue.client import stream_key, witness_key


class Witness:
    """One listener's memory of one Redis.

    Attributes:
        key: What this listener has set there.
    """

    def __init__(self, client: redis.Redis, spool: str) -> None:
        self._client = client
        self._stream = stream_key(spool)
        self.key = witness_key(spool, uuid.uuid4().hex)
        self._run = ""
        self._added = 0

    def stands(self) -> bool:
        """Whether this is the Redis of the last call, its data and our stream with it; False the first time.

        Raises:
            redis.RedisError: Redis is away.
        """
        run = self._client.info("server").get("run_id", "")
        there = self._client.set(self.key, 1, ex=3600, get=True)
        added = self._entries_added()
        stands = bool(there) and run == self._run and added >= self._added
        self._run, self._added = run, added
        return stands

    def _entries_added(self) -> int:
        """Entries that the stream ever had; 0 where there is none, or the server does not count."""
        try:
            facts = self._client.xinfo_stream(self._stream)
        except redis.ResponseError:
            return 0
        return int(facts.get("entries-added", 0))
