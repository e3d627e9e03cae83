"""The consumer of wake-ups: an RQ worker that takes job ids off RQ's queue, and never reads a job.

A client that may write to Redis may also write RQ jobs. RQ imports and calls the function that a job names,
does the same with its callbacks, and unpickles its data. This worker therefore fetches no job. The id alone
names one of the configured destinations, and any other id is dropped. RQ's maintenance, scheduler and command
channel never run, because they act on jobs or obey commands from Redis.

The registration is RQ's own. `rq info` and rq-dashboard therefore show queue and workers.
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
"""Time that a killed worker stays registered, without the minute that RQ adds."""

BEAT_SECONDS: Final = 1
"""Longest wait of one command for a wake-up. A worker that is asked to stop ends within this time."""

log = structlog.get_logger()


class WakeupConsumer(SimpleWorker):
    """Consumes the wake-ups of the configured destinations. Every method raises `redis.RedisError`."""

    def __init__(
        self, name: str, client: redis.Redis, stop: threading.Event, destinations: Mapping[str, object]
    ) -> None:
        """Prepare. This asks the server for the address of the client.

        Args:
            name: Name that is unique among living workers.
            client: Connection to Redis.
            stop: Ends the loop.
            destinations: Configured destinations by name.
        """
        super().__init__(
            [FORWARD_QUEUE], name=name, connection=client, serializer=JSONSerializer, worker_ttl=TTL_SECONDS
        )
        self._stop = stop
        self._destination_by_prefix = {
            job_id_prefix(destination): destination for destination in destinations
        }
        self._refusals = RateLimitedLog()

    def run(self, drain: Callable[[str], None], on_ready: Callable[[], None]) -> None:
        """Consume wake-ups until asked to stop.

        Args:
            drain: Called with the name of a configured destination.
            on_ready: Called once, when the worker is registered.

        Raises:
            redis.RedisError: Redis is away.
            ValueError: A worker of this name is already registered.
        """
        self.register_birth()  # type: ignore[no-untyped-call]
        self.set_state("idle")
        on_ready()
        while not self._stop.is_set():
            self.heartbeat()
            popped = cast("list[bytes] | None", self.connection.blpop([RQ_QUEUE_KEY], BEAT_SECONDS))
            destination = self._destination_of(popped[1]) if popped else None
            if destination is not None:
                self.set_state("busy")
                drain(destination)
                self.set_state("idle")
        self.register_death()  # type: ignore[no-untyped-call]

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """Send the heartbeat of RQ. Registers the worker again if Redis was emptied."""
        if pipeline is None and not self.connection.hexists(self.key, "birth"):
            self.register_birth()  # type: ignore[no-untyped-call]
        super().heartbeat(timeout, pipeline)

    def execute_job(self, job: object, queue: object) -> NoReturn:
        """Refuse to execute a job. INVARIANT 12: nothing from Redis is executed."""
        raise NotImplementedError("this worker executes no jobs of RQ")

    def work(self, *_: object, **__: object) -> NoReturn:
        """Refuse RQ's own loop, which reads jobs."""
        raise NotImplementedError("call run")

    def _destination_of(self, job: bytes) -> str | None:
        """Return the destination that the id of a job names; None for any other id, with a log event."""
        # INVARIANT 12: the id is compared with the configuration before anything happens
        name = self._destination_by_prefix.get(job.rpartition(b"-")[0].decode("ascii", "replace"))
        if name is None:
            # The id may also be that of a destination that a reload removed, or of an older release.
            self._refusals.warning(
                "job_refused", job=repr(job[:80]), remedy="see who else writes to this Redis"
            )
            return None
        self.connection.unlink(job_key(job))
        return name
