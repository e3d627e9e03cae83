"""Appends references to the streams of their spools, many with one command."""

from collections.abc import Iterable, Sequence
from typing import Any, Final, cast

import redis
import structlog

from ingest.queue.keys import stream_key
from ingest.spool.reference import Location, Reference

APPEND_SCRIPT: Final = r"""
for where, offset, length in string.gmatch(ARGV[3], '([^\n]+)\n(%d+)\n(%d+)\n') do
    redis.call('XADD', KEYS[1], '*',
        'c', ARGV[1], 's', ARGV[2], 'w', where, 'o', offset, 'l', length)
end
"""
"""Creates the same entries as `append_reference`.

KEYS: the stream. ARGV: the carrier, the spool, and the locations, one line for each of their values. With one
long argument the client formats one command instead of a thousand.
"""

BATCH_REFERENCES: Final = 1024
"""References in one command. The server needs some milliseconds for it, and serves nobody meanwhile."""

log = structlog.get_logger()


class StreamWriter:
    """Appends references of one spool (carrier `spool`).

    The publisher shares the interpreter lock with the event loop of its listener. To format a command for
    each reference would delay the C-STORE responses. A script moves that work to the server.
    """

    def __init__(self, client: redis.Redis, spool: str) -> None:
        """Prepare a writer; nothing is sent yet.

        Args:
            client: The client of the queue.
            spool: The id of the spool.
        """
        self._client = client
        self._spool = spool
        # The client calls the script by its hash, and sends its text once if Redis does not know the hash.
        self._script = client.register_script(APPEND_SCRIPT)
        self._may_run_scripts = True

    def append(self, locations: Sequence[Location]) -> None:
        """Append references to these locations, in their order.

        Raises:
            redis.RedisError: Redis is away or full. Some references may have been appended; to append them
                again is harmless.
        """
        for start in range(0, len(locations), BATCH_REFERENCES):
            self._append_batch(locations[start : start + BATCH_REFERENCES])

    def _append_batch(self, locations: Sequence[Location]) -> None:
        lines = "".join([f"{path}\n{offset}\n{length}\n" for path, offset, length in locations])
        has_foreign_name = lines.count("\n") != 3 * len(locations)
        if not self._may_run_scripts or has_foreign_name:
            self._append_each(locations)
            return
        try:
            self._script(keys=[stream_key(self._spool)], args=["spool", self._spool, lines])
        except redis.exceptions.OutOfMemoryError:
            raise
        except redis.ResponseError as error:
            # The user of the URL may not run scripts, or the error has another cause. If the commands work
            # without the script, then the script was the cause.
            self._append_each(locations)
            self._may_run_scripts = False
            log.warning(
                "queue_runs_no_scripts",
                error=str(error),
                remedy="allow the user of [queue] url EVALSHA and SCRIPT LOAD; publishing costs more without",
            )

    def _append_each(self, locations: Sequence[Location]) -> None:
        append_references(self._client, (Reference("spool", self._spool, *each) for each in locations))


def append_references(client: redis.Redis, references: Iterable[Reference]) -> None:
    """Append references to the streams of their spools, in one round trip.

    Raises:
        redis.RedisError: See `StreamWriter.append`.
    """
    pipeline = client.pipeline(transaction=False)
    for reference in references:
        append_reference(pipeline, reference)
    pipeline.execute()


def append_reference(client: redis.Redis, reference: Reference) -> None:
    """Append one reference to the stream of its spool. With a pipeline this happens at its execution."""
    client.xadd(stream_key(reference.spool), cast("dict[Any, Any]", reference.to_fields()))
