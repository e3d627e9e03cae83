"""A Redis that somebody else writes to, and the forward worker: nothing is executed, and deliveries go on."""

import contextlib
import json
import pickle
import subprocess
import sys
import uuid
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from rq import Callback, Queue, Repeat, Retry
from rq.serializers import JSONSerializer

from ingest.queue.wakeups import RQ_QUEUE_KEY, drain_key, hold_key, job_id_prefix
from ingest.workers.forward.destination_slots import slot_key
from tests.support.forwarding import Forwarding, WorkerProcess
from tests.support.nodes import eventually
from tests.support.peers import CT, PynetdicomRemote
from tests.support.servers import Valkey, valkey

CONTEXTS = [(CT, ["1.2.840.10008.1.2.1"])]


@dataclass
class Scene:
    """A worker at work, the Redis that it shares with an attacker, and what the attacker wants to make."""

    forwarding: Forwarding
    worker: WorkerProcess
    remote: PynetdicomRemote
    redis: redis.Redis
    canary: Path

    @property
    def command(self) -> str:
        return f"touch {self.canary}"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("hostile")
    with contextlib.ExitStack() as stack:
        server: Valkey = stack.enter_context(valkey())
        remote = stack.enter_context(PynetdicomRemote(CONTEXTS, None))
        forwarding = Forwarding(folder / "node", server)
        stack.callback(forwarding.ledger.close)
        forwarding.add(remote.port, retry_max_seconds=5.0)
        client = stack.enter_context(contextlib.closing(server.client()))
        worker = stack.enter_context(forwarding.worker())
        eventually(lambda: client.smembers("rq:workers"), 20, "the worker is registered")
        yield Scene(forwarding, worker, remote, client, folder / "canary")


class Unpickled:
    """Runs a command when it is read."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (self.command,)


def names_a_function(scene: Scene) -> None:
    for serializer in (None, JSONSerializer):
        Queue("forward", connection=scene.redis, serializer=serializer).enqueue("os.system", scene.command)


def names_a_module_of_its_own(scene: Scene) -> None:
    """Importing it would be enough."""
    (scene.canary.parent / "evil.py").write_text(f"open({str(scene.canary)!r}, 'w')")
    Queue("forward", connection=scene.redis, serializer=JSONSerializer).enqueue(
        "sys.path.append", str(scene.canary.parent)
    )
    Queue("forward", connection=scene.redis, serializer=JSONSerializer).enqueue("evil.run")


def calls_back(scene: Scene) -> None:
    queue = Queue("forward", connection=scene.redis, serializer=JSONSerializer)
    for moment in ("on_success", "on_failure", "on_stopped"):
        queue.enqueue("workers.forward.drain", "pacs", **{moment: Callback("os.system")})


def repeats_and_depends(scene: Scene) -> None:
    queue = Queue("forward", connection=scene.redis, serializer=JSONSerializer)
    first = queue.enqueue("os.system", scene.command, retry=Retry(3), repeat=Repeat(times=3))
    queue.enqueue("os.system", scene.command, depends_on=first)


def bears_the_id_of_ours(scene: Scene) -> None:
    """A job that the worker takes for a wake-up by its id, with another content."""
    job = f"{job_id_prefix('pacs')}-{uuid.uuid4().hex[:12]}"
    scene.redis.hset(
        f"rq:job:{job}",
        mapping={
            "data": zlib.compress(pickle.dumps(("os.system", None, (scene.command,), {}))),
            "func_name": "os.system",
            "origin": "forward",
            "status": "queued",
            "created_at": "2026-01-01T00:00:00.000000Z",
            "enqueued_at": "2026-01-01T00:00:00.000000Z",
            "success_callback_name": "os.system",
            "failure_callback_name": "os.system",
            "stopped_callback_name": "os.system",
            "serializer": "rq.serializers.DefaultSerializer",
            "meta": pickle.dumps(Unpickled(scene.command)),
            "description": "\x1b[2J",
            "timeout": "180",
        },
    )
    scene.redis.rpush(RQ_QUEUE_KEY, job)


def is_unpickled(scene: Scene) -> None:
    job = f"{job_id_prefix('pacs')}-{uuid.uuid4().hex[:12]}"
    scene.redis.hset(f"rq:job:{job}", "data", zlib.compress(pickle.dumps(Unpickled(scene.command))))
    scene.redis.rpush(RQ_QUEUE_KEY, job)


def is_left_in_the_registry_of_started_jobs(scene: Scene) -> None:
    """RQ's maintenance calls the failure callback of what it finds abandoned there."""
    job = Queue("forward", connection=scene.redis, serializer=JSONSerializer).enqueue(
        "workers.forward.drain", "pacs", on_failure=Callback("os.system")
    )
    for registry in ("rq:wip:forward", "rq:scheduled:forward", "rq:deferred:forward", "rq:failed:forward"):
        scene.redis.zadd(registry, {job.id: 1, f"{job.id}:execution": 1})


