"""PDUs that break PS3.8: each gets an A-ABORT that says why, and the connection is closed."""

import contextlib
from collections.abc import Callable

import pytest

from ingest.dicom import dimse, wire
from tests.faults.caller import (
    INVALID,
    UNEXPECTED,
    UNRECOGNIZED,
    Caller,
    command,
    data_pdus,
    new_uid,
    p_data,
    pdu,
    pdv,
    request,
)
from tests.faults.watch import Watch, known, nothing_received, partial_of, receive, row
from tests.support.instances import CT, Made
from tests.support.nodes import Node

MAX_PDU = 32768
RQ = wire.encode_associate_rq(request())
ECHO = dimse.encode_echo_request(1)
CONNECTIONS = pytest.mark.parametrize("connect", [Caller.plain, Caller.tls], ids=["plain", "tls"])


@pytest.fixture(scope="module")
def node(start_node: Callable[..., Node]) -> Node:
    return start_node(receive=receive(max_pdu_length=MAX_PDU))


def changed(at: int, value: bytes) -> bytes:
    """The A-ASSOCIATE-RQ with other bytes at a place."""
    return RQ[:at] + value + RQ[at + len(value) :]


def without(item: int) -> bytes:
    """The A-ASSOCIATE-RQ without the items of a type."""
    body, at = RQ[6:74], 74
    while at < len(RQ):
        end = at + 4 + int.from_bytes(RQ[at + 2 : at + 4])
        body += b"" if RQ[at] == item else RQ[at:end]
        at = end
    return pdu(1, body)


FIRST = {
    # PS3.8 9.3.1: PDU types are 1 to 7
    "unknown type": (pdu(8, bytes(4)), UNRECOGNIZED),
    "type 0": (bytes(10), UNRECOGNIZED),
    "HTTP": (b"GET / HTTP/1.1\r\n\r\n", UNRECOGNIZED),
    "A-ASSOCIATE-RQ of 4 GiB": (b"\x01\0\xff\xff\xff\xff", INVALID),
    "A-ASSOCIATE-RQ of no bytes": (pdu(1, b""), INVALID),
    "A-ASSOCIATE-RQ cut within its titles": (pdu(1, RQ[6:50]), INVALID),
    "an item longer than the PDU": (changed(76, b"\xff\xff"), INVALID),
    "A-RELEASE-RQ of 5 bytes": (pdu(5, bytes(5)), INVALID),
    "an oversized P-DATA-TF": (b"\x04\0\x7f\xff\xff\xff", INVALID),
}
"""Instead of an A-ASSOCIATE-RQ: bytes, and the reason of PS3.8 Table 9-26."""


@CONNECTIONS
def test_a_broken_first_pdu_is_aborted(node: Node, watch: Watch, connect: Callable[[Node], Caller]) -> None:
    aborted(node, connect, FIRST, lambda caller: None)
    assert len(list(watch.events("peer_broke_protocol"))) == len(FIRST)


def aborted(
    node: Node,
    connect: Callable[[Node], Caller],
    cases: dict[str, tuple[bytes, int]],
    prepare: Callable[[Caller], None],
) -> None:
    """Each case on a connection of its own gets its A-ABORT, and the node then closes them all."""
    with contextlib.ExitStack() as stack:
        callers, answers = [], {}
        for case, (data, _) in cases.items():
            caller = stack.enter_context(connect(node))
            callers.append(caller)
            prepare(caller)
            caller.send(data)
            answers[case] = wire.decode_abort(caller.read_pdu())
        assert answers == {case: wire.Abort(2, reason) for case, (_, reason) in cases.items()}
        for caller in callers:
            caller.expect_closed()


