"""Telling the forward workers that a destination has something due: one RQ job "drain D", unless one waits.

The job is a hint. What is to be sent, how often it was tried and when it is due again stands in the ledger.
"""

import hashlib
import re
import uuid
from typing import Final

import redis
from rq import Queue
from rq.serializers import JSONSerializer

QUEUE: Final = "forward"
"""The RQ queue of the forward workers."""

JOB: Final = "workers.forward.drain"
"""What RQ's tools show of a job, with the destination's name; no worker ever imports or calls it."""

RQ_QUEUE_KEY: Final = f"rq:queue:{QUEUE}"
"""The list of ids of waiting jobs."""

RQ_KEYS: Final = {
    RQ_QUEUE_KEY: "list",
    "rq:queues": "set",
    "rq:workers": "set",
    f"rq:workers:{QUEUE}": "set",
}
"""RQ's keys that all of us use, and the type of each."""

WAITING_MARK: Final = b"1"
"""What the drain key holds while a job waits; another value means that a wake-up is of no use for a while."""

WAITS_MILLISECONDS: Final = 30_000
"""How long a woken destination is not woken again, unless a worker began to drain it and removed the key."""

JOB_TTL_SECONDS: Final = 60
"""How long a job waits for a worker; what it stood for is found in the ledger then."""


def drain_key(destination: str) -> str:
    """The key that is there while a job for this destination waits; who takes the job removes it."""
    return f"ingest:drain:{destination}"


def hold_key(destination: str) -> str:
    """The key that is there while a destination is left alone after a failure."""
    return f"ingest:hold:{destination}"


def token(destination: str) -> str:
    """What the ids of a destination's jobs begin with: all that a worker goes by."""
    # RQ takes letters, digits, "_" and "-" only; the digest tells apart what looks alike then.
    readable = re.sub("[^A-Za-z0-9_-]", "_", destination)
    return f"drain-{readable}-{hashlib.sha256(destination.encode()).hexdigest()[:16]}"


def job_key(job: bytes) -> bytes:
    """The key of a job's hash, by its id."""
    return b"rq:job:" + job


class Waker:
    """Wakes destinations through one client."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._queue = Queue(QUEUE, connection=client, serializer=JSONSerializer)

    def wake(self, destination: str) -> bool:
        """Have the destination drained; False where a job for it waits already.

        Raises:
            redis.RedisError: Redis is away; waking again later does no harm.
        """
        key = drain_key(destination)
        if not self._client.set(key, WAITING_MARK, nx=True, px=WAITS_MILLISECONDS):
            return False
        try:
            self._queue.enqueue_call(
                JOB,
                args=(destination,),
                job_id=f"{token(destination)}-{uuid.uuid4().hex[:12]}",
                description=f"drain {destination}",
                # Each wait within a drain has its own deadline; RQ's would end a long one in the middle.
                timeout=-1,
                result_ttl=0,
                failure_ttl=JOB_TTL_SECONDS,
                ttl=JOB_TTL_SECONDS,
            )
        except redis.RedisError:
            self._forget(key)
            raise
        return True

    def _forget(self, key: str) -> None:
        try:
            self._client.delete(key)
        except redis.RedisError:
            return  # it ends by itself


def wake(client: redis.Redis, destination: str) -> bool:
    """`Waker.wake` for who does it once, and at once, even where it is left alone after a failure."""
    client.delete(hold_key(destination), drain_key(destination))
    return Waker(client).wake(destination)
