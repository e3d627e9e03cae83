"""16 senders of the same SOP instance UID at once, a node with four persist workers, and a real destination.

Whatever the senders differ in: one object is stored and delivered, once; the others become what the rules of
duplicates make of them, also where workers are killed meanwhile.
"""

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ingest.errors import AssociationError
from ingest.requestor.store_scu import StoreSCU
from tests.faults.watch import receive
from tests.support.instances import CT, EXPLICIT, IMPLICIT, Made
from tests.support.nodes import Node, destination, eventually
from tests.support.senders import TIMEOUTS, remote_of

SENDERS, ROUNDS = 16, 40
SYNTAXES = [EXPLICIT, IMPLICIT, "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.90"]

VARIATIONS: dict[str, Callable[[str, int], Made]] = {
    "identical": lambda sop, _: Made(sop=sop),
    "contents": lambda sop, number: Made(sop=sop, pixels=b"%8d" % number),
    "syntaxes": lambda sop, number: Made(sop=sop, syntax=SYNTAXES[number % len(SYNTAXES)]),
    "studies": lambda sop, number: Made(sop=sop, study=f"1.5.{number}", series=f"1.5.{number}.1"),
}
# What there is of each SOP instance UID besides the one that is stored.
OTHERS = {
    "identical": {},
    "contents": {"quarantined": SENDERS - 1},
    "syntaxes": {"variant": len(SYNTAXES) - 1},
    "studies": {"quarantined": SENDERS - 1},
}


@pytest.fixture
def pair(request: pytest.FixtureRequest, make_node: Callable[..., Node]) -> tuple[Node, Node]:
    """A node with four persist workers, which receives into segments if told to, and its remote."""
    remote = make_node("remote").start()
    node = make_node(
        "node",
        receive=receive(segment_max_bytes=request.param, transfer_syntaxes=["*"]),
        workers="[workers]\npersist = 4\nforward = 1",
        destinations=destination("remote", remote.tls_port, retry_first_seconds=0.5),
    )
    return node.start(), remote


