"""Whoever TLS does not let in reaches no line of DICOM: the parser's window stays as it was.

All that a listener's parser can ever see lies in one buffer, which its connections share. Here it is mapped
from a file, so that the test sees what was in it.
"""

import contextlib
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.dicom import dimse, wire
from ingest.tls.keys import pairs
from tests.faults.caller import Caller, client, command, connect, data_pdus, new_uid, read_all, request
from tests.faults.watch import Watch
from tests.support.instances import CT, Made
from tests.support.nodes import Node, cleaned
from tests.support.pki import Material
from tests.support.tls_peers import SSLConnection

UNTOUCHED = 0xA5
PROGRAM = f"""
import mmap, sys
from ingest.acceptor import listener

window = sys.argv.pop(1)

class Mapped(listener.Listener):
    def __init__(self, *given):
        super().__init__(*given)
        size = len(self.plaintext)
        with open(window, "w+b") as file:
            file.write(bytes([{UNTOUCHED}]) * size)
            file.flush()
            self.plaintext = memoryview(mmap.mmap(file.fileno(), size))

listener.Listener = Mapped
from ingest.cli import main
main()
"""

VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("window") / "plaintext"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, material: Material, window: Path) -> Iterator[Node]:
    signed = pairs.issue_signed("signed", pairs.issue_authority("their authority", key_type="ec"))
    pairs.write_pair(signed, material.folder / "signed by whom", force=True)
    node = Node(tmp_path_factory.mktemp("node"), material, program=("-c", PROGRAM, str(window)))
    with cleaned(node):
        yield node.start(receive="[receive]\nprocesses = 1\nmin_free_bytes = 0\nhandshake_seconds = 2")


@pytest.fixture(autouse=True)
def untouched(window: Path, node: Node) -> None:
    with window.open("r+b") as file:
        file.write(bytes([UNTOUCHED]) * window.stat().st_size)


def seen(window: Path) -> bytes:
    """What has come to the parser's window; empty where nothing has."""
    return window.read_bytes().strip(bytes([UNTOUCHED]))


def said() -> bytes:
    """All of an association that stores an instance, at once."""
    made = Made(sop=new_uid())
    store = command(1, dimse.encode_store_request(1, CT, made.sop))
    return wire.encode_associate_rq(request()) + store + data_pdus(1, made.data_set)


def test_who_is_trusted_does_reach_the_parser(node: Node, window: Path) -> None:
    with Caller.tls(node) as caller:
        caller.associate()
        caller.release()
    assert seen(window)


@pytest.mark.parametrize("first", [b"", b"\x16\x03\x01\x02\0", b"\x17\x03\x03\xff\xff", b"\x80\x2e\x01"])
def test_who_speaks_no_tls_does_not(node: Node, window: Path, watch: Watch, first: bytes) -> None:
    with contextlib.closing(connect(node.tls_port)) as sock:
        sock.sendall(first + said())
        answer = read_all(sock, 5)
    assert answer[:1] in {b"", b"\x15"}  # nothing, or an alert
    watch.event("tls_handshake_failed", address="127.0.0.1")
    assert seen(window) == b""


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", [None, "stranger", "signed by whom", "expired"])
def test_who_is_not_trusted_does_not_with_what_is_sent_behind_the_handshake(
    node: Node, window: Path, watch: Watch, version: ssl.TLSVersion, name: str | None
) -> None:
    tls = SSLConnection(client(node.material, name, version), server_hostname="localhost")
    with contextlib.closing(connect(node.tls_port)) as sock:
        tls.shake_hands()
        sock.sendall(tls.output())
        while not tls.established:
            tls.feed(memoryview(sock.recv(65536)))
            tls.shake_hands()
            if version == ssl.TLSVersion.TLSv1_2:
                break  # the node's Finished, which comes last, never will
        if tls.established:
            # TLS 1.3: the caller may send before it can know what becomes of its certificate.
            tls.write(said())
        last_words = tls.output()
        assert last_words
        sock.sendall(last_words + said())
        read_all(sock, 5)
    watch.event("tls_handshake_failed", address="127.0.0.1")
    assert seen(window) == b""
    assert not node.spooled()
    assert not node.stored()
