"""Messages that PS3.7 does not allow, or that are not served here: an A-ABORT or a status."""

import re
from collections.abc import Callable

import pytest

from ingest.dicom import dimse, wire
from ingest.ext.command import encode_command
from tests.faults.caller import (
    INVALID,
    MR,
    SECONDS,
    UNEXPECTED,
    VERIFICATION,
    Caller,
    command,
    data_pdus,
    new_uid,
    p_data,
    pdv,
)
from tests.faults.watch import Watch, known, nothing_received, partial_of, receive, row
from tests.support.instances import CT, Made
from tests.support.nodes import Node, eventually

MAX_COMMAND, MAX_INSTANCE = 2048, 200_000
C_FIND, N_ACTION, C_CANCEL = 0x0020, 0x0130, 0x0FFF


@pytest.fixture(scope="module")
def node(start_node: Callable[..., Node]) -> Node:
    return start_node(receive=receive(max_command_bytes=MAX_COMMAND, max_instance_bytes=MAX_INSTANCE))


@pytest.fixture
def caller(node: Node) -> Caller:
    with Caller.tls(node) as caller:
        caller.associate()
        yield caller


def element(number: int, value: bytes) -> bytes:
    """PS3.7 6.3.1: an element of group 0000."""
    return b"\0\0" + number.to_bytes(2, "little") + len(value).to_bytes(4, "little") + value


def elements(field: int, **others: object) -> bytes:
    values = {"CommandField": field, "MessageID": 7, "CommandDataSetType": 0x0101, **others}
    return encode_command({keyword: value for keyword, value in values.items() if value is not None})


STORE = dimse.encode_store_request(7, CT, "1.2.3")

BROKEN = {
    "too large": (STORE + element(0x5110, bytes(MAX_COMMAND)), INVALID),
    "no bytes": (b"", 0),
    "noise": (bytes(range(40)), INVALID),
    "cut within an element": (STORE[:-1], INVALID),
    "cut within a header": (STORE + b"\0\0\2", INVALID),
    "an element of 4 GiB": (STORE + b"\0\0\0\x10\xff\xff\xff\xff", INVALID),
    "two message IDs": (STORE + element(0x0110, b"\1\0"), INVALID),
    "a number of three bytes": (element(0x0100, b"\1\0\0"), INVALID),
    "no command field": (elements(None), 0),
    "no message ID": (elements(1, MessageID=None), 0),
    "no data set type": (elements(1, CommandDataSetType=None), 0),
    "a C-STORE without a data set": (elements(1, AffectedSOPClassUID=CT, AffectedSOPInstanceUID="1.2"), 0),
    "a response to nothing": (elements(0x8001, MessageIDBeingRespondedTo=1, Status=0), 0),
}
"""Command sets, and the reason of PS3.8 Table 9-26 that their A-ABORT has."""


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_command_set_is_aborted(node: Node, watch: Watch, caller: Caller, case: str) -> None:
    data, reason = BROKEN[case]
    caller.send(command(1, data))
    assert wire.decode_abort(caller.read_pdu()) == wire.Abort(2, reason)
    watch.event("peer_broke_protocol", address="127.0.0.1", calling_ae="CALLER")
    nothing_received(node)


LIBERAL = {
    "two values of Priority": [(0x0700, bytes(4))],
    "Priority twice": [(0x0700, b"\0\0"), (0x0700, b"\2\0")],
    "no Priority": [],
    "Priority without a value": [(0x0700, b"")],
    "a Priority that there is not": [(0x0700, b"\xff\xff")],
    "a Move Originator beyond ASCII": [(0x1030, b"PACS\xc4 "), (0x1031, b"\1\0")],
    "a Move Originator with rubbish behind a NUL": [(0x1030, b"PACS\0\xcd\xcd\xcd")],
    "a Move Originator twice": [(0x1030, b"A "), (0x1030, b"B ")],
    "two values of the Move Originator's Message ID": [(0x1031, b"\1\0\2\0")],
    "a group length of two bytes": [(0x0000, b"\1\0")],
    "no group length": None,
    "a private element": [(0x5010, b"x ")],
    "a retired element of odd length": [(0x0001, b"abc")],
    "the SOP class twice": [(0x0002, CT.encode() + b"\0")],
    "the Message ID twice": [(0x0110, b"\7\0")],
    "an odd AT": [(0x0901, b"\0\0")],
}
"""What comes with the elements that a C-STORE needs, and is not needed (RFC 1122 1.2.2)."""