ODD = {
    "no application context": (without(0x10), wire.AssociateReject(1, 1, 2)),
    "no presentation context": (without(0x20), wire.AssociateReject(1, 2, 1)),
    "no user information": (without(0x50), {1: 0, 3: 0, 5: 0, 7: 0}),
    "an even context ID": (
        RQ.replace(bytes((1, 0, 0, 0, 0x30)), bytes((2, 0, 0, 0, 0x30))),
        {3: 0, 5: 0, 7: 0},
    ),
    "a context ID that comes twice": (
        RQ.replace(bytes((3, 0, 0, 0, 0x30)), bytes((1, 0, 0, 0, 0x30))),
        {1: 0, 5: 0, 7: 0},
    ),
    "a context without a class": (RQ.replace(b"\x30\0\0\x19", b"\x77\0\0\x19"), {1: 3, 3: 0, 5: 3, 7: 3}),
    "reserved bytes that are set": (
        changed(1, b"\xff")[:8] + b"\xff\xff" + RQ[10:42] + b"\xff" * 32 + RQ[74:],
        {1: 0, 3: 0, 5: 0, 7: 0},
    ),
    "an unknown item": (pdu(1, RQ[6:] + b"\x99\xff\0\3abc"), {1: 0, 3: 0, 5: 0, 7: 0}),
}
"""An A-ASSOCIATE-RQ whose lengths agree: what it gets, or the results of its contexts by ID."""


@pytest.mark.parametrize("case", ODD)
def test_an_odd_item_costs_what_depends_on_it_and_no_more(node: Node, case: str) -> None:
    data, expected = ODD[case]
    with Caller.plain(node) as caller:
        answer = caller.ask(data)
        if isinstance(expected, wire.AssociateReject):
            assert wire.decode_associate_rj(answer) == expected
            return
        accept = wire.decode_associate_ac(answer)
        assert {context.context_id: context.result for context in accept.contexts} == expected
        if expected.get(3) == 0:
            assert caller.echo() == 0


TOO_EARLY = {
    "A-RELEASE-RQ": wire.RELEASE_RQ,
    "A-RELEASE-RP": wire.RELEASE_RP,
    "P-DATA-TF": p_data(pdv(3, 3, ECHO)),
    "A-ASSOCIATE-RJ": pdu(3, bytes((0, 1, 1, 7))),
    "A-ASSOCIATE-AC": pdu(2, RQ[6:]),
}


@pytest.mark.parametrize("case", TOO_EARLY)
def test_a_pdu_before_the_association_is_aborted(node: Node, case: str) -> None:
    with Caller.plain(node) as caller:
        caller.send(TOO_EARLY[case])
        # PS3.8 Table 9-10, Sta2: AA-1, as the service user, whose reasons mean nothing.
        caller.expect_abort(0, source=0)


ESTABLISHED = {
    "unknown type": (pdu(9, b"anything"), UNRECOGNIZED),
    "a second A-ASSOCIATE-RQ": (RQ, UNEXPECTED),
    "A-ASSOCIATE-AC": (pdu(2, RQ[6:]), UNEXPECTED),
    "A-ASSOCIATE-RJ": (pdu(3, bytes((0, 1, 1, 7))), UNEXPECTED),
    "A-RELEASE-RP": (wire.RELEASE_RP, UNEXPECTED),
    "a P-DATA-TF longer than negotiated": (p_data(pdv(1, 3, bytes(MAX_PDU - 5))), INVALID),
    "a P-DATA-TF of no PDV": (p_data(), INVALID),
    "a PDV without a header": (p_data(b"\0\0\0\1\1\3"), INVALID),
    "a PDV longer than its P-DATA-TF": (pdu(4, b"\0\0\1\0\1\3" + bytes(10)), INVALID),
    "a PDV cut within its length": (pdu(4, pdv(3, 1, b"ab") + b"\0\0"), INVALID),
    "a PDV on an even context": (p_data(pdv(2, 3, ECHO)), INVALID),
    "a PDV on a context never proposed": (p_data(pdv(9, 3, ECHO)), INVALID),
    "a data set without a command": (p_data(pdv(1, 2, b"data")), UNEXPECTED),
    "a data set in mid-command": (p_data(pdv(1, 1, ECHO[:20]), pdv(1, 2, b"data")), UNEXPECTED),
    "a command on two contexts": (p_data(pdv(1, 1, ECHO[:20]), pdv(3, 3, ECHO[20:])), UNEXPECTED),
}


