"""Wake-ups: RQ jobs that make a forward worker drain a destination.

INVARIANT 2: a wake-up is a hint. The ledger knows which deliveries are due and how often each was tried. A
lost wake-up delays deliveries by seconds, because forward workers also ask the ledger.

INVARIANT 9: a job is named after its destination and holds no patient data.
"""

import hashlib
import re
import uuid
from typing import Final

import redis
from rq import Queue
from rq.serializers import JSONSerializer

FORWARD_QUEUE: Final = "forward"
"""The RQ queue of the forward workers."""

JOB_FUNCTION: Final = "workers.forward.drain"
"""The function name that the tools of RQ show for a job. No worker imports or calls it."""

RQ_QUEUE_KEY: Final = f"rq:queue:{FORWARD_QUEUE}"
"""The list of the ids of waiting jobs."""

RQ_KEYS: Final = {
    RQ_QUEUE_KEY: "list",
    "rq:queues": "set",
    "rq:workers": "set",
    f"rq:workers:{FORWARD_QUEUE}": "set",
}
"""The keys of RQ that publishers and workers use, with their types."""

JOB_WAITS: Final = b"1"
"""Value of the drain key while a job waits. Any other value means that a wake-up is useless for a while."""

WAKE_UP_MILLISECONDS: Final = 30_000
"""Lifetime of the drain key. Until it ends, or until a worker removes the key, no second job is added."""

JOB_TTL_SECONDS: Final = 60
"""Lifetime of a job that no worker takes. The ledger still has the deliveries."""


def drain_key(destination: str) -> str:
    """Return the key that exists while a job for this destination waits; the worker removes it."""
    return f"ingest:drain:{destination}"


def hold_key(destination: str) -> str:
    """Return the key that exists while workers leave a destination alone after a failure."""
    return f"ingest:hold:{destination}"


def job_id_prefix(destination: str) -> str:
    """Return the beginning of a destination's job ids, by which a worker recognises the destination."""
    # RQ allows letters, digits, "_" and "-" only. The digest distinguishes names that become equal that way.
    readable = re.sub("[^A-Za-z0-9_-]", "_", destination)
    return f"drain-{readable}-{hashlib.sha256(destination.encode()).hexdigest()[:16]}"


def job_key(job: bytes) -> bytes:
    """Return the key of the hash of a job."""
    return b"rq:job:" + job


class WakeUps:
    """Sends wake-ups through one client."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._queue = Queue(FORWARD_QUEUE, connection=client, serializer=JSONSerializer)

    def send(self, destination: str) -> bool:
        """Add a job that drains the destination; return False if one waits already.

        Raises:
            redis.RedisError: Redis is away. To send the wake-up again later is harmless.
        """
        key = drain_key(destination)
        if not self._client.set(key, JOB_WAITS, nx=True, px=WAKE_UP_MILLISECONDS):
            return False
        try:
            self._queue.enqueue_call(
                JOB_FUNCTION,
                args=(destination,),
                job_id=f"{job_id_prefix(destination)}-{uuid.uuid4().hex[:12]}",
                description=f"drain {destination}",
                # Each wait within a drain has its own deadline. A deadline of RQ would interrupt a long
                # drain.
                timeout=-1,
                result_ttl=0,
                failure_ttl=JOB_TTL_SECONDS,
                ttl=JOB_TTL_SECONDS,
            )
        except redis.RedisError:
            self._delete_key(key)
            raise
        return True

    def _delete_key(self, key: str) -> None:
        try:
            self._client.delete(key)
        except redis.RedisError:
            return  # the key expires


def send_wake_up(client: redis.Redis, destination: str) -> bool:
    """Wake a destination at once, even if workers leave it alone after a failure; see `WakeUps.send`."""
    client.delete(hold_key(destination), drain_key(destination))
    return WakeUps(client).send(destination)