@pytest.mark.parametrize("case", LIBERAL)
@pytest.mark.parametrize("order", [1, -1], ids=["ascending", "descending"])
def test_an_odd_element_that_nothing_depends_on_costs_no_image(
    node: Node, caller: Caller, case: str, order: int
) -> None:
    made, extra = Made(sop=new_uid()), LIBERAL[case]
    needed = [(2, CT.encode() + b"\0"), (0x0100, b"\1\0"), (0x0110, b"\7\0"), (0x0800, b"\0\0")]
    values = [*needed, (0x1000, made.sop.encode() + b"\0" * (len(made.sop) % 2)), *(extra or [])]
    data = b"".join(element(number, value) for number, value in sorted(values)[::order])
    prefix = b"" if extra is None else element(0, b"\xff\0\0\0")
    caller.send(command(1, prefix + data + b"\x09\0\x10\0\2\0\0\0??" + bytes(2)), data_pdus(1, made.data_set))
    response = caller.response()
    assert (response.status, response.message_id) == (0, 7)
    assert caller.echo() == 0
    eventually(lambda: known(node, made.sop), what="the instance")


@pytest.mark.parametrize("uid", [b"1.2\x00840", b"1.2\n840"])
def test_a_class_that_is_no_uid_is_refused_and_the_association_lives(
    node: Node, caller: Caller, uid: bytes
) -> None:
    caller.send(command(1, STORE.replace(b"1.2.840", uid)), data_pdus(1, bytes(5000)))
    assert caller.response().status == 0x0122
    assert caller.echo() == 0
    nothing_received(node)


