"""Handshakes that stall or fail, hundreds of them: who comes with an image does not feel it."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ingest.sender import send_files
from ingest.tls.contexts import client_context
from ingest.transport import Remote
from tests.interop.files import made_uid, write_made
from tests.nodes import Node, eventually
from tests.pki import Material

CLIENT_HELLO_HALF = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100)
STALLED = 500


@pytest.fixture
def stalled() -> Iterator[Callable[[int, int], list[socket.socket]]]:
    """Opens connections to a port that say half of a ClientHello and then nothing."""
    with ExitStack() as stack:

        def open_some(port: int, count: int) -> list[socket.socket]:
            opened = []
            for _ in range(count):
                sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
                sock.sendall(CLIENT_HELLO_HALF)
                opened.append(sock)
            return opened

        yield open_some


def first_image(node: Node, material: Material, path: Path) -> float:
    """Seconds until an image is stored over an association of its own."""
    remote = Remote("localhost", node.tls_port, "INGEST", "TESTS", client_context(material.tls("peer")))
    started = time.monotonic()
    assert not send_files(remote, [path]).failed
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
    context = client_context(material.tls("peer"))
    with (
        socket.create_connection(("127.0.0.1", node.tls_port), 10, source_address=("127.0.0.2", 0)) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as tls,
    ):
        assert tls.version() == "TLSv1.3"
