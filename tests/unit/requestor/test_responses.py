"""Responses of remotes: what is strict, what is not, and what an operation takes for its answer."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.dicom import dimse
from ingest.dicom.responses import OutstandingRequests, SentRequest, decode_response
from ingest.errors import PeerError
from ingest.ext.events import Command
from ingest.ext.pdu import PDUParser
from tests.support.instances import CT

UID = "1.2.3.4"


def element(number: int, value: bytes, group: int = 0) -> bytes:
    return (
        group.to_bytes(2, "little") + number.to_bytes(2, "little") + len(value).to_bytes(4, "little") + value
    )


def us(*values: int) -> bytes:
    return b"".join(value.to_bytes(2, "little") for value in values)


SOUND = {
    0x0002: CT.encode() + b"\0",
    0x0100: us(0x8001),
    0x0120: us(7),
    0x0800: us(0x0101),
    0x0900: us(0),
    0x1000: UID.encode() + b"\0",
}


def response(changed: dict[int, bytes | None] | None = None, more: bytes = b"", first: bytes = b"") -> bytes:
    elements = SOUND | (changed or {})
    return first + b"".join(element(n, v) for n, v in elements.items() if v is not None) + more


def command(data: bytes, context_id: int = 1) -> Command:
    """As a parser gives it."""
    parser = PDUParser()
    pdv = (len(data) + 2).to_bytes(4) + bytes((context_id, 3)) + data
    pdu = b"\x04\0" + len(pdv).to_bytes(4) + pdv
    parser.get_buffer()[: len(pdu)] = pdu
    parser.buffer_updated(len(pdu))
    event = parser.next_event()
    assert isinstance(event, Command)
    return event


def asked(operation: SentRequest | None = None) -> OutstandingRequests:
    """One C-STORE, sent."""
    operations = OutstandingRequests()
    operations.begin_request(operation or SentRequest(7, 1, dimse.C_STORE_RQ, CT, UID))
    operations.end_request(answer_has_begun=False)
    return operations


def all_read() -> bool:
    return False


# What decides nothing.
HARMLESS = {
    "a number of two values that nobody needs": response(more=element(0x1022, us(0, 0))),
    "a number without a value": response(more=element(0x0903, b"")),
    "a list of tags that is cut": response(more=element(0x0901, b"\0\0")),
    "an error comment twice": response(more=element(0x0902, b"a ") + element(0x0902, b"b ")),
    "an error comment beyond ASCII": response(more=element(0x0902, b"\xc4\x1b[2Jh")),
    "an error comment of odd length": response(more=element(0x0902, b"odd")),
    "an error comment of 60000 bytes": response(more=element(0x0902, b"x" * 60000)),
    "an unknown element": response(more=element(0x5010, b"x ")),
    "an element of another group": response(more=element(0x0018, b"9.9.9\0", group=8)),
    "a group length that is wrong": response(first=element(0, b"\xff\xff\xff\xff")),
    "a group length of two bytes": response(first=element(0, b"\x10\0")),
    "a message ID of its own": response(more=element(0x0110, us(3))),
    "a requested UID that is none": response(more=element(0x1001, b"none")),
    "an AE title beyond ASCII": response(more=element(0x1030, b"\xc4 ")),
    "elements out of order": b"".join(element(n, SOUND[n]) for n in reversed(SOUND)),
    "a status twice": response(more=element(0x0900, us(0))),
    "a status of two values that agree": response({0x0900: us(0, 0)}),
    "a message ID of two values that agree": response({0x0120: us(7, 7)}),
    "UIDs padded with spaces": response({0x0002: CT.encode() + b"  ", 0x1000: UID.encode() + b" "}),
    "UIDs without padding": response({0x0002: CT.encode(), 0x1000: UID.encode()}),
    "UIDs without a value": response({0x0002: b"", 0x1000: b"\0\0"}),
    "no UIDs": response({0x0002: None, 0x1000: None}),
    "UIDs twice": response(more=element(0x1000, UID.encode()) + element(0x0002, CT.encode())),
    "bytes behind the NUL of a UID": response({0x1000: UID.encode() + b"\0x"}),
    "no data set type": response({0x0800: None}),
    "a data set type without a value": response({0x0800: b""}),
    "a last element that is cut": response(more=element(0x0902, b"comment")[:-3]),
    "a byte behind the last element": response(more=b"\0"),
}


@pytest.mark.parametrize("data", HARMLESS.values(), ids=HARMLESS)
def test_what_decides_nothing_does_not_unmake_a_success(data: bytes) -> None:
    operations = asked()
    operations.record_response(command(data), all_read)
    number, found = operations.answers.popleft()
    assert (number, found.status) == (7, 0)
    assert len(found.error_comment) <= 256
    assert found.error_comment.isprintable()
    assert operations.count == 0


# What confirms nothing.
HARMFUL = {
    "another message": response({0x0120: us(8)}),
    "no message": response({0x0120: None}),
    "two messages": response({0x0120: us(7, 8)}),
    "a message twice, differently": response(more=element(0x0120, us(8))),
    "no status": response({0x0900: None}),
    "a status without a value": response({0x0900: b""}),
    "a status of one byte": response({0x0900: b"\0"}),
    "two statuses": response({0x0900: us(0, 0xA700)}),
    "a status twice, differently": response(more=element(0x0900, us(0xA700))),
    "a C-FIND-RSP": response({0x0100: us(0x8020)}),
    "a C-ECHO-RSP": response({0x0100: us(0x8030)}),
    "an N-CREATE-RSP": response({0x0100: us(0x8140)}),
    "a C-STORE-RQ": response({0x0100: us(0x0001), 0x0110: us(7)}),
    "no type": response({0x0100: None}),
    "two types": response({0x0100: us(0x8001, 0x8020)}),
    "another SOP class": response({0x0002: b"1.2.840.10008.5.1.4.1.1.4\0"}),
    "another SOP instance": response({0x1000: b"1.2.3.5\0"}),
    "a longer SOP instance": response({0x1000: b"1.2.3.44"}),
    "a SOP instance twice, differently": response(more=element(0x1000, b"1.2.3.5\0")),
    "a SOP instance that is no UID": response({0x1000: b"\xff\x1b[2J"}),
    "a data set": response({0x0800: us(0x0001)}),
    "a data set, otherwise said": response({0x0800: us(0)}),
    "nothing": b"",
    "text": b"HTTP/1.1 200 OK\r\n\r\n",
}


@pytest.mark.parametrize("data", HARMFUL.values(), ids=HARMFUL)
def test_what_answers_something_else_confirms_nothing(data: bytes) -> None:
    operations = asked()
    with pytest.raises(PeerError) as raised:
        operations.record_response(command(data), all_read)
    assert str(raised.value).isprintable()
    assert not operations.answers
    assert operations.count == 1


@pytest.mark.parametrize("uid", ["1.2.3.4", "1.2.3.45"])
def test_the_usual_success_is_read_as_any_other_answer(uid: str) -> None:
    """It is compared, not decoded; one changed bit, and it says what the decoder makes of it."""
    usual = dimse.encode_store_success(7, CT, uid)
    for bit in range(-1, 8 * len(usual)):
        data = bytearray(usual)
        if bit >= 0:
            data[bit // 8] ^= 1 << bit % 8
        operations = asked(SentRequest(7, 1, dimse.C_STORE_RQ, CT, uid))
        try:
            operations.record_response(command(bytes(data)), all_read)
        except PeerError:
            assert bit >= 0
            assert not operations.answers
            continue
        assert operations.answers.popleft() == (7, decode_response(bytes(data)))


def test_the_usual_success_is_held_to_context_message_operation_and_time() -> None:
    usual = command(dimse.encode_store_success(7, CT, UID))
    with pytest.raises(PeerError, match="context 1, not 3"):
        asked(SentRequest(7, 3, dimse.C_STORE_RQ, CT, UID)).record_response(usual, all_read)
    with pytest.raises(PeerError, match="message 7, but 8 was asked"):
        asked(SentRequest(8, 1, dimse.C_STORE_RQ, CT, UID)).record_response(usual, all_read)
    with pytest.raises(PeerError, match="type 8001H"):
        asked(SentRequest(7, 1, dimse.C_ECHO_RQ, CT)).record_response(usual, all_read)
    with pytest.raises(PeerError, match="before the data set was sent"):
        asked().record_response(usual, lambda: True)
    sending = OutstandingRequests()
    sending.begin_request(SentRequest(7, 1, dimse.C_STORE_RQ, CT, UID))
    with pytest.raises(PeerError, match="before the data set was sent"):
        sending.record_response(usual, all_read)
    done = asked()
    done.record_response(usual, all_read)
    with pytest.raises(PeerError, match="but nothing was asked"):
        done.record_response(usual, all_read)


def test_an_answer_on_another_context_confirms_nothing() -> None:
    operations = asked()
    with pytest.raises(PeerError, match="context 3, not 1"):
        operations.record_response(command(response(), context_id=3), all_read)


def test_an_answer_is_given_once() -> None:
    operations = asked()
    operations.record_response(command(response()), all_read)
    with pytest.raises(PeerError, match="but nothing was asked"):
        operations.record_response(command(response()), all_read)


def test_answers_may_change_their_order_where_several_operations_run() -> None:
    operations = OutstandingRequests()
    for number in (7, 8):
        operations.begin_request(SentRequest(number, 1, dimse.C_STORE_RQ, CT, f"1.2.{number}"))
        operations.end_request(answer_has_begun=False)
    for number in (8, 7):
        data = response({0x0120: us(number), 0x1000: f"1.2.{number}".encode()})
        operations.record_response(command(data), all_read)
    assert [number for number, _ in operations.answers] == [8, 7]


@pytest.mark.parametrize("status", [0x0000, 0xB000, 0xB007, 0x0001, 0xFF00, 0xFE00])
@pytest.mark.parametrize("sent", [True, False])
def test_only_a_failure_may_come_before_the_end_of_the_data_set(status: int, sent: bool) -> None:
    def early(status: int) -> OutstandingRequests:
        operations = OutstandingRequests()
        operations.begin_request(SentRequest(7, 1, dimse.C_STORE_RQ, CT, UID))
        unread: Callable[[], bool] = all_read
        if sent:
            # The last fragment was handed to the kernel, and the remote's TCP has not got it.
            operations.end_request(answer_has_begun=False)
            unread = lambda: True  # noqa: E731 - as is
        operations.record_response(command(response({0x0900: us(status)})), unread)
        return operations

    with pytest.raises(PeerError, match="before the data set was sent"):
        early(status)
    assert early(0xA700).answers[0][1].status == 0xA700


def test_an_answer_that_begins_before_the_end_of_the_data_set_confirms_nothing() -> None:
    operations = OutstandingRequests()
    operations.begin_request(SentRequest(7, 1, dimse.C_STORE_RQ, CT, UID))
    with pytest.raises(PeerError, match="began before"):
        operations.end_request(answer_has_begun=True)


@pytest.mark.parametrize(
    "changed",
    [{0x0100: us(0x8001)}, {0x0002: CT.encode()}, {0x0120: us(8)}, {0x0800: us(1)}],
    ids=["a C-STORE-RSP", "another SOP class", "another message", "a data set"],
)
def test_a_verification_is_held_to_the_same(changed: dict[int, bytes | None]) -> None:
    echo: dict[int, bytes | None] = {0x0100: us(0x8030), 0x0002: b"1.2.840.10008.1.1\0", 0x1000: None}
    operation = SentRequest(7, 1, dimse.C_ECHO_RQ, "1.2.840.10008.1.1")
    asked(operation).record_response(command(response(echo)), all_read)
    with pytest.raises(PeerError):
        asked(operation).record_response(command(response(echo | changed)), all_read)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_response_or_a_peer_error(data: bytes) -> None:
    try:
        decode_response(data)
    except PeerError as error:
        assert str(error).isprintable()  # noqa: PT017 - it need not raise
