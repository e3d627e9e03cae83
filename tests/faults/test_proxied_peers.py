"""Listeners behind a load balancer: the PROXY header before TLS and before plain DICOM."""

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator

import pytest

from ingest.dicom import wire
from tests.faults.caller import CALLING_UNKNOWN, Caller, client, read_all, request
from tests.faults.watch import Watch, receive
from tests.support.instances import Made
from tests.support.nodes import Node, count_refusals, eventually
from tests.support.ports import free_port

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
BALANCER = "127.0.0.9"
SECONDS = 0.8


def header(address: str = "203.0.113.7", port: int = 4711, tlvs: bytes = b"") -> bytes:
    body = socket.inet_aton(address) + bytes(4) + port.to_bytes(2) + bytes(2) + tlvs
    return SIGNATURE + b"\x21\x11" + len(body).to_bytes(2) + body


LOCAL = SIGNATURE + b"\x20\x00\x00\x00"


@pytest.fixture(scope="module")
def node(start_node: Callable[..., Node]) -> Node:
    """One listener process, so that its limits on connections can be reached."""
    listener = '[[listeners]]\nhost = "127.0.0.1"\nport = {}\ntls = {}\nproxy_protocol = ["{}/32"]\n'
    tls_port, plain_port = free_port(), free_port()
    node = start_node(
        listeners=listener.format(tls_port, '"node"', BALANCER)
        + listener.format(plain_port, "false", BALANCER),
        receive=receive(
            processes=1, handshake_seconds=SECONDS, max_newcomers_per_address=2, max_failures_per_minute=3
        ),
        peers='[[peers]]\nae_title = "CALLER"\nhosts = ["203.0.113.0/24", "198.51.100.0/24"]\n',
    )
    node.tls_port, node.plain_port = tls_port, plain_port
    return node


def connect(port: int, address: str = BALANCER) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), 10, source_address=(address, 0))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


@contextlib.contextmanager
def calling(node: Node, *parts: bytes, address: str = BALANCER) -> Iterator[Caller]:
    """A connection of a load balancer to the plain port."""
    with Caller(connect(node.plain_port, address)) as caller:
        for part in parts:
            caller.send(part)
            time.sleep(0.02 if len(parts) > 1 else 0)
        yield caller