def send_all(node: Node, folder: Path, vary: Callable[[str, int], Made]) -> None:
    """Every sender sends its object of every UID; each UID is begun by all of them at once."""
    folder.mkdir()
    barrier = threading.Barrier(SENDERS, timeout=60)
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            with StoreSCU.open(remote_of(node), [(CT, SYNTAXES)], timeouts=TIMEOUTS) as association:
                for turn in range(ROUNDS):
                    made = vary(f"1.9.{turn}", number)
                    path = folder / f"{number}"
                    path.write_bytes(made.data_set)
                    barrier.wait()
                    answer = association.store_instance(
                        path, 0, None, sop_class=CT, sop_instance=made.sop, transfer_syntax=made.syntax
                    )
                    assert answer.status == 0, f"{answer.status:04X}"
        except (AssociationError, AssertionError, threading.BrokenBarrierError) as error:
            failures.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(SENDERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert failures == []


@contextlib.contextmanager
def killing(node: Node) -> Iterator[list[int]]:
    """Kill persist workers, one after the other, until the block has ended, and a few times after; whom."""
    stop, killed = threading.Event(), list[int]()
    chance = random.Random(4)

    def run() -> None:
        while not stop.wait(0.02 + chance.random() * 0.3):
            with contextlib.suppress(AssertionError):
                killed.append(node.kill_child("ingest-persist"))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield killed
        time.sleep(1.0)  # what was received last is at work now
    finally:
        stop.set()
        thread.join(30)


def check(node: Node, remote: Node, kind: str) -> None:
    """One stored row and one delivery a UID, true to its file, and the others as they have to be."""
    vary, uids = VARIATIONS[kind], {f"1.9.{turn}" for turn in range(ROUNDS)}
    # A variant that came before the first was delivered had a delivery of its own, which is dropped by now.
    eventually(
        lambda: (
            node.spooled() == []
            and node.deliveries().keys() <= {"delivered", "dropped"}
            and count_delivered(node).keys() == uids
        ),
        60,
        "all settled",
    )
    assert kind == "syntaxes" or "dropped" not in node.deliveries()
    of_uid: dict[str, Counter[str]] = {uid: Counter() for uid in uids}
    for uid, state in node.query("SELECT sop_instance_uid, state FROM instances"):
        of_uid[uid][state] += 1
    assert of_uid == {uid: Counter({"stored": 1, **OTHERS[kind]}) for uid in uids}
    deliveries = "SELECT instance_id, count(*) FROM deliveries GROUP BY 1 HAVING count(*) > 1"
    assert node.query(deliveries) == []
    held = node.query("SELECT store_key, size FROM instances WHERE state IN ('stored', 'variant')")
    files = {
        str(path.relative_to(node.store)): path.stat().st_size
        for path in node.store.rglob("*.dcm")
        if ".incoming" not in path.parts
    }
    assert files == dict(held)
    quarantined = node.query("SELECT store_key FROM instances WHERE state = 'quarantined'")
    assert {path.name for path in (node.data / "quarantine").glob("*.dcm")} == {key for (key,) in quarantined}
    # What was sent is there: every content is one of those that the senders had.
    eventually(lambda: remote.stored().keys() == uids, 20, "the remote holds all")
    for uid, path in node.stored().items():
        wanted = {vary(uid, number).data_set for number in range(SENDERS)}
        content = path.read_bytes()
        assert remote.stored()[uid].read_bytes().endswith(data_set_of(content, wanted))
    received = Counter(uid for (uid,) in remote.query("SELECT sop_instance_uid FROM instances"))
    assert received.keys() == uids
    dropped = Counter(event["sop_instance_uid"] for event in remote.events("duplicate_dropped"))
    repeated = {uid for uid, count in (received + dropped + count_delivered(node)).items() if count > 2}
    assert repeated <= find_doubtful(node), "an instance was delivered twice"


def count_delivered(node: Node) -> Counter[str]:
    """Count the delivered objects of each SOP instance UID."""
    rows = node.query(
        "SELECT sop_instance_uid FROM instances JOIN deliveries ON deliveries.instance_id = instances.id"
        " WHERE deliveries.state = 'delivered'"
    )
    return Counter(uid for (uid,) in rows)


def find_doubtful(node: Node) -> set[str]:
    """Find the SOP instance UIDs that may be sent again: the node does not know whether the remote has them.

    Delivery is at least once. A loaded machine may break an association, or let leases expire.
    """
    if node.events("leases_lost"):
        return {f"1.9.{turn}" for turn in range(ROUNDS)}
    return {event["sop_instance"] for event in node.events("association_broken")}


def data_set_of(content: bytes, wanted: set[bytes]) -> bytes:
    return next(data_set for data_set in wanted if content.endswith(data_set))


@pytest.mark.slow
@pytest.mark.parametrize("pair", [0], ids=["files"], indirect=True)
@pytest.mark.parametrize("kind", VARIATIONS)
def test_senders_of_one_uid_at_once_leave_one_stored_object_and_one_delivery(
    pair: tuple[Node, Node], tmp_path: Path, kind: str
) -> None:
    node, remote = pair
    send_all(node, tmp_path / "sending", VARIATIONS[kind])
    check(node, remote, kind)


@pytest.mark.slow
@pytest.mark.parametrize("pair", [0, 65536], ids=["files", "segments"], indirect=True)
@pytest.mark.parametrize("kind", VARIATIONS)
def test_killed_persist_workers_change_nothing_of_it(
    pair: tuple[Node, Node], tmp_path: Path, kind: str
) -> None:
    node, remote = pair
    with killing(node) as killed:
        send_all(node, tmp_path / "sending", VARIATIONS[kind])
    assert len(killed) > 2
    check(node, remote, kind)
