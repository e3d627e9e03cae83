"""An RQ worker that takes wake-ups off RQ's queue, and reads nothing of a job but its id.

A client that may write to Redis may also write RQ's jobs. RQ imports and calls the function that a job names,
does the same with its callbacks, and unpickles what it holds. This worker therefore never fetches a job: the
id alone tells which of the configured destinations to drain, and any other id is dropped. RQ's maintenance,
scheduler and command channel, which act on jobs or obey commands out of Redis, never run.

The registration is RQ's own, so that `rq info` and rq-dashboard show queue and workers.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn, cast

import redis
import structlog
from rq import SimpleWorker
from rq.serializers import JSONSerializer

from ingest.log import RateLimitedLog
from ingest.queue.wakeups import FORWARD_QUEUE, RQ_QUEUE_KEY, job_id_prefix, job_key

TTL_SECONDS: Final = 30
"""How long a worker that was killed stays registered, less the minute that RQ adds."""

BEAT_SECONDS: Final = 1
"""How long one command waits for a wake-up; a worker that is told to stop ends within this time."""

log = structlog.get_logger()


class Worker(SimpleWorker):
    """Takes the wake-ups of the configured destinations; every method raises `redis.RedisError`."""

    def __init__(
        self, name: str, client: redis.Redis, stop: threading.Event, destinations: Mapping[str, object]
    ) -> None:
        """Prepare; asks the server for the address of this client.

        Args:
            name: Unique among living workers.
            client: Of Redis.
            stop: Ends the loop.
            destinations: The configured ones, by name.
        """
        super().__init__(
            [FORWARD_QUEUE], name=name, connection=client, serializer=JSONSerializer, worker_ttl=TTL_SECONDS
        )
        self._stop = stop
        self._names = {job_id_prefix(destination): destination for destination in destinations}
        self._refused = RateLimitedLog()

    def run(self, drain: Callable[[str], None], ready: Callable[[], None]) -> None:
        """Take wake-ups until told to stop.

        Args:
            drain: Called with the name of a configured destination.
            ready: Called once, when the worker is registered.

        Raises:
            redis.RedisError: Redis is away.
            ValueError: A worker of this name is registered already.
        """
        self.register_birth()  # type: ignore[no-untyped-call]
        self.set_state("idle")
        ready()
        while not self._stop.is_set():
            self.heartbeat()
            taken = cast("list[bytes] | None", self.connection.blpop([RQ_QUEUE_KEY], BEAT_SECONDS))
            destination = self._destination_of(taken[1]) if taken else None
            if destination is not None:
                self.set_state("busy")
                drain(destination)
                self.set_state("idle")
        self.register_death()  # type: ignore[no-untyped-call]

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """As RQ does it; registers again where Redis was emptied."""
        if pipeline is None and not self.connection.hexists(self.key, "birth"):
            self.register_birth()  # type: ignore[no-untyped-call]
        super().heartbeat(timeout, pipeline)

    def execute_job(self, job: object, queue: object) -> NoReturn:
        """Refuse: no job is ever read."""
        raise NotImplementedError("this worker executes no jobs of RQ")

    def work(self, *_: object, **__: object) -> NoReturn:
        """Refuse: RQ's own loop would read jobs."""
        raise NotImplementedError("call run")

    def _destination_of(self, job: bytes) -> str | None:
        """The destination that a job's id stands for; None, with a line in the log, for any other id."""
        name = self._names.get(job.rpartition(b"-")[0].decode("ascii", "replace"))
        if name is None:
            # Also of a destination that a reload has removed, and of an older release.
            self._refused.warning(
                "job_refused", job=repr(job[:80]), remedy="see who else writes to this Redis"
            )
            return None
        self.connection.unlink(job_key(job))
        return name