@CONNECTIONS
def test_a_broken_pdu_on_an_association_is_aborted(node: Node, connect: Callable[[Node], Caller]) -> None:
    def prepare(caller: Caller) -> None:
        caller.associate()
        assert caller.echo() == 0

    aborted(node, connect, ESTABLISHED, prepare)


IN_MID_IMAGE = {
    "unknown type": (pdu(0x16, b"TLS"), UNRECOGNIZED),
    "a P-DATA-TF longer than negotiated": (pdu(4, bytes(MAX_PDU + 1)), INVALID),
    "a command before the end": (command(1, ECHO), UNEXPECTED),
    "the data set on another context": (p_data(pdv(5, 0, b"data")), UNEXPECTED),
    "a second A-ASSOCIATE-RQ": (RQ, UNEXPECTED),
    "A-RELEASE-RP": (wire.RELEASE_RP, UNEXPECTED),
}


@CONNECTIONS
def test_a_broken_pdu_in_mid_image_is_aborted_and_leaves_no_file(
    node: Node, connect: Callable[[Node], Caller]
) -> None:
    made = Made(sop=new_uid(), pixels=bytes(50_000))

    def prepare(caller: Caller) -> None:
        caller.associate()
        caller.begin_store(made.sop)
        caller.send(data_pdus(1, made.data_set[:40_000], last=False))
        partial_of(node, 10_000)

    aborted(node, connect, IN_MID_IMAGE, prepare)
    nothing_received(node)
    assert not known(node, made.sop)


def test_an_abort_in_mid_image_leaves_no_file(node: Node, watch: Watch) -> None:
    made = Made(sop=new_uid(), pixels=bytes(50_000))
    with Caller.tls(node) as caller:
        caller.associate()
        caller.begin_store(made.sop)
        caller.send(data_pdus(1, made.data_set[:40_000], last=False))
        partial_of(node, 10_000)
        caller.send(wire.encode_abort(0, 0))
        caller.expect_closed()
    watch.event("association_aborted_by_peer", calling_ae="CALLER")
    nothing_received(node)


def test_what_was_acknowledged_before_the_broken_pdu_stays(node: Node) -> None:
    made = Made(sop=new_uid(), pixels=bytes(50_000))
    with Caller.tls(node) as caller:
        caller.associate()
        assert caller.store(made).status == 0
        caller.send(pdu(8, b""))
        caller.expect_abort(UNRECOGNIZED)
    row(node, made.sop, "stored")
    assert node.stored()[made.sop].read_bytes().endswith(made.data_set)


def test_what_follows_a_broken_pdu_is_not_looked_at(node: Node, watch: Watch) -> None:
    made = Made(sop=new_uid())
    whole = command(1, dimse.encode_store_request(7, CT, made.sop)) + data_pdus(1, made.data_set)
    with Caller.plain(node) as caller:
        caller.associate()
        caller.send(p_data(pdv(1, 2, b"data")), whole, RQ, wire.RELEASE_RQ)
        caller.expect_abort(UNEXPECTED)
    nothing_received(node)
    assert not known(node, made.sop)
    assert len(list(watch.events("peer_broke_protocol"))) == 1


@CONNECTIONS
def test_sound_messages_cut_into_single_bytes_are_taken(
    node: Node, connect: Callable[[Node], Caller]
) -> None:
    made = Made(sop=new_uid(), pixels=bytes(20))
    whole = command(1, dimse.encode_store_request(7, CT, made.sop)) + data_pdus(1, made.data_set, length=3)
    with connect(node) as caller:
        for byte in RQ:
            caller.send(bytes((byte,)))
        assert caller.read_pdu()[0] == wire.ASSOCIATE_AC
        for byte in whole:
            caller.send(bytes((byte,)))
        assert caller.response().status == 0
        caller.release()
    row(node, made.sop, "stored")
