"""A Redis that somebody else writes to, and a node: nothing goes that was promised, all else goes on."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from ingest.queue.keys import GROUP, SPOOLS_KEY, data_key, persisted_key, stream_key
from ingest.requestor.send_files import send_files
from ingest.requestor.transport import Remote
from tests.interop.files import write_made
from tests.support.instances import Made
from tests.support.nodes import Node, cleaned, destination, eventually
from tests.support.pki import Material
from tests.support.ports import free_port
from tests.support.servers import valkey


@dataclass
class Scene:
    """A node, the Redis that it shares with an attacker, and a file of somebody else's."""

    node: Node
    redis: redis.Redis
    spool: str
    outside: Path
    sent: int = 0

    @property
    def stream(self) -> str:
        return stream_key(self.spool)

    def refer(self, where: str | bytes, **changes: str | bytes) -> None:
        """Put a reference on the stream; `changes` of its fields."""
        fields = {"c": "spool", "s": self.spool, "w": where, "o": "0", "l": "0"} | changes
        self.redis.xadd(self.stream, fields)  # type: ignore[arg-type]

    def pids(self) -> dict[int, str]:
        return {child.pid: child.name() for child in self.node.children("ingest-")}


@pytest.fixture(scope="module", params=["files", "segments", "carried"])
def scene(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, material: Material
) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("hostile")
    segments = 65536 if request.param == "segments" else 0
    carrier = "redis" if request.param == "carried" else "spool"
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(valkey())
        client = stack.enter_context(contextlib.closing(server.client()))
        node = stack.enter_context(cleaned(Node(folder / "node", material)))
        node.start(
            receive=f"[receive]\nprocesses = 1\nmin_free_bytes = 0\nsegment_max_bytes = {segments}",
            queue=f'[queue]\nurl = "{server.url}"\ncarrier = "{carrier}"',
            destinations=destination("pacs", free_port(), tls=False),
        )
        outside = folder / "outside.dcm"
        outside.write_bytes(Made(sop="1.2.99").file)
        yield Scene(node, client, (node.spool / "id").read_text().strip(), outside)


def points_out_of_the_spool(scene: Scene) -> None:
    for where in ("id", "L0/lock", "L0/ready", "../outside.dcm", str(scene.outside), "L0/ready/../../id",
                  "L0/partial/0000-0", "L0/segments/../../id", "L0/ready/x\n.dcm", ""):  # fmt: skip
        scene.refer(where)
        scene.refer(where, o="64", l="1000")
        scene.refer(where, c="redis", l="1000")


def gives_odd_fields(scene: Scene) -> None:
    odd: list[bytes] = [b"9" * 5000, b"-1", b"1e9", b"\xff\xfe", b"", b"0x10", b"99999999999999999999"]
    for value in odd:
        scene.refer("L0/ready/1.dcm", o=value)
        scene.refer("L0/segments/0000000000000001-0.seg", o="64", l=value)
        scene.refer(value)
        scene.refer("L0/ready/1.dcm", s=value)
        scene.refer("L0/ready/1.dcm", c=value)
    scene.redis.xadd(scene.stream, {"w": "L0/ready/1.dcm"})
    scene.redis.xadd(scene.stream, {f"{number}": "\x1b[2J" for number in range(5_000)})


def gives_giants(scene: Scene) -> None:
    scene.refer(bytes(100 << 20))


def gives_another_spool(scene: Scene) -> None:
    for spool in ("another", "a:b", "../..", "x\n", "0" * 1000, f"{scene.spool}\0"):
        scene.refer("L0/ready/1.dcm", s=spool)


def floods(scene: Scene) -> None:
    pipeline = scene.redis.pipeline(transaction=False)
    for number in range(20_000):
        pipeline.xadd(scene.stream, {"w": f"{number}"})
    pipeline.execute()


def has_something_stored(scene: Scene) -> None:
    """Where data sets do not come through Redis, none is taken from there."""
    if 'carrier = "redis"' in scene.node.sections["queue"]:
        return
    content = scene.outside.read_bytes()
    scene.redis.rpush(data_key(scene.spool, "L0/ready/abc.dcm"), content)
    scene.refer("L0/ready/abc.dcm", c="redis", l=str(len(content)))


def exhausts_the_stream(scene: Scene) -> None:
    scene.redis.xadd(scene.stream, {"w": "x"}, id="18446744073709551615-18446744073709551615")


