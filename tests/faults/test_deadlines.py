"""Peers that stall: every wait for them has a deadline, and holds nobody else up."""

import contextlib
import ssl
import time
from collections.abc import Callable

import pytest

from ingest.dicom import dimse, wire
from tests.faults.caller import (
    VERIFICATION,
    Caller,
    client,
    command,
    connect,
    data_pdus,
    new_uid,
    p_data,
    pdv,
    read_all,
    request,
)
from tests.faults.watch import Watch, known, listeners, nothing_received, partial_of, receive, row
from tests.support.instances import CT, EXPLICIT, IMPLICIT, Made
from tests.support.nodes import Node, eventually

HANDSHAKE, ARTIM, IDLE = 0.6, 0.8, 1.0
SLACK = 3.0
"""Seconds: deadlines are looked at four times a second, and two cores may be busy."""

RQ = wire.encode_associate_rq(request())


CONNECTIONS = pytest.mark.parametrize("connect_to", [Caller.plain, Caller.tls], ids=["plain", "tls"])


@pytest.fixture(scope="module")
def node(start_node: Callable[..., Node]) -> Node:
    return start_node(
        receive=receive(handshake_seconds=HANDSHAKE, artim_seconds=ARTIM, idle_seconds=IDLE, processes=1)
    )


@contextlib.contextmanager
def within(least: float, most: float) -> contextlib.AbstractContextManager[None]:
    start = time.monotonic()
    yield
    taken = time.monotonic() - start
    assert least * 0.8 <= taken <= most + SLACK, f"{taken:.2f} s"


def client_hello(node: Node) -> bytes:
    outgoing = ssl.MemoryBIO()
    tls = client(node.material, "peer").wrap_bio(ssl.MemoryBIO(), outgoing)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def test_a_handshake_that_stalls_is_closed(node: Node, watch: Watch) -> None:
    hello = client_hello(node)
    with contextlib.ExitStack() as stack, within(HANDSHAKE, HANDSHAKE):
        socks = [stack.enter_context(contextlib.closing(connect(node.tls_port))) for _ in range(4)]
        # Silence, two pieces, and all of it: then the node's flight is not answered.
        for sock, share in zip(socks, (0, 0.1, 0.9, 1), strict=True):
            sock.sendall(hello[: int(len(hello) * share)])
        for sock in socks:
            read_all(sock, HANDSHAKE + SLACK)
    watch.event("deadline", setting="handshake_seconds", address="127.0.0.1")
    assert len(list(watch.events("deadline"))) == 4


def test_a_handshake_a_byte_at_a_time_is_closed_too(node: Node, watch: Watch) -> None:
    hello = client_hello(node)
    with contextlib.closing(connect(node.tls_port)) as sock, within(HANDSHAKE, HANDSHAKE):
        trickle(sock.sendall, hello)
    watch.event("deadline", setting="handshake_seconds")


def trickle(send: Callable[[bytes], None], data: bytes) -> None:
    """A byte now and then, until the node has enough of it."""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        for byte in data:
            send(bytes((byte,)))
            time.sleep(0.02)  # the pace is what is tested
        raise AssertionError("nobody minded")


@CONNECTIONS
def test_a_peer_that_does_not_associate_is_closed(
    node: Node, watch: Watch, connect_to: Callable[[Node], Caller]
) -> None:
    with contextlib.ExitStack() as stack, within(ARTIM, ARTIM):
        callers = [stack.enter_context(connect_to(node)) for _ in range(3)]
        for caller, length in zip(callers, (0, 1, 100), strict=True):
            caller.send(RQ[:length])
        for caller in callers:
            caller.expect_closed()
    watch.event("deadline", setting="artim_seconds", address="127.0.0.1")
    assert len(list(watch.events("deadline"))) == 3


def test_a_request_a_byte_at_a_time_is_closed_too(node: Node, watch: Watch) -> None:
    with Caller.plain(node) as caller, within(ARTIM, ARTIM):
        trickle(caller.send, RQ)
    watch.event("deadline", setting="artim_seconds")


