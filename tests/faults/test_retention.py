"""A node that removes what it has forwarded, while instances keep coming and its remover is killed."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ingest.requestor.store_scu import StoreSCU
from tests.faults.caller import LOCAL_LIMIT, Caller, new_uid, request
from tests.faults.watch import Watch, receive
from tests.support.instances import CT, EXPLICIT, Made
from tests.support.nodes import Node, destination, eventually
from tests.support.ports import free_port
from tests.support.senders import TIMEOUTS, remote_of

STUDIES, EACH = 12, 5
PIXELS = bytes(20_000)
ALL = [
    Made(sop=f"1.9.{study}.{number}", study=f"1.7.{study}", series=f"1.7.{study}.{number % 2}", pixels=PIXELS)
    for study in range(STUDIES)
    for number in range(EACH)
]
ROUNDS = 4
RETAIN = "ingest-retain"


def retention(**keys: object) -> str:
    lines = (f"{key} = {json.dumps(value)}" for key, value in {"check_seconds": 0.1, **keys}.items())
    return "\n".join(["[retention]", *lines])


def send_all(node: Node, folder: Path) -> None:
    """Every instance, once; all are answered with Success."""
    folder.mkdir(exist_ok=True)
    with StoreSCU.open(remote_of(node), [(CT, [EXPLICIT])], timeouts=TIMEOUTS) as association:
        for made in ALL:
            path = folder / made.sop
            path.write_bytes(made.data_set)
            how = {"sop_class": CT, "sop_instance": made.sop, "transfer_syntax": made.syntax}
            assert association.store_instance(path, 0, None, **how).status == 0


def files(node: Node) -> dict[str, int]:
    """What lies in the store: key to size."""
    return {
        str(path.relative_to(node.store)): path.stat().st_size
        for path in node.store.rglob("*")
        if path.is_file() and ".incoming" not in path.parts
    }


def kept(node: Node) -> dict[str, int]:
    """What should lie there, by the ledger."""
    return dict(node.query("SELECT store_key, size FROM instances WHERE state = 'stored'"))


@contextmanager
def killing(node: Node) -> Iterator[list[int]]:
    """Kill the remover again and again until the block has ended; whom."""
    stop, killed = threading.Event(), list[int]()

    def run() -> None:
        while not stop.wait(0.15):
            killed.append(node.kill_child(RETAIN))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join(30)


@pytest.mark.slow
def test_store_stays_small_while_all_come_again_and_removers_are_killed(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    remote = make_node("remote").start()
    limit = 2 * EACH * (len(PIXELS) + 600)
    node = make_node(
        "node",
        retention=retention(max_bytes=limit),
        workers="[workers]\npersist = 2\nforward = 1",
        destinations=destination("remote", remote.tls_port),
    ).start()
    with killing(node) as killed:
        for _ in range(ROUNDS):
            send_all(node, tmp_path / "sent")
    assert len(killed) > 1
    eventually(lambda: not node.spooled() and set(node.deliveries()) == {"delivered"}, 60, "all delivered")
    eventually(lambda: sum(kept(node).values()) <= limit, 30, "the store is small")
    eventually(lambda: node.query("SELECT 1 FROM instances WHERE state = 'removing'") == [], 90, "none begun")
    assert node.stop() == 0
    assert files(node) == kept(node)
    assert 0 < len(kept(node)) <= 2 * EACH
    # Every one is at the remote, and the ledger knows all that went.
    assert remote.stored().keys() == {made.sop for made in ALL}
    assert {uid for (uid,) in node.query("SELECT sop_instance_uid FROM instances")} == remote.stored().keys()
    folders = {path.parts[0] for path in map(Path, files(node))}
    assert {path.name for path in node.store.iterdir()} == folders | {".incoming"}


def test_full_node_waits_for_its_destination_and_goes_on_when_told(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    node = make_node("node", destinations=destination("away", free_port())).start()
    send_all(node, tmp_path / "sent")
    assert node.children(RETAIN) == []
    eventually(lambda: len(kept(node)) == len(ALL), 30, "all stored")
    node.configure(retention=retention(max_bytes=1))
    assert node.process is not None
    node.process.send_signal(signal.SIGHUP)
    eventually(lambda: len(node.events("held_back")) > 1, 30, "said what is held back")
    assert node.events("held_back")[-1]["studies"] == STUDIES
    assert len(files(node)) == len(ALL)
    with node.launch("drop", "--all", "--yes") as dropping:
        assert dropping.wait(30) == 0
    eventually(lambda: files(node) == {}, 30, "all removed")
    began = time.monotonic()
    assert node.stop() == 0
    assert time.monotonic() - began < 10


def _takes(node: Node) -> bool:
    """Whether a new association is accepted."""
    with Caller.tls(node) as caller:
        if caller.ask(request())[:1] != b"\x02":
            return False
        caller.release()
        return True


@pytest.mark.parametrize(
    "afterwards", [retention(max_bytes=10**9, at_max_bytes="refuse"), retention(max_bytes=10**9), ""]
)
def test_full_store_refuses_until_there_is_room_and_associations_live(
    make_node: Callable[..., Node], afterwards: str
) -> None:
    limit = 3 * len(PIXELS)
    section = retention(max_bytes=limit, at_max_bytes="refuse")
    node = make_node("node", retention=section, receive=receive(processes=1)).start()
    watch = Watch(node)
    statuses = list[int]()

    def status(caller: Caller) -> int:
        statuses.append(caller.store(Made(sop=new_uid(), pixels=PIXELS)).status)
        return statuses[-1]

    with Caller.plain(node) as caller:
        caller.associate()
        eventually(lambda: status(caller), 30, "the store is full")
        assert statuses[-1] == 0xA700
        assert status(caller) == 0xA700
        assert caller.echo() == 0
        with Caller.tls(node) as other:
            assert other.rejected() == LOCAL_LIMIT
        watch.event("association_rejected", reason=f"[retention] max_bytes is {limit}")
        assert watch.event("instance_refused", status="A700")["reason"] == "the store is full"
        node.configure(retention=afterwards)
        assert node.process is not None
        node.process.send_signal(signal.SIGHUP)
        watch.event("store_has_room")
        # Listeners look several times a second; this one is of the configuration before.
        eventually(lambda: status(caller) == 0, 10, "room on the running association")
        # A listener that retires closes connections that have no association yet. Wait until it has done so.
        eventually(lambda: list(watch.events("retiring")), 60, "the earlier listener retires")
        caller.release()
    eventually(lambda: _takes(node), 10, "room for new associations")
    eventually(lambda: len(kept(node)) == statuses.count(0), 30, "all stored, nothing removed")
    assert [len(list(watch.events(name))) for name in ("store_full", "store_has_room")] == [1, 1]
    assert node.stop() == 0
