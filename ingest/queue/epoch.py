"""The queue epoch: whether Redis still has everything that was published.

A listener asks for the epoch before it compares the whole spool with the whole stream. While the epoch is
unchanged, Redis cannot have lost a reference, and the comparison may wait.
"""

import uuid

import redis

from ingest.queue.keys import epoch_key, stream_key


class QueueEpoch:
    """The epoch of one Redis, as one listener saw it last.

    Attributes:
        key: The key that this listener sets. It disappears when Redis is emptied.
    """

    def __init__(self, client: redis.Redis, spool: str) -> None:
        self._client = client
        self._stream = stream_key(spool)
        self.key = epoch_key(spool, uuid.uuid4().hex)
        self._run_id = ""
        self._entries_added = 0

    def is_unchanged(self) -> bool:
        """Whether Redis has run without a break since the last call, and lost neither data nor our stream.

        The first call returns False.

        Raises:
            redis.RedisError: Redis is away.
        """
        # INVARIANT 2: a restart changes the run id, FLUSHDB removes the key, and the counter of a deleted
        # stream starts at zero.
        run_id = self._client.info("server").get("run_id", "")
        has_key = self._client.set(self.key, 1, ex=3600, get=True)
        entries_added = self._read_entries_added()
        is_unchanged = bool(has_key) and run_id == self._run_id and entries_added >= self._entries_added
        self._run_id, self._entries_added = run_id, entries_added
        return is_unchanged

    def _read_entries_added(self) -> int:
        """Return the number of entries that the stream ever had.

        It is 0 if there is no stream, or if the server is too old to count.
        """
        try:
            info = self._client.xinfo_stream(self._stream)
        except redis.ResponseError:
            return 0
        return int(info.get("entries-added", 0))
