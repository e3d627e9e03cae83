"""How many associations there may be, of all callers and of one, and what counts as one."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ingest.acceptor.scoreboard import ACTIVE, Scoreboard
from ingest.dicom import dimse, wire
from tests.faults.caller import (
    LOCAL_LIMIT,
    VERIFICATION,
    Caller,
    command,
    data_pdus,
    new_uid,
    p_data,
    pdv,
    request,
)
from tests.faults.watch import Watch, known, nothing_received, receive
from tests.support.instances import Made
from tests.support.nodes import Node, cleaned, eventually
from tests.support.pki import Material

LIMIT = 6
LONG, SHORT = 60.0, 0.6
"""Seconds of ARTIM: longer than a test may take, and short enough to be waited for."""


@pytest.fixture(scope="module")
def node(start_node: Callable[..., Node]) -> Node:
    """Three listener processes; a peer that has released may leave its connection open for long."""
    return start_node(receive=receive(processes=3, max_associations=LIMIT, artim_seconds=LONG))


@pytest.fixture(autouse=True)
def ended(request: pytest.FixtureRequest) -> Iterator[None]:
    """The next test begins without associations."""
    yield
    for name in {"node", "quick"} & set(request.fixturenames):
        eventually(lambda name=name: associations(request.getfixturevalue(name)) == 0, what="no association")


def board(node: Node) -> Scoreboard:
    found = Scoreboard.open_reader(node.data / "run" / "scoreboard")
    assert found is not None
    return found


def associations(node: Node) -> int:
    return board(node).count_associations()[0]


def serving(node: Node) -> set[int]:
    """Processes that hold connections."""
    return {row.pid for row in board(node).list_listeners() if board(node).get(row.row, ACTIVE)}


def callers(node: Node, stack: contextlib.ExitStack, count: int, calling: str = "CT1") -> list[Caller]:
    made = [stack.enter_context(Caller.plain(node)) for _ in range(count)]
    for caller in made:
        caller.associate(calling=calling)
    return made


def is_accepted(node: Node, calling: str) -> bool:
    with Caller.plain(node) as caller:
        answer = caller.ask(request(calling=calling))
        if answer[0] != wire.ASSOCIATE_AC:
            assert wire.decode_associate_rj(answer) == LOCAL_LIMIT
            return False
        caller.release()
        return True


def test_one_peer_gets_half_of_all_associations_over_all_listeners(node: Node, watch: Watch) -> None:
    with contextlib.ExitStack() as stack:
        held = callers(node, stack, LIMIT // 2)
        assert len(serving(node)) > 1
        for _ in range(5):
            assert not is_accepted(node, "CT1")
        watch.event("association_rejected", calling_ae="CT1", reason="max_associations_per_peer is 3")
        assert [caller.echo() for caller in held] == [0, 0, 0]
        others = callers(node, stack, LIMIT // 2, "MR1")
        assert [caller.echo() for caller in others] == [0, 0, 0]
        assert not is_accepted(node, "US1")
        watch.event("association_rejected", calling_ae="US1", reason=f"max_associations is {LIMIT}")
    # Each of three processes says it once a minute of a caller, however often that one tries.
    assert len(list(watch.events("association_rejected"))) <= 3 * 2


def test_only_associations_count(node: Node) -> None:
    """A peer that has released or was aborted and keeps its connection, as long as ARTIM lasts, is none."""
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            for caller in callers(node, stack, LIMIT // 2):
                caller.release()
        for caller in callers(node, stack, LIMIT // 2):
            caller.send(p_data(pdv(3, 2, b"out of order")))
            assert caller.read_pdu()[0] == wire.ABORT
        for _ in range(LIMIT):
            waiting = stack.enter_context(Caller.plain(node))  # asks for nothing yet
            waiting.send(wire.encode_associate_rq(request())[:100])
        eventually(lambda: associations(node) == 0)
        assert callers(node, stack, LIMIT // 2)[0].echo() == 0
        assert callers(node, stack, LIMIT // 2, "MR1")[0].echo() == 0


def test_what_a_killed_listener_served_counts_no_more(tmp_path: Path, material: Material) -> None:
    node = Node(tmp_path / "node", material)
    node.configure(receive=receive(processes=3, max_associations=LIMIT, artim_seconds=LONG))
    with contextlib.ExitStack() as stack:
        stack.enter_context(cleaned(node)).start()
        callers(node, stack, LIMIT // 2)
        before = {child.pid for child in node.children("ingest-listen")}
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: len({c.pid for c in node.children("ingest-listen")} - before) == 3)
        eventually(lambda: associations(node) == 0)
        assert not any(psutil.pid_exists(pid) for pid in before)
        assert eventually(lambda: is_accepted(node, "CT1"))


def test_connections_of_one_address_that_have_no_association_any_more_are_bounded(
    start_node: Callable[..., Node],
) -> None:
    node = start_node(receive=receive(processes=1, max_newcomers_per_address=4, artim_seconds=LONG))
    with contextlib.ExitStack() as stack:
        for _ in range(12):
            callers(node, stack, 1)[0].release()
        (listener,) = node.children("ingest-listen")
        eventually(
            lambda: (
                sum(
                    c.laddr.port == node.plain_port and c.status == "ESTABLISHED"
                    for c in listener.net_connections()
                )
                == 4
            ),
            what="four connections",
        )
        assert callers(node, stack, 1)[0].echo() == 0


# --- idle associations


@pytest.fixture(scope="module")
def quick(start_node: Callable[..., Node]) -> Node:
    return start_node(receive=receive(processes=1, idle_seconds=SHORT, artim_seconds=SHORT))


CONNECTIONS = pytest.mark.parametrize("connect_to", [Caller.plain, Caller.tls], ids=["plain", "tls"])


@pytest.fixture
def idle(quick: Node) -> Iterator[Caller]:
    """An association that the node has asked to release."""
    with Caller.tls(quick) as caller:
        caller.associate()
        assert caller.echo() == 0
        assert caller.read_pdu() == wire.RELEASE_RQ
        yield caller


def test_an_idle_association_is_released(quick: Node, idle: Caller) -> None:
    watch = Watch(quick)
    idle.send(wire.RELEASE_RP)
    idle.expect_closed()
    watch.event("association_released_as_asked", calling_ae="CALLER")


def test_an_idle_association_that_does_not_release_is_aborted(idle: Caller) -> None:
    idle.expect_abort(0, source=0)


def test_a_release_that_crosses_ours_is_a_collision_and_ends_soundly(idle: Caller) -> None:
    idle.send(wire.RELEASE_RQ)
    idle.send(wire.RELEASE_RP)
    assert idle.read_pdu() == wire.RELEASE_RP
    idle.expect_closed()


def test_an_image_that_crosses_our_release_is_not_acknowledged_and_does_no_harm(
    quick: Node, idle: Caller
) -> None:
    made = Made(sop=new_uid(), pixels=bytes(50_000))
    idle.begin_store(made.sop)
    idle.send(data_pdus(1, made.data_set), command(3, dimse.encode_echo_request(9)), wire.RELEASE_RP)
    idle.expect_closed()
    nothing_received(quick)
    assert not known(quick, made.sop)


# --- PS3.8 Table 9-10, Sta13


PEER_GOES_ON = {
    "P-DATA-TF": command(3, dimse.encode_echo_request(9)),
    "a data set": data_pdus(1, bytes(200_000)),
    "a message": command(1, dimse.encode_store_request(9, VERIFICATION, "1.2"))
    + data_pdus(1, bytes(200_000)),
    "fragments out of order": p_data(pdv(1, 0, b"abcd"), pdv(3, 1, b"ab"), pdv(7, 2, b"")),
    "an even context and lengths that do not agree": p_data(b"\xff\xff\xff\xff\0\0xyz"),
    "an oversized P-DATA-TF": b"\x04\0\x7f\xff\xff\xff" + bytes(1000),
    "A-RELEASE-RQ": wire.RELEASE_RQ,
    "A-RELEASE-RP": wire.RELEASE_RP,
    "A-ASSOCIATE-RJ": wire.encode_associate_rj(wire.AssociateReject(1, 1, 1)),
}
"""What Table 9-10 ignores in Sta13 (AA-6)."""


def associated(caller: Caller) -> None:
    caller.associate()
    caller.begin_store(new_uid())
    caller.send(data_pdus(1, bytes(30_000), last=False)[:-7])


def aborted(caller: Caller) -> None:
    assert caller.read_pdu()[0] == wire.ABORT  # it lies idle in mid-image
    caller.send(bytes(7))


ENDS = {
    "aborted in mid-image": (associated, aborted),
    "released": (Caller.associate, Caller.release),
    "rejected": (lambda caller: caller.rejected(()), lambda caller: None),
}
"""How an association comes to its end: for many at once, and for each."""


@CONNECTIONS
@pytest.mark.parametrize("end", ENDS)
def test_what_comes_after_the_end_of_an_association_is_ignored(
    quick: Node, end: str, connect_to: Callable[[Node], Caller]
) -> None:
    begin, finish = ENDS[end]
    with contextlib.ExitStack() as stack:
        callers = []
        for _ in PEER_GOES_ON:
            callers.append(stack.enter_context(connect_to(quick)))
            begin(callers[-1])
        for caller, data in zip(callers, PEER_GOES_ON.values(), strict=True):
            finish(caller)
            caller.send(data)
        for what, caller in zip(PEER_GOES_ON, callers, strict=True):
            assert caller.read(10) == b"", what
    nothing_received(quick)
