"""How references get on a stream: one command for many of them where Redis runs scripts, else one each."""

from collections.abc import Iterable, Sequence
from typing import Any, Final, cast

import redis
import structlog

from ingest.queue.client import stream_key
from ingest.spool.reference import Place, Reference

SCRIPT: Final = r"""
for where, offset, length in string.gmatch(ARGV[3], '([^\n]+)\n(%d+)\n(%d+)\n') do
    redis.call('XADD', KEYS[1], '*',
        'c', ARGV[1], 's', ARGV[2], 'w', where, 'o', offset, 'l', length)
end
"""
"""Makes the same entries as `append`. KEYS: the stream; ARGV: carrier, spool, and the places, a line for each
of their values: the client then has nothing to do for each of them."""

AT_ONCE: Final = 1024
"""References that one command carries: some milliseconds during which the server does nothing else."""

log = structlog.get_logger()


class Pusher:
    """Appends many references of one spool at once (carrier "spool").

    The listener's event loop waits for whoever formats commands, so that is left to the server.
    """

    def __init__(self, client: redis.Redis, spool: str) -> None:
        """Prepare; nothing is sent yet.

        Args:
            client: The queue.
            spool: The spool's id.
        """
        self._client = client
        self._spool = spool
        # By its hash; a Redis that has forgotten it, or never knew it, is sent all of it once.
        self._script = client.register_script(SCRIPT)
        self._scripts = True

    def push(self, places: Sequence[Place]) -> None:
        """Append references to places in their order.

        Raises:
            redis.RedisError: Redis is away or full; some may have been appended, which does no harm.
        """
        for start in range(0, len(places), AT_ONCE):
            self._push(places[start : start + AT_ONCE])

    def _push(self, places: Sequence[Place]) -> None:
        lines = "".join([f"{where}\n{offset}\n{length}\n" for where, offset, length in places])
        if not self._scripts or lines.count("\n") != 3 * len(places):  # a name that is not ours
            self._push_each(places)
            return
        try:
            self._script(keys=[stream_key(self._spool)], args=["spool", self._spool, lines])
        except redis.exceptions.OutOfMemoryError:
            raise
        except redis.ResponseError as error:
            # Not allowed to run scripts, or for another reason: if it works without, then that was it.
            self._push_each(places)
            self._scripts = False
            log.warning(
                "queue_runs_no_scripts",
                error=str(error),
                remedy="allow the user of [queue] url EVALSHA and SCRIPT LOAD; handing off is dearer without",
            )

    def _push_each(self, places: Sequence[Place]) -> None:
        push(self._client, (Reference("spool", self._spool, *place) for place in places))


def push(client: redis.Redis, references: Iterable[Reference]) -> None:
    """Append references to the streams of their spools, in one round trip.

    Raises:
        redis.RedisError: As `Pusher.push`.
    """
    pipeline = client.pipeline(transaction=False)
    for reference in references:
        append(pipeline, reference)
    pipeline.execute()


def append(client: redis.Redis, reference: Reference) -> None:
    """Append one reference to the stream of its spool; with a pipeline, when that is executed."""
    client.xadd(stream_key(reference.spool), cast("dict[Any, Any]", reference.to_fields()))