def test_a_peer_that_does_not_close_after_its_release_is_closed(node: Node, watch: Watch) -> None:
    with Caller.tls(node) as caller, within(ARTIM, ARTIM):
        caller.associate()
        caller.release()
        caller.expect_closed()
    watch.event("deadline", setting="artim_seconds", calling_ae="CALLER")


def test_a_peer_that_goes_on_talking_after_its_abort_is_closed(node: Node) -> None:
    with Caller.plain(node) as caller, within(ARTIM, ARTIM):
        caller.associate()
        caller.send(b"\x08")
        assert caller.read_pdu()[0] == wire.ABORT
        trickle(caller.send, bytes(1000))


@CONNECTIONS
def test_a_silent_association_is_released_or_else_aborted_and_closed(
    node: Node, watch: Watch, connect_to: Callable[[Node], Caller]
) -> None:
    with connect_to(node) as caller:
        caller.associate()
        assert caller.echo() == 0
        with within(IDLE, IDLE):
            assert caller.read_pdu() == wire.RELEASE_RQ
        with within(ARTIM, 2 * ARTIM):
            caller.expect_abort(0, source=0)
    watch.event("deadline", setting="idle_seconds", calling_ae="CALLER")


def test_a_peer_that_stalls_in_mid_image_is_aborted_and_leaves_no_file(node: Node, watch: Watch) -> None:
    made = Made(sop=new_uid(), pixels=bytes(100_000))
    with Caller.tls(node) as caller:
        caller.associate()
        caller.begin_store(made.sop)
        caller.send(data_pdus(1, made.data_set[:50_000], last=False))
        partial_of(node, 20_000)
        caller.expect_abort(0, source=0)
    watch.event("deadline", setting="idle_seconds")
    nothing_received(node)
    assert not known(node, made.sop)


def test_a_release_in_mid_image_does_not_wait_for_ever(node: Node) -> None:
    with Caller.plain(node) as caller:
        caller.associate()
        caller.begin_store(new_uid())
        caller.send(data_pdus(1, bytes(1000), last=False), wire.RELEASE_RQ)
        caller.expect_abort(0, source=0)
    nothing_received(node)


def test_a_slow_peer_that_goes_on_is_not_idle(node: Node) -> None:
    made = Made(sop=new_uid(), pixels=bytes(5_000))
    data = data_pdus(1, made.data_set, length=1000)
    step = len(data) // 6 + 1
    with Caller.tls(node) as caller:
        caller.associate()
        caller.begin_store(made.sop)
        for start in range(0, len(data), step):
            time.sleep(IDLE / 3)  # the pace is what is tested
            caller.send(data[start : start + step])
        assert caller.response().status == 0
        caller.release()
    row(node, made.sop, "stored")


def _nothing(caller: Caller) -> None:
    """Between two messages."""


def _in_mid_command(caller: Caller) -> None:
    caller.send(command(3, dimse.encode_echo_request(1))[:30])


def _in_mid_image(caller: Caller) -> None:
    caller.begin_store(new_uid())
    caller.send(data_pdus(1, bytes(200_000), last=False, length=100_000)[:50_000])


WITHIN = {
    "a header": (_nothing, b"\x04\0\0\1\0\0" + bytes(1000)),
    "an A-RELEASE-RQ": (_nothing, b"\x05\0\0\0\0"),
    "a command set": (_in_mid_command, command(3, dimse.encode_echo_request(1))[30:-1]),
    "a data set": (_in_mid_image, bytes(1000)),
}
"""Where a peer may dribble: how it comes there, and what it then sends byte by byte."""