def test_a_command_set_that_never_ends_is_aborted_at_its_limit(caller: Caller) -> None:
    caller.send(*[p_data(pdv(1, 1, bytes(100))) for _ in range(MAX_COMMAND // 100 + 1)])
    caller.expect_abort(INVALID)


@pytest.mark.parametrize("field", [C_FIND, N_ACTION])
@pytest.mark.parametrize("query", [None, b"", bytes(50_000)], ids=["no data set", "empty", "50 KB"])
def test_an_operation_that_is_not_served_gets_0211_and_the_association_lives(
    node: Node, caller: Caller, field: int, query: bytes | None
) -> None:
    data_set = 0x0101 if query is None else 0
    caller.send(command(1, elements(field, AffectedSOPClassUID=CT, CommandDataSetType=data_set)))
    if query is not None:
        caller.send(data_pdus(1, query))
    response = caller.response()
    assert (response.command_field, response.message_id) == (field | 0x8000, 7)
    assert response.status == 0x0211
    assert not response.has_data_set
    assert caller.echo() == 0
    nothing_received(node)


def test_a_cancel_of_nothing_is_ignored(caller: Caller) -> None:
    caller.send(command(1, elements(C_CANCEL, MessageID=None, MessageIDBeingRespondedTo=3)))
    assert caller.echo() == 0


def test_an_echo_with_a_data_set_is_answered_after_it(caller: Caller) -> None:
    caller.send(command(3, elements(dimse.C_ECHO_RQ, AffectedSOPClassUID=VERIFICATION, CommandDataSetType=1)))
    caller.send(data_pdus(3, bytes(50_000)))
    assert caller.response().status == 0
    assert caller.echo() == 0


@pytest.mark.parametrize(
    ("context_id", "sop_class", "sop", "status"),
    [
        (1, MR, "1.2.3", 0x0122),  # PS3.7 C.5.19: SOP class is not that of the presentation context
        (3, VERIFICATION, "1.2.3", 0x0122),
        (1, None, "1.2..3", 0x0117),  # PS3.7 C.5.9: invalid SOP instance
        (1, None, "not-a-UID", 0x0117),
        (1, None, "../../../../tmp/x", 0x0117),
        (1, None, "/etc/passwd", 0x0117),
        (1, None, "", 0x0117),
        (1, None, "1." * 500 + "1", 0x0117),
    ],
)
def test_a_store_that_cannot_be_is_drained_and_answered_with_its_status(
    node: Node, caller: Caller, context_id: int, sop_class: str | None, sop: str, status: int
) -> None:
    caller.begin_store(sop, context_id, sop_class=sop_class)
    caller.send(data_pdus(context_id, bytes(50_000)))
    assert caller.response().status == status
    assert caller.echo() == 0
    nothing_received(node)
    assert not known(node, sop)


def test_an_instance_uid_of_10_000_characters_is_aborted_as_a_command_too_large(
    node: Node, caller: Caller
) -> None:
    caller.begin_store("1." * 5000)
    caller.expect_abort(INVALID)
    nothing_received(node)


def test_a_message_id_in_use_gets_0210_and_the_first_message_its_own_answer(node: Node) -> None:
    first, second = (Made(sop=new_uid(), pixels=bytes(2000)) for _ in range(2))
    messages = [
        command(1, dimse.encode_store_request(9, CT, made.sop)) + data_pdus(1, made.data_set)
        for made in (first, second)
    ]
    with Caller.plain(node) as caller:
        caller.associate(async_operations=(8, 1))
        # In one piece, so that the first is on its way to the disk when the second comes.
        caller.send(*messages, wire.RELEASE_RQ)
        answers = {caller.response().status for _ in range(2)}
        assert answers == {0x0210, 0x0000}
        assert caller.read_pdu() == wire.RELEASE_RP
    row(node, first.sop, "stored")
    assert not known(node, second.sop)


def test_a_data_set_too_large_is_drained_and_gets_c000_with_size_and_limit_and_the_association_lives(
    node: Node, watch: Watch, caller: Caller
) -> None:
    large = Made(sop=new_uid(), pixels=bytes(3 * MAX_INSTANCE))
    fits = Made(sop=new_uid(), pixels=bytes(MAX_INSTANCE - 500))
    refused = caller.store(large)
    # Not A7xxH: a sender would try again for ever.
    assert refused.status == 0xC000
    assert refused.error_comment == f"{len(large.data_set)} bytes, max_instance_bytes is {MAX_INSTANCE}"
    assert caller.store(fits).status == 0
    caller.release()
    event = watch.event("instance_refused", status="C000", remedy="raise [receive] max_instance_bytes")
    assert event["sop_instance"] == large.sop
    row(node, fits.sop, "stored")
    nothing_received(node)
    assert not known(node, large.sop)


def test_a_data_set_without_end_holds_no_more_of_the_disk_than_the_limit(node: Node, caller: Caller) -> None:
    caller.begin_store(new_uid())
    path = None
    for _ in range(20):
        caller.send(data_pdus(1, bytes(MAX_INSTANCE // 10), last=False))
        path = path or partial_of(node, 1)
        assert not path.exists() or path.stat().st_size <= MAX_INSTANCE + 4096
    caller.send(data_pdus(1, b""))
    assert caller.response().status == 0xC000
    nothing_received(node)


@pytest.mark.parametrize("connect", [Caller.plain, Caller.tls])
@pytest.mark.parametrize("vanish", [Caller.shut, Caller.reset])
def test_a_peer_that_vanishes_in_mid_image_leaves_nothing_and_the_rest_is_untouched(
    node: Node, watch: Watch, connect: Callable[[Node], Caller], vanish: Callable[[Caller], None]
) -> None:
    lost, kept = (Made(sop=new_uid(), pixels=bytes(150_000)) for _ in range(2))
    with Caller.tls(node) as other, connect(node) as caller:
        for each, made in ((other, kept), (caller, lost)):
            each.associate(calling="KEPT" if each is other else "VANISHED")
            each.begin_store(made.sop)
            each.send(data_pdus(1, made.data_set[:100_000], last=False))
        partial_of(node, 50_000)
        vanish(caller)
        watch.event("association_lost", calling_ae="VANISHED")
        other.send(data_pdus(1, kept.data_set[100_000:]))
        assert other.response().status == 0
        other.release()
    row(node, kept.sop, "stored")
    assert node.stored()[kept.sop].read_bytes().endswith(kept.data_set)
    nothing_received(node)
    assert not known(node, lost.sop)


def test_a_peer_that_vanishes_before_its_answer_loses_nothing_or_all(node: Node) -> None:
    made = Made(sop=new_uid(), pixels=bytes(150_000))
    with Caller.tls(node) as caller:
        caller.associate()
        caller.begin_store(made.sop)
        caller.send(data_pdus(1, made.data_set))
        caller.reset()
    nothing_received(node)
    for path in node.stored().values():
        if made.sop in path.name:
            assert path.read_bytes().endswith(made.data_set)


def test_a_peer_that_releases_and_vanishes_before_its_answers_is_only_gone(node: Node, watch: Watch) -> None:
    instances = [Made(sop=new_uid(), pixels=bytes(1_000)) for _ in range(8)]
    with Caller.plain(node) as caller:
        caller.associate(calling="HASTY")
        messages = [
            command(1, dimse.encode_store_request(number, CT, made.sop)) + data_pdus(1, made.data_set)
            for number, made in enumerate(instances)
        ]
        # The commits are under way when the connection ends.
        caller.send(*messages, wire.RELEASE_RQ)
        caller.shut()
    eventually(lambda: [*watch.events("association_lost"), *watch.events("association_released")])
    for made in instances:
        row(node, made.sop, "stored")
    assert not list(watch.events("event_out_of_place"))


def test_a_release_in_mid_image_is_not_answered_before_the_image_or_its_end(node: Node) -> None:
    with Caller.plain(node) as caller:
        caller.associate()
        caller.begin_store(new_uid())
        caller.send(data_pdus(1, bytes(1000), last=False), wire.RELEASE_RQ, data_pdus(1, bytes(1000)))
        # PS3.8 Table 9-10, Sta8 and Evt10: AA-8.
        caller.expect_abort(UNEXPECTED)
    nothing_received(node)


def test_what_a_peer_says_cannot_forge_lines_of_the_log(node: Node, watch: Watch, caller: Caller) -> None:
    forged = b'x\n{"event":"ready"}'
    data = encode_command({"CommandField": 1, "MessageID": 1, "CommandDataSetType": 0})
    caller.send(command(1, data + element(0x1000, forged) + element(0x0002, CT.encode() + b"\0")))
    caller.send(data_pdus(1, bytes(100)))
    assert caller.response().status == 0x0117
    watch.event("instance_refused")
    assert not list(watch.events("ready"))
    assert re.search(r"\n(?!\{)", node.log.rstrip()) is None


@pytest.mark.parametrize("connect_to", [Caller.plain, Caller.tls], ids=["plain", "tls"])
def test_thousands_of_messages_at_once_are_answered_in_order(
    node: Node, connect_to: Callable[[Node], Caller]
) -> None:
    count, made = 3000, Made(sop=new_uid())
    messages = [command(3, dimse.encode_echo_request(number)) for number in range(1, count)]
    store = command(1, dimse.encode_store_request(0, CT, made.sop)) + data_pdus(1, made.data_set)
    with connect_to(node) as flooding, connect_to(node) as other:
        flooding.associate()
        other.associate()
        flooding.send(store, *messages)
        assert other.echo() == 0
        answered = [flooding.response() for _ in range(count)]
        assert {response.status for response in answered} == {0}
        echoed = [response.message_id for response in answered if response.command_field != 0x8001]
        assert echoed == list(range(1, count))
        flooding.release()
        other.release()
    row(node, made.sop, "stored")


def test_many_messages_at_once_are_all_answered_in_a_sound_order(node: Node) -> None:
    instances = [Made(sop=new_uid(), pixels=bytes(3000)) for _ in range(100)]
    with Caller.tls(node) as caller:
        caller.associate()
        caller.sock.settimeout(SECONDS)
        caller.send(
            *[
                command(1, dimse.encode_store_request(number, CT, made.sop)) + data_pdus(1, made.data_set)
                for number, made in enumerate(instances)
            ],
            wire.RELEASE_RQ,
        )
        answers = [caller.response() for _ in instances]
        assert {answer.message_id for answer in answers} == set(range(100))
        assert {answer.status for answer in answers} == {0}
        assert caller.read_pdu() == wire.RELEASE_RP
    for made in instances:
        row(node, made.sop, "stored")