def moves_the_group(scene: Scene) -> None:
    scene.redis.xgroup_setid(scene.stream, GROUP, "18446744073709551615-0")


def removes_the_group_and_its_consumers(scene: Scene) -> None:
    scene.redis.xgroup_destroy(scene.stream, GROUP)


def makes_keys_of_other_types(scene: Scene) -> None:
    witnesses = [key.decode() for key in scene.redis.keys("ingest:witness:*")]
    for key in (scene.stream, SPOOLS_KEY, persisted_key(scene.spool), "rq:queues", "rq:queue:forward",
                "ingest:drain:pacs"):  # fmt: skip
        scene.redis.delete(key)
        scene.redis.set(key, "mine now")
    for key in witnesses:
        scene.redis.delete(key)
        scene.redis.rpush(key, "mine now")


def announces_spools(scene: Scene) -> None:
    scene.redis.delete(SPOOLS_KEY)
    scene.redis.sadd(SPOOLS_KEY, b"\xff", b"a:b", b"", b"x\n", *(f"none{number}" for number in range(3_000)))


def announces_giant_spools(scene: Scene) -> None:
    scene.redis.delete(SPOOLS_KEY)
    scene.redis.sadd(SPOOLS_KEY, bytes(40 << 20))


def says_that_odd_places_are_persisted(scene: Scene) -> None:
    scene.redis.delete(persisted_key(scene.spool))
    scene.redis.rpush(
        persisted_key(scene.spool),
        "id",
        "L0/lock",
        "../outside.dcm",
        str(scene.outside),
        b"\xff",
        "x" * 10_000,
    )


def forgets_everything(scene: Scene) -> None:
    scene.redis.flushall()


ATTACKS: list[Callable[[Scene], None]] = [
    points_out_of_the_spool,
    gives_odd_fields,
    gives_giants,
    gives_another_spool,
    floods,
    has_something_stored,
    exhausts_the_stream,
    moves_the_group,
    removes_the_group_and_its_consumers,
    makes_keys_of_other_types,
    announces_spools,
    announces_giant_spools,
    says_that_odd_places_are_persisted,
    forgets_everything,
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_nothing_promised_goes_and_good_images_do(
    scene: Scene, attack: Callable[[Scene], None], tmp_path: Path
) -> None:
    node = scene.node
    eventually(lambda: scene.redis.exists(scene.stream), 20, "the stream is there")
    before, logged = scene.pids(), len(node.log)
    attack(scene)

    files = write_made(tmp_path / "made", 3, first=scene.sent)
    scene.sent += 3
    sent = send_files(Remote("localhost", node.plain_port, "INGEST", "TESTS", None), files)

    assert len(sent.stored_files) == 3
    eventually(lambda: len(node.stored()) == scene.sent, 30, "all good ones are stored, and nothing else")
    eventually(lambda: not node.spooled(), 30, "the spool is empty")
    assert (node.spool / "id").read_text().strip() == scene.spool
    assert scene.outside.exists()
    assert scene.outside.stat().st_nlink == 1
    assert scene.pids() == before, "no process has ended"
    said = node.log[logged:]
    assert "Traceback" not in said
    assert "\x1b" not in said
    assert len(said) < 60_000
    assert max(_largest(pid) for pid in before) < 180 << 20


def test_promised_files_stay_although_redis_says_that_they_are_persisted(
    scene: Scene, tmp_path: Path
) -> None:
    node, listed = scene.node, persisted_key(scene.spool)
    [worker] = node.children("ingest-persist")
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        files = write_made(tmp_path / "made", 3, first=scene.sent)
        scene.sent += 3
        sent = send_files(Remote("localhost", node.plain_port, "INGEST", "TESTS", None), files)
        assert len(sent.stored_files) == 3
        promised = node.spooled()
        scene.redis.delete(listed)
        scene.redis.rpush(listed, *(str(path.relative_to(node.spool)) for path in promised))
        if 'carrier = "redis"' in node.sections["queue"]:
            eventually(lambda: not scene.redis.exists(listed), 20, "the list is worked off")
        else:
            time.sleep(1)
        assert node.spooled() == promised
        assert len(promised) == 3
    finally:
        os.kill(worker.pid, signal.SIGCONT)
    eventually(lambda: len(node.stored()) == scene.sent, 30, "all are stored")
    eventually(lambda: not node.spooled(), 30, "the spool is empty")


def _largest(pid: int) -> int:
    """The largest resident size of a process so far, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