@CONNECTIONS
def test_bytes_alone_keep_no_association(
    node: Node, watch: Watch, connect_to: Callable[[Node], Caller]
) -> None:
    with contextlib.ExitStack() as stack:
        callers = [stack.enter_context(connect_to(node)) for _ in WITHIN]
        for caller, (begin, _) in zip(callers, WITHIN.values(), strict=True):
            caller.associate()
            begin(caller)
        with within(IDLE, IDLE):
            for step in range(1000):
                time.sleep(IDLE / 20)  # the pace is what is tested
                for caller, (_, data) in zip(callers, WITHIN.values(), strict=True):
                    with contextlib.suppress(ConnectionError, ssl.SSLError):
                        caller.send(data[step : step + 1])
                if len(list(watch.events("deadline"))) >= len(WITHIN):
                    break
        for caller in callers:
            assert caller.read_pdu()[0] in {wire.ABORT, wire.RELEASE_RQ}
    nothing_received(node)


def test_small_progress_keeps_an_association(node: Node) -> None:
    """A whole PDU, however empty, or a piece of a large one, now and then."""
    made = Made(sop=new_uid(), pixels=bytes(120_000))
    large = data_pdus(5, made.data_set, length=131_000)
    echo, empty = command(3, dimse.encode_echo_request(1)), p_data(pdv(1, 0, b""))
    with contextlib.ExitStack() as stack:
        echoing, storing, slow = (stack.enter_context(Caller.tls(node)) for _ in range(3))
        for caller in (echoing, storing, slow):
            caller.associate(((1, CT, EXPLICIT), (3, VERIFICATION, IMPLICIT), (5, CT, EXPLICIT)))
        storing.begin_store(new_uid())
        slow.send(command(5, dimse.encode_store_request(1, CT, made.sop)))
        for start in range(0, len(large), 20_000):
            time.sleep(IDLE / 2)  # the pace is what is tested
            echoing.send(echo)
            storing.send(empty)
            slow.send(large[start : start + 20_000])
            assert echoing.response().status == 0
        assert slow.response().status == 0
        storing.send(data_pdus(1, bytes(10)))
        assert storing.response().status != 0
        for caller in (echoing, storing, slow):
            caller.release()


@CONNECTIONS
def test_a_peer_that_reads_no_responses_is_cut_off_and_costs_no_memory(
    node: Node, watch: Watch, connect_to: Callable[..., Caller]
) -> None:
    (pid,) = listeners(node)
    (process,) = (child for child in node.children("ingest-listen") if child.pid == pid)
    before = process.memory_info().rss
    echo = dimse.encode_echo_request(1)
    burst = p_data(*[pdv(3, 3, echo) for _ in range(1000)])
    with connect_to(node, receive_buffer=4096) as caller:
        caller.associate()
        with pytest.raises((ConnectionError, TimeoutError, ssl.SSLError)):
            send_for_ever(caller, burst)
    watch.event("responses_not_read", calling_ae="CALLER")
    assert process.memory_info().rss - before < 16 << 20
    with Caller.plain(node) as other:
        other.associate()
        assert other.echo() == 0


def send_for_ever(caller: Caller, burst: bytes) -> None:
    for _ in range(2000):
        caller.send(burst)


def test_a_peer_that_reads_nothing_and_says_nothing_more_is_closed_too(node: Node) -> None:
    echo = dimse.encode_echo_request(1)
    # Fewer answers than would have it cut off at once, more than its buffers hold.
    with Caller.plain(node, receive_buffer=4096) as caller:
        caller.associate()
        for _ in range(3):
            caller.send(p_data(*[pdv(3, 3, echo) for _ in range(1000)]))
        eventually(lambda: not _connected(node), IDLE + ARTIM + SLACK)


def _connected(node: Node) -> list[object]:
    return [
        connection
        for child in node.children("ingest-listen")
        for connection in child.net_connections("tcp")
        if connection.status == "ESTABLISHED"
    ]


def test_a_hundred_stalled_peers_do_not_hold_up_another(node: Node) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(contextlib.closing(connect(node.tls_port))).sendall(client_hello(node)[:50])
        start = time.monotonic()
        with Caller.tls(node) as caller:
            caller.associate()
            assert caller.echo() == 0
            caller.release()
        assert time.monotonic() - start < SLACK


def test_after_all_these_nothing_is_connected_and_nothing_half_done(node: Node) -> None:
    eventually(lambda: not _connected(node), 5)
    nothing_received(node)