def commands_the_worker(scene: Scene) -> None:
    for key in scene.redis.smembers("rq:workers"):
        channel = b"rq:pubsub:" + key.removeprefix(b"rq:worker:")
        for command in ("shutdown", "kill-horse", "stop-job"):
            scene.redis.publish(channel, json.dumps({"command": command, "job_id": "x", "created_at": 0}))


def suspends_all_workers(scene: Scene) -> None:
    scene.redis.set("rq:suspended", 1)


def forgets_the_worker(scene: Scene) -> None:
    for key in scene.redis.smembers("rq:workers"):
        scene.redis.hset(key, "death", "2026-01-01T00:00:00.000000Z")
        scene.redis.hdel(key, "birth")


def sends_odd_ids(scene: Scene) -> None:
    odd = [b"", b"-", b"\xff\xfe", b"drain-pacs", b"drain-unknown-0123456789abcdef-1", b"\x1b[2J\n" * 1000]
    scene.redis.rpush(RQ_QUEUE_KEY, *odd)
    scene.redis.rpush(RQ_QUEUE_KEY, *[f"job-{number}" for number in range(5_000)])


def sends_a_giant_id(scene: Scene) -> None:
    scene.redis.rpush(RQ_QUEUE_KEY, bytes(100 << 20))


def marks_it_as_waiting_for_ever(scene: Scene) -> None:
    scene.redis.set(drain_key("pacs"), "taken")


def marks_it_as_waiting_for_years(scene: Scene) -> None:
    scene.redis.set(drain_key("pacs"), "1", px=10**12)


def marks_it_with_a_giant(scene: Scene) -> None:
    scene.redis.set(drain_key("pacs"), bytes(100 << 20))


def holds_it_for_years(scene: Scene) -> None:
    scene.redis.set(hold_key("pacs"), "x", px=10**12)


def takes_all_places(scene: Scene) -> None:
    for number in range(8):
        scene.redis.set(slot_key("pacs", number), "x", **({"px": 10**12} if number % 2 else {}))


def makes_keys_of_other_types(scene: Scene) -> None:
    for key in (RQ_QUEUE_KEY, "rq:queues", "rq:workers", "rq:workers:forward"):
        scene.redis.delete(key)
        scene.redis.set(key, "mine now")
    for key in scene.redis.keys("rq:worker:*"):
        scene.redis.delete(key)
        scene.redis.set(key, "mine now")
    for key in (drain_key("pacs"), hold_key("pacs"), slot_key("pacs", 0)):
        scene.redis.delete(key)
        scene.redis.rpush(key, "mine now")


ATTACKS: list[Callable[[Scene], None]] = [
    names_a_function,
    names_a_module_of_its_own,
    calls_back,
    repeats_and_depends,
    bears_the_id_of_ours,
    is_unpickled,
    is_left_in_the_registry_of_started_jobs,
    commands_the_worker,
    suspends_all_workers,
    forgets_the_worker,
    sends_odd_ids,
    sends_a_giant_id,
    marks_it_as_waiting_for_ever,
    marks_it_as_waiting_for_years,
    marks_it_with_a_giant,
    holds_it_for_years,
    takes_all_places,
    makes_keys_of_other_types,
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_nothing_is_executed_and_deliveries_go_on(scene: Scene, attack: Callable[[Scene], None]) -> None:
    scene.redis.flushall()
    logged = len(scene.worker.log.read_text())
    attack(scene)
    stored = len(scene.remote.stored)

    scene.forwarding.many(2)

    eventually(lambda: len(scene.remote.stored) == stored + 2, 20, "what is due is delivered")
    scene.forwarding.wake()
    eventually(lambda: scene.redis.type(RQ_QUEUE_KEY) != b"list", 20, "the queue is worked off")
    assert not scene.canary.exists()
    assert scene.worker.process.poll() is None
    said = scene.worker.log.read_text()[logged:]
    assert "Traceback" not in said
    assert "\x1b[2J" not in said
    assert len(said) < 20_000
    assert _memory(scene.worker.pid) < 180 << 20


def test_tools_of_rq_still_see_the_worker(scene: Scene) -> None:
    makes_keys_of_other_types(scene)
    eventually(lambda: scene.redis.type("rq:workers") == b"set", 20, "it registers again")
    told = subprocess.run(
        [Path(sys.executable).with_name("rq"), "info", "--raw", "--url", scene.forwarding.server.url],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    assert "worker forward-" in told


def _memory(pid: int) -> int:
    """The largest resident size of a process so far, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


@pytest.mark.parametrize(
    "attack", [names_a_function, bears_the_id_of_ours], ids=lambda attack: attack.__name__
)
def test_worker_of_rq_itself_would_fall_for_it(tmp_path: Path, attack: Callable[[Scene], None]) -> None:
    """So that the attacks above stay attacks with later releases of RQ."""
    with valkey() as server, contextlib.closing(server.client()) as client:
        scene = Scene(None, None, None, client, tmp_path / "canary")  # type: ignore[arg-type]
        attack(scene)
        command = [Path(sys.executable).with_name("rq"), "worker", "--burst", "--url", server.url, "forward"]
        subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert scene.canary.exists()
