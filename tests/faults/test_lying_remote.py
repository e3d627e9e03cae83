"""A remote that answers over TLS what confirms nothing, to the real forwarder: no such delivery counts.

Each remote lies once and is honest from its second association on. A delivery that ends with two attempts was
therefore tried again, and one that ends with one attempt had believed the lie.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest.checks.connect import send_echo
from ingest.config.model import TLS
from ingest.dicom import wire
from ingest.errors import AssociationError
from ingest.ext.encode import encode_p_data
from ingest.requestor.store_scu import Remote, Timeouts
from tests.support.forwarding import Forwarding
from tests.support.instances import EXPLICIT, IMPLICIT, Made
from tests.support.nodes import eventually
from tests.support.peers import AE_TITLE, CT, Conversation, ScriptedPeer, client_tls, make_tls
from tests.support.servers import Valkey

LARGE_BYTES = 8 << 20
EARLY_BYTES = 64 << 10

Asked = dict[str, Any]
Lie = Callable[[Conversation, int, Asked], None]


def us(*values: int) -> bytes:
    return b"".join(value.to_bytes(2, "little") for value in values)


def reply(asked: Asked, **changed: bytes | None) -> bytes:
    """The command set of a C-STORE-RSP with success, with other values for elements named by number."""
    elements: dict[int, bytes | None] = {
        0x0002: asked["AffectedSOPClassUID"].encode(),
        0x0100: us(0x8001),
        0x0120: us(asked["MessageID"]),
        0x0800: us(0x0101),
        0x0900: us(0),
        0x1000: asked["AffectedSOPInstanceUID"].encode(),
    }
    elements |= {int(name[1:], 16): value for name, value in changed.items()}
    out = b""
    for number, value in sorted(elements.items()):
        if value is not None:
            value += b"\0" * (len(value) % 2)
            out += b"\0\0" + us(number) + len(value).to_bytes(4, "little") + value
    return out


def says(*, context: int = 0, **changed: bytes | None) -> Lie:
    """After the whole data set, a success with other elements, or on another presentation context."""

    def lie(peer: Conversation, context_id: int, asked: Asked) -> None:
        peer.read_data_set()
        peer.sock.sendall(encode_p_data(context or context_id, reply(asked, **changed), 0))

    return lie


def answers_early(status: int, part: float = 1.0, *, reads_on: bool = True) -> Lie:
    """An answer (or its first part) after 64 KiB of the data set."""

    def lie(peer: Conversation, context_id: int, asked: Asked) -> None:
        got = 0
        while got < EARLY_BYTES:
            got += len(peer.read_pdu()[1])
        whole = reply(asked, _0900=us(status))
        cut = round(len(whole) * part)
        if cut == len(whole):
            peer.sock.sendall(encode_p_data(context_id, whole, 0))
        else:
            pdv = (cut + 2).to_bytes(4) + bytes((context_id, 1)) + whole[:cut]
            peer.sock.sendall(b"\x04\0" + len(pdv).to_bytes(4) + pdv)
        if reads_on:
            peer.read_data_set()
        if cut < len(whole):
            pdv = (len(whole) - cut + 2).to_bytes(4) + bytes((context_id, 3)) + whole[cut:]
            peer.sock.sendall(b"\x04\0" + len(pdv).to_bytes(4) + pdv)

    return lie


def answers_before_it_is_asked(peer: Conversation, context_id: int, asked: Asked) -> None:
    """Success at once, for the command alone."""
    peer.sock.sendall(encode_p_data(context_id, reply(asked), 0))
    peer.read_data_set()


def contradicts_itself(peer: Conversation, context_id: int, asked: Asked) -> None:
    peer.read_data_set()
    refusal = encode_p_data(context_id, reply(asked, _0900=us(0xA700)), 0)
    peer.sock.sendall(encode_p_data(context_id, reply(asked), 0) + refusal)


def sends_a_data_set_too(peer: Conversation, context_id: int, asked: Asked) -> None:
    peer.read_data_set()
    answer = encode_p_data(context_id, reply(asked, _0800=us(1)), 0)
    peer.sock.sendall(answer + b"\x04\0\0\0\0\x08\0\0\0\4" + bytes((context_id, 2)) + b"\0\0")


def answers_half(peer: Conversation, context_id: int, asked: Asked) -> None:
    peer.read_data_set()
    peer.sock.sendall(encode_p_data(context_id, reply(asked), 0)[:-4])


def answers_without_the_last_fragment(peer: Conversation, context_id: int, asked: Asked) -> None:
    peer.read_data_set()
    whole = reply(asked)
    pdv = (len(whole) + 2).to_bytes(4) + bytes((context_id, 1)) + whole
    peer.sock.sendall(b"\x04\0" + len(pdv).to_bytes(4) + pdv + wire.RELEASE_RQ)


LIES: dict[str, Lie] = {
    "success-after-64-KiB": answers_early(0),
    "success-after-64-KiB-then-silence": answers_early(0, reads_on=False),
    "warning-after-64-KiB": answers_early(0xB000),
    "success-begun-after-64-KiB": answers_early(0, 0.5),
    "success-at-the-command": answers_before_it_is_asked,
    "another-instance": says(_1000=b"1.2.3.99999"),
    "another-class": says(_0002=b"1.2.840.10008.5.1.4.1.1.4"),
    "another-message": says(_0120=us(999)),
    "no-message": says(_0120=None),
    "c-find-rsp": says(_0100=us(0x8020)),
    "c-echo-rsp": says(_0100=us(0x8030)),
    "c-store-rq": says(_0100=us(0x0001)),
    "context-unknown": says(context=77),
    "announces-a-data-set": says(_0800=us(0x0001)),
    "sends-a-data-set": sends_a_data_set_too,
    "no-status": says(_0900=None),
    "two-statuses": says(_0900=us(0, 0xA700)),
    "success-and-refusal": contradicts_itself,
    "half-an-answer": answers_half,
    "no-last-fragment": answers_without_the_last_fragment,
}

TRUTHS: dict[str, Lie] = {
    "odd-elements": says(_0901=b"\0\0", _0902=b"\xc4h", _1021=us(0, 0), _5010=b"x"),
    "status-of-two-values-that-agree": says(_0900=us(0, 0)),
    "no-uids": says(_0002=None, _1000=None),
    "padded-uid": says(_1000=b""),
}


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TLS:
    return make_tls(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def forwarding(tmp_path: Path, redis_server: Valkey, tls: TLS) -> Iterator[Forwarding]:
    made = Forwarding(tmp_path / "node", redis_server, tls)
    yield made
    made.ledger.close()


class Liar:
    """A script for `ScriptedPeer`: one lie, then the truth."""

    def __init__(self, lie: Lie) -> None:
        self._lie = lie
        self._lock = threading.Lock()
        self._lied = False
        self.received = 0

    def __call__(self, peer: Conversation) -> None:
        with contextlib.suppress(EOFError, OSError, AssertionError):  # it is aborted while it lies
            peer.accept()
            with self._lock:
                lies, self._lied = not self._lied, True
            if not lies:
                peer.serve(self._count)
                return
            context_id, asked = peer.read_command()
            self._lie(peer, context_id, asked)
            while (kind := peer.read_pdu()[0]) == 4:
                pass
            if kind == 5:
                peer.sock.sendall(wire.RELEASE_RP)

    def _count(self, asked: Asked) -> int:
        self.received += asked["CommandField"] == 1
        return 0


def forward_to(
    forwarding: Forwarding, tls: TLS, scripts: dict[str, Lie], **settings: object
) -> dict[str, tuple[str, int, int]]:
    """State, attempts and honest receptions of one instance at a remote for each script."""
    liars = {name: Liar(lie) for name, lie in scripts.items()}
    with contextlib.ExitStack() as stack:
        for name, liar in liars.items():
            peer = stack.enter_context(ScriptedPeer(liar, tls))
            defaults = {"retry_first_seconds": 0.1, "response_seconds": 2.0, "max_attempts": 5}
            forwarding.add(peer.port, name, **(defaults | settings))
        (made,) = forwarding.many(1, pixels=bytes(LARGE_BYTES), to=list(scripts))
        stack.enter_context(forwarding.worker())
        for name in scripts:
            forwarding.wake(name)
        ended = lambda: all(forwarding.states(name).keys() & {"delivered", "dead"} for name in scripts)  # noqa: E731
        eventually(ended, 90, f"all ended: { ({name: forwarding.states(name) for name in scripts}) }")
        rows = {name: forwarding.row(made.sop, name) for name in scripts}
        return {name: (row.state.value, row.attempts, liars[name].received) for name, row in rows.items()}


def test_no_lie_counts_as_a_delivery(forwarding: Forwarding, tls: TLS) -> None:
    ended = forward_to(forwarding, tls, LIES)
    assert ended == dict.fromkeys(LIES, ("delivered", 2, 1))


def test_odd_elements_of_a_success_do_not_send_an_instance_again(forwarding: Forwarding, tls: TLS) -> None:
    assert forward_to(forwarding, tls, TRUTHS) == dict.fromkeys(TRUTHS, ("delivered", 1, 0))


ECHO_LIES: dict[str, dict[str, bytes]] = {
    "a C-STORE-RSP": {"_0100": us(0x8001)},
    "another message": {"_0120": us(99)},
    "another class": {"_0002": CT.encode()},
    "a data set": {"_0800": us(0)},
}


@pytest.mark.parametrize("lie", ECHO_LIES.values(), ids=ECHO_LIES)
def test_a_lie_is_no_answer_to_a_c_echo(tls: TLS, lie: dict[str, bytes]) -> None:
    def script(peer: Conversation) -> None:
        with contextlib.suppress(EOFError, OSError):
            peer.accept()
            context_id, asked = peer.read_command()
            sound = {"_0002": asked["AffectedSOPClassUID"].encode(), "_0100": us(0x8030), "_1000": None}
            answer = reply(asked | {"AffectedSOPInstanceUID": ""}, **sound | lie)
            peer.sock.sendall(encode_p_data(context_id, answer, 0))
            peer.read_pdu()

    with ScriptedPeer(script, tls) as peer:
        remote = Remote("127.0.0.1", peer.port, AE_TITLE, "INGEST", client_tls(tls))
        with pytest.raises(AssociationError, match="broke the protocol"):
            send_echo(remote, Timeouts(5, 5))


# One odd presentation context of an A-ASSOCIATE-AC: what is said of context 3, beside a sound context 1.
ODD_CONTEXTS: dict[str, bytes] = {
    "unknown-result": b"\x21\0\0\4\3\0\x2a\0",
    "accepted-without-syntax": b"\x21\0\0\4\3\0\0\0",
    "absent": b"",
    "unknown-context": b"\x21\0\0\4\x63\0\0\0",
    "even-context": b"\x21\0\0\4\2\0\0\0",
    "empty-item": b"\x21\0\0\0",
    "syntax-cut": b"\x21\0\0\x0a\3\0\0\0\x40\0\0\x291.",
    "twice-and-contradictory": b"\x21\0\0\4\3\0\3\0\x21\0\0\4\3\0\4\0",
}


def test_an_odd_context_stops_what_needs_it_and_nothing_else(forwarding: Forwarding, tls: TLS) -> None:
    def script(odd: bytes) -> Callable[[Conversation], None]:
        def play(peer: Conversation) -> None:
            request = wire.decode_associate_rq(peer.read_pdu()[1])
            results = tuple(
                wire.ContextResult(each.context_id, 0, EXPLICIT)
                for each in request.contexts
                if each.transfer_syntaxes == (EXPLICIT,)
            )
            accept = wire.AssociateAccept("", "", contexts=results, title_fields=b"\xff" * 64)
            whole = wire.encode_associate_ac(accept)
            # What is odd comes first among the items, behind the fixed fields.
            body = whole[6:74] + odd + whole[74:]
            peer.sock.sendall(whole[:2] + len(body).to_bytes(4) + body)
            peer.serve()

        return play

    with contextlib.ExitStack() as stack:
        for name, odd in ODD_CONTEXTS.items():
            peer = stack.enter_context(ScriptedPeer(script(odd), tls))
            forwarding.add(peer.port, name)
        sound, hit = forwarding.record(
            Made(sop="1.2.3.1", syntax=EXPLICIT), Made(sop="1.2.3.2", syntax=IMPLICIT), to=list(ODD_CONTEXTS)
        )
        stack.enter_context(forwarding.worker())
        for name in ODD_CONTEXTS:
            forwarding.wake(name)
            forwarding.wait({"delivered": 1, "dead": 1}, destination=name)
            assert forwarding.row(sound.sop, name).attempts == 1
            assert "no context accepted" in str(forwarding.row(hit.sop, name).last_error)
            assert not forwarding.ledger.circuits.read_circuit(name).failures
