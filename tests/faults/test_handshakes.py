"""Handshakes that stall or fail, hundreds of them: who comes with an image does not feel it."""

import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ingest.acceptor.scoreboard import PENDING, ROWS, Scoreboard
from ingest.dicom import wire
from ingest.requestor.send_files import send_files
from ingest.requestor.transport import Remote
from ingest.tls.contexts import build_client_context
from tests.faults.caller import CALLED_UNKNOWN, LOCAL_LIMIT, SECONDS, Caller, client, handshake, request
from tests.interop.files import made_uid, write_made
from tests.support.nodes import Node, cleaned, eventually
from tests.support.pki import Material
from tests.support.tls_peers import SSLConnection, ssl_client_context

CLIENT_HELLO_HALF = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100)
STALLED = 500
SOUND, BAD = "127.0.0.1", "127.0.0.2"


def connect(port: int, source: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), SECONDS, source_address=(source, 0))


@pytest.fixture
def stalled() -> Iterator[Callable[[int, int], list[socket.socket]]]:
    """Opens connections to a port, from another address, that say half of a ClientHello and then nothing."""
    with ExitStack() as stack:

        def open_some(port: int, count: int) -> list[socket.socket]:
            opened = []
            for _ in range(count):
                sock = stack.enter_context(connect(port, BAD))
                sock.sendall(CLIENT_HELLO_HALF)
                opened.append(sock)
            return opened

        yield open_some


def first_image(node: Node, material: Material, path: Path) -> float:
    """Seconds until an image is stored over an association of its own."""
    remote = Remote("localhost", node.tls_port, "INGEST", "TESTS", build_client_context(material.tls("peer")))
    started = time.monotonic()
    assert not send_files(remote, [path]).failed_files
    return time.monotonic() - started


@pytest.mark.parametrize("of_one", [64, 100_000])
def test_five_hundred_stalled_handshakes_hold_nobody_back(
    make_node: Callable[..., Node],
    material: Material,
    tmp_path: Path,
    stalled: Callable[[int, int], list[socket.socket]],
    record_property: Callable[[str, object], None],
    of_one: int,
) -> None:
    """Also where nothing bounds them but their number, and fewer associations are allowed than there are."""
    paths = write_made(tmp_path / "made", 6)
    receive = (
        f"[receive]\nmax_newcomers_per_address = {of_one}\nmax_associations = 100\nhandshake_seconds = 60"
    )
    node = make_node(receive=receive).start()
    usual = max(first_image(node, material, path) for path in paths[:3])
    opened = stalled(node.tls_port, STALLED)
    crowded = [first_image(node, material, path) for path in paths[3:]]
    record_property("usual_and_crowded", (round(usual, 4), [round(seconds, 4) for seconds in crowded]))
    assert max(crowded) < 5  # none of them waited for a deadline
    eventually(lambda: node.stored().keys() == {made_uid(number) for number in range(6)}, 20)
    assert "newcomer_closed" in node.log or of_one > STALLED
    assert len(opened) == STALLED


def test_address_that_fails_too_often_is_closed_unread_and_others_are_not(
    make_node: Callable[..., Node], material: Material, tmp_path: Path
) -> None:
    [path] = write_made(tmp_path / "made", 1)
    node = make_node(receive="[receive]\nprocesses = 1\nmax_failures_per_minute = 3").start()
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", node.tls_port), 10) as sock:
            sock.sendall(b"\x01\x00\x00\x00\x00\x10" + bytes(16))  # plain DICOM
            while sock.recv(100):
                pass
    eventually(lambda: "address_refused" in node.log, 10, "it is said")
    with pytest.raises(AssertionError):
        first_image(node, material, path)
    context = ssl_client_context(material.tls("peer"))
    with (
        connect(node.tls_port, BAD) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as tls,
    ):
        assert tls.version() == "TLSv1.3"


def slow_flights(node: Node) -> Iterator[None]:
    """An association over TLS of which each flight is sent in a turn of its own."""
    window = memoryview(bytearray(65536))
    with connect(node.tls_port, SOUND) as sock:
        tls = SSLConnection(client(node.material, "peer"))
        while not tls.shake_hands():
            sock.sendall(tls.output())
            yield
            tls.feed(window[: _received(sock, window)])
        sock.sendall(tls.output())
        yield
        tls.write(wire.encode_associate_rq(request()))
        sock.sendall(tls.output())
        while not tls.read_into(window):
            tls.feed(window[: _received(sock, window)])
        assert window[0] == 2, "A-ASSOCIATE-AC"


def _received(sock: socket.socket, window: memoryview) -> int:
    count = sock.recv_into(window)
    assert count, "closed"
    return count


def test_addresses_that_renew_connections_crowd_out_each_other_and_not_a_slow_sender(
    make_node: Callable[..., Node],
) -> None:
    """Each below its own bound, and all of them together far above that of the process."""
    limits = "max_newcomers = 16\nmax_newcomers_per_address = 8\nmax_failures_per_minute = 0"
    node = make_node(receive=f"[receive]\nprocesses = 1\nmin_free_bytes = 0\n{limits}").start()
    with ExitStack() as stack:
        for _ in slow_flights(node):
            for number in range(120):
                stack.enter_context(connect(node.tls_port, f"127.0.1.{number % 6}"))
        eventually(lambda: len(node.events("newcomer_closed")) >= 2 * 120 - 16, 10)
    closed = node.events("newcomer_closed")
    assert {event["address"] for event in closed} == {f"127.0.1.{number}" for number in range(6)}
    assert sum(event["level"] == "info" for event in closed) == 6, "each said once"