class Tunnel:
    """TLS in memory, so that a test decides which bytes share a segment."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, before: bytes) -> None:
        self.sock, self.before = sock, before
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing)

    def run(self, step: Callable[[], object]) -> object:
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                result = None
            if self.before or self.outgoing.pending:
                self.sock.sendall(self.before + self.outgoing.read())
                self.before = b""
                if result is not None:
                    return result
                continue
            if result is not None:
                return result
            got = self.sock.recv(65536)
            assert got, "closed"
            self.incoming.write(got)


def await_refusal(node: Node, key: str, before: dict[str, int]) -> None:
    eventually(
        lambda: count_refusals(node).get(key, 0) > before.get(key, 0), 6, f"{key}: {count_refusals(node)}"
    )


def test_header_and_first_bytes_of_tls_may_share_a_segment(node: Node, watch: Watch) -> None:
    with connect(node.tls_port) as sock:
        tunnel = Tunnel(sock, client(node.material, "peer"), header())
        tunnel.run(lambda: tunnel.tls.do_handshake() or True)
        asked = wire.encode_associate_rq(request())
        tunnel.run(lambda: tunnel.tls.write(asked))
        answer = tunnel.run(lambda: tunnel.tls.read(65536))
        assert isinstance(answer, bytes)
        assert answer[:1] == b"\x02"
    watch.event("association_accepted", address="203.0.113.7", calling_ae="CALLER")


def test_sender_counts_by_its_true_address_in_the_store_and_the_ledger(node: Node, watch: Watch) -> None:
    made = Made(sop="1.2.3.77")
    head = header("198.51.100.8", 5000, tlvs=b"\x20\x00\x10" + bytes(16))
    asked = wire.encode_associate_rq(request())
    # One segment has the header and the A-ASSOCIATE-RQ; nothing of it is lost.
    with calling(node, head + asked) as caller:
        assert caller.read_pdu()[:1] == b"\x02"
        assert caller.store(made).status == 0
        caller.release()
    eventually(lambda: made.sop in node.stored(), 10)
    [(source,)] = node.query("SELECT source FROM instances WHERE sop_instance_uid = ?", made.sop)
    assert source == "dicom://198.51.100.8:5000"
    assert b"dicom://198.51.100.8:5000" in node.stored()[made.sop].read_bytes()
    watch.event("association_accepted", address="198.51.100.8")


def test_header_in_many_segments(node: Node) -> None:
    with calling(node, *(header()[at : at + 5] for at in range(0, 28, 5))) as caller:
        caller.associate()
    with calling(node, b"PROXY TCP4 203.0.113.9", b" 127.0.0.1 1 2\r", b"\n") as caller:
        caller.associate()


def test_hosts_of_a_peer_are_those_of_the_sender(node: Node, watch: Watch) -> None:
    with calling(node, header("192.0.2.1")) as caller:
        assert caller.rejected() == CALLING_UNKNOWN
    watch.event("association_rejected", address="192.0.2.1", reason="may not call from 192.0.2.1")
    for unknown in (b"PROXY UNKNOWN\r\n", SIGNATURE + b"\x21\x00\x00\x00"):
        with calling(node, unknown) as caller:
            # The balancer does not know the sender: its own address counts, and no peer has it.
            assert caller.rejected() == CALLING_UNKNOWN


@pytest.mark.parametrize(
    ("sent", "cause"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00", "proxy_missing"),
        (SIGNATURE + b"\x21\x11\x00\x04abcd", "proxy_malformed"),
        (b"PROXY TCP4 10.0.0.7\r\n", "proxy_malformed"),
    ],
)
def test_connection_without_a_sound_header_is_closed(node: Node, sent: bytes, cause: str) -> None:
    before = count_refusals(node)
    for port in (node.tls_port, node.plain_port):
        with connect(port) as sock:
            sock.sendall(sent)
            assert read_all(sock, 5) == b""
    await_refusal(node, f"{cause} {BALANCER}", before)


def test_header_has_the_deadline_of_the_handshake(node: Node) -> None:
    before, began = count_refusals(node), time.monotonic()
    with connect(node.plain_port) as sock:
        sock.sendall(header()[:20])
        assert read_all(sock, 5) == b""
    assert SECONDS * 0.9 < time.monotonic() - began < SECONDS + 2
    await_refusal(node, f"proxy_deadline {BALANCER}", before)


def test_other_addresses_are_closed_unread(node: Node, watch: Watch) -> None:
    before = count_refusals(node)
    with connect(node.plain_port, "127.0.0.8") as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(header())
        assert read_all(sock, 5) == b""
    await_refusal(node, "not_balancer 127.0.0.8", before)
    watch.event("not_a_balancer", address="127.0.0.8")


def test_health_checks_of_a_balancer_never_count_as_failures(node: Node, watch: Watch) -> None:
    for _ in range(5):
        for port in (node.tls_port, node.plain_port):
            for sent in (b"", LOCAL, LOCAL + b"\x16\x03\x01"):
                with connect(port) as sock:
                    sock.sendall(sent)
                    sock.shutdown(socket.SHUT_WR)
                    read_all(sock, 5)
    with calling(node, header()) as caller:
        caller.associate()
    assert list(watch.events("address_refused")) == []


def test_limits_count_each_sender_and_not_the_balancer(node: Node) -> None:
    with contextlib.ExitStack() as stack:
        first, *more = (stack.enter_context(calling(node, header("203.0.113.50"))) for _ in range(3))
        other = stack.enter_context(calling(node, header("203.0.113.51")))
        first.expect_closed()  # max_newcomers_per_address is 2
        for caller in (*more, other):
            caller.associate()


def test_a_sender_that_fails_too_often_shuts_out_nobody_else(node: Node) -> None:
    for _ in range(4):
        with calling(node, header("203.0.113.60") + b"not DICOM at all") as caller:
            caller.read(100)
    with calling(node, header("203.0.113.60")) as caller:
        caller.expect_closed()
    assert eventually(lambda: count_refusals(node).get("failures 203.0.113.60"), 6)
    with calling(node, header("203.0.113.61")) as caller:
        caller.associate()