# --- what counts as a failure, and what does not


def abandoned(node: Node, source: str) -> None:
    """{ClientHello, read flight, close}: it has cost us a signature."""
    with connect(node.tls_port, source) as sock:
        tls = SSLConnection(client(node.material, "peer"))
        tls.shake_hands()
        sock.sendall(tls.output())
        assert sock.recv(65536)


def late(node: Node, source: str) -> None:
    with connect(node.tls_port, source) as sock:
        sock.sendall(CLIENT_HELLO_HALF)
        assert not sock.recv(100)


def silent(node: Node, source: str) -> None:
    with connect(node.plain_port, source) as sock:
        assert not sock.recv(100)


def says(said: bytes) -> Callable[[Node, str], None]:
    def plain(node: Node, source: str) -> None:
        with connect(node.plain_port, source) as sock:
            sock.sendall(said)
            assert Caller(sock).read_pdu()[:1] == b"\x07"

    return plain


def calls_another(node: Node, source: str) -> None:
    with connect(node.plain_port, source) as sock:
        assert Caller(sock).rejected(called="ANOTHER") == CALLED_UNKNOWN


def bare(node: Node, source: str) -> None:
    before = len(node.events("closed_before_handshake"))
    connect(node.tls_port, source).close()
    eventually(lambda: len(node.events("closed_before_handshake")) > before, 10)


def leaves_after_handshake(node: Node, source: str) -> None:
    with handshake(connect(node.tls_port, source), client(node.material, "peer")) as tls:
        assert tls.version() == "TLSv1.3"


def without_contexts(node: Node, source: str) -> None:
    with connect(node.plain_port, source) as sock:
        caller = Caller(sock)
        [context] = caller.associate(contexts=[(1, "1.2.840.10008.5.1.1.16", "1.2.840.10008.1.2")]).contexts
        assert context.result
        caller.release()


def when_full(node: Node, source: str) -> None:
    with connect(node.plain_port, SOUND) as first, connect(node.plain_port, source) as second:
        Caller(first).associate()
        assert Caller(second).rejected() == LOCAL_LIMIT


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory, material: Material) -> Iterator[Node]:
    limits = (
        "max_failures_per_minute = 2\nmax_associations = 1\nhandshake_seconds = 0.5\nartim_seconds = 0.5"
        "\ncheck_called_ae = true"
    )
    node = Node(tmp_path_factory.mktemp("limited") / "node", material)
    node.configure(receive=f"[receive]\nprocesses = 1\nmin_free_bytes = 0\n{limits}")
    with cleaned(node):
        yield node.start()


FAILURES = {
    "given up": abandoned,
    "handshake late": late,
    "request late": silent,
    "no DICOM": says(b"\x16\x03\x01\x00\x05hello"),
    "out of order": says(wire.RELEASE_RQ),
    "another called": calls_another,
}
NO_FAILURES = {
    "nothing said": bare,
    "nothing asked": leaves_after_handshake,
    "no context": without_contexts,
    "node full": when_full,
}


@pytest.mark.parametrize("what", FAILURES)
def test_what_counts_as_a_failure_of_its_address(limited: Node, what: str) -> None:
    source = f"127.0.2.{list(FAILURES).index(what)}"
    for _ in range(2):
        FAILURES[what](limited, source)
    eventually(lambda: source in refused(limited), 10)
    with connect(limited.plain_port, source) as sock:
        assert not sock.recv(1), "closed unread"


@pytest.mark.parametrize("what", NO_FAILURES)
def test_what_is_no_failure_of_its_address(limited: Node, what: str) -> None:
    source = f"127.0.3.{list(NO_FAILURES).index(what)}"
    for _ in range(4):
        NO_FAILURES[what](limited, source)

    def accepted() -> bool:
        with connect(limited.plain_port, source) as sock:
            answer = Caller(sock).ask(request())
        assert answer, "closed unread"
        return answer[:1] == b"\x02"  # not while the association before has not ended

    eventually(accepted, 10)
    assert source not in refused(limited)


def refused(node: Node) -> set[str]:
    return {event["address"] for event in node.events("address_refused")}


# --- reload


def newcomers(node: Node) -> int:
    board = Scoreboard.open_reader(node.data / "run" / "scoreboard")
    assert board is not None
    return sum(board.get(row, PENDING) for row in range(ROWS))


def retired(node: Node) -> list[dict[str, object]]:
    """What each of the two listeners said, once both have."""
    found = node.events("retiring")
    return found if len(found) == 2 else []


def test_a_reload_closes_who_has_no_association_yet_and_none_that_runs(node: Node) -> None:
    with ExitStack() as stack:
        running = stack.enter_context(Caller.tls(node))
        running.associate()
        bare = stack.enter_context(connect(node.tls_port, SOUND))
        half = stack.enter_context(connect(node.tls_port, SOUND))
        half.sendall(CLIENT_HELLO_HALF)
        ready = stack.enter_context(Caller.tls(node))
        eventually(lambda: newcomers(node) == 3, 10)
        assert node.process is not None
        node.process.send_signal(signal.SIGHUP)
        for sock in (bare, half, ready.sock):
            Caller(sock).expect_closed()
        assert sum(event["newcomers_closed"] for event in eventually(lambda: retired(node), 10)) == 3
        assert running.echo() == 0
        running.release()
