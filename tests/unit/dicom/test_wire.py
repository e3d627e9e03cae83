"""A-ASSOCIATE, A-RELEASE and A-ABORT: both ways, at their bounds, and with what a sloppy peer sends."""

import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.dicom import uids, wire
from ingest.dicom.wire import AssociateAccept, AssociateRequest, ContextResult, ProposedContext
from ingest.errors import PeerError

CT, IMPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2"


def item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def context(context_id: int, *sub_items: bytes) -> bytes:
    return item(0x20, bytes((context_id, 0, 0, 0)) + b"".join(sub_items))


ABSTRACT, TRANSFER = item(0x30, CT.encode()), item(0x40, IMPLICIT.encode())
NAME = item(0x10, uids.APPLICATION_CONTEXT.encode())
LENGTH = item(0x51, struct.pack(">L", 4096))
USER = item(0x50, LENGTH + item(0x52, b"1.2.3"))
CONTEXT = context(1, ABSTRACT, TRANSFER)


def rq(
    *variable: bytes,
    called: bytes = b"NODE            ",
    calling: bytes = b"CT1             ",
    version: int = 1,
) -> bytes:
    body = struct.pack(">HH", version, 0) + called + calling + bytes(32) + b"".join(variable)
    return b"\x01\x00" + len(body).to_bytes(4) + body


def ac(*variable: bytes) -> bytes:
    return b"\x02" + rq(*variable)[1:]


def reason_of(data: bytes) -> int:
    decode = wire.decode_associate_rq if data[0] == 1 else wire.decode_associate_ac
    with pytest.raises(PeerError) as raised:
        decode(data)
    return raised.value.reason


@given(st.binary(max_size=300))
def test_any_bytes_behind_a_header_give_a_value_or_a_peer_error(noise: bytes) -> None:
    for decode, data in (
        (wire.decode_associate_rq, rq(NAME, noise, USER)),
        (wire.decode_associate_rq, rq(NAME, CONTEXT, item(0x50, noise))),
        (wire.decode_associate_rq, rq(NAME, context(1, noise), USER)),
        (wire.decode_associate_ac, ac(NAME, item(0x21, b"\x01\x00\x00\x00" + noise), USER)),
        (wire.decode_associate_rj, noise),
        (wire.decode_abort, noise),
    ):
        try:
            decode(data)
        except PeerError as error:
            assert error.reason in {PeerError.UNEXPECTED_PARAMETER, PeerError.INVALID_PARAMETER}  # noqa: PT017 - it need not raise


def test_rejections_and_aborts_of_another_length_are_refused() -> None:
    for decode, data in (
        (wire.decode_associate_rj, b"\x03\x00\x00\x00\x00\x05" + bytes(5)),
        (wire.decode_associate_rj, b"\x03\x00\x00\x00\x00\x03" + bytes(3)),
        (wire.decode_abort, b"\x07\x00\x00\x00\x00\x00"),
        (wire.decode_abort, b"\x03" + bytes(9)),
        (wire.decode_abort, b""),
    ):
        with pytest.raises(PeerError):
            decode(data)


def test_odd_uids_of_a_peer_raise_no_warning() -> None:
    odd = context(1, item(0x30, b"1.02.x"), item(0x40, b"no uid"))
    read = wire.decode_associate_rq(rq(NAME, odd, USER))
    assert read.contexts == (ProposedContext(1, "1.02.x", ("no uid",)),)
    assert wire.decode_associate_rq(wire.encode_associate_rq(read)).contexts == read.contexts


def test_rejections_are_said_in_words() -> None:
    assert str(wire.LOCAL_LIMIT_EXCEEDED) == "rejected (transient): local limit exceeded"
    assert not wire.LOCAL_LIMIT_EXCEEDED.permanent
    assert "calling AE title not recognized" in str(wire.CALLING_AE_NOT_RECOGNIZED)
    assert "no reason given" in str(wire.AssociateReject(1, 3, 9))


def test_items_may_come_in_any_order_and_unknown_ones_are_skipped() -> None:
    unknown = item(0x99, b"whatever")
    user = item(0x50, unknown + item(0x56, b"\x00\x031.2") + LENGTH + item(0x55, b"V1"))
    read = wire.decode_associate_rq(
        rq(user, unknown, context(3, TRANSFER, unknown, ABSTRACT, TRANSFER), NAME)
    )
    assert read.contexts == (ProposedContext(3, CT, (IMPLICIT, IMPLICIT)),)
    assert (read.max_pdu_length, read.implementation_version, read.implementation_class_uid) == (
        4096,
        "V1",
        "",
    )


def test_uids_padded_with_nul_or_space_are_read_without() -> None:
    padded = context(1, item(0x30, CT.encode() + b"\0"), item(0x40, IMPLICIT.encode() + b" \0\0"))
    read = wire.decode_associate_rq(rq(item(0x10, uids.APPLICATION_CONTEXT.encode() + b"\0"), padded, USER))
    assert read.contexts == (ProposedContext(1, CT, (IMPLICIT,)),)
    assert read.application_context == uids.APPLICATION_CONTEXT


def test_ae_titles_lose_spaces_at_both_ends_and_keep_their_bytes_for_the_answer() -> None:
    read = wire.decode_associate_rq(
        rq(NAME, CONTEXT, USER, called=b"  NODE A        ", calling=b"CT1\0\0\0\0\0\0\0\0\0\0\0\0\0")
    )
    assert (read.called_ae, read.calling_ae) == ("NODE A", "CT1")
    assert read.title_fields[:32] == b"  NODE A        CT1" + bytes(13)
    answer = AssociateAccept(
        "NODE A", "CT1", (ContextResult(1, 0, IMPLICIT),), title_fields=read.title_fields
    )
    assert wire.encode_associate_ac(answer)[10:74] == read.title_fields


def test_blank_ae_titles_are_read_as_empty() -> None:
    assert wire.decode_associate_rq(rq(NAME, CONTEXT, USER, called=b" " * 16)).called_ae == ""
    assert wire.decode_associate_rq(rq(NAME, CONTEXT, USER, called=bytes(16))).called_ae == ""


@pytest.mark.parametrize(
    ("field", "title"),
    [
        (b"CT1\0\xcd\xcd\xcd", "CT1"),
        (b"CT1\0OLDNAME", "CT1"),
        (b"  CT1 \0X", "CT1"),
        (b"\0CT1", ""),
        (b"A\\B", "A?B"),
        (b"A\nB", "A?B"),
        (b"CT\xc4", "CT?"),
        (b"A\x7f", "A?"),
    ],
)
def test_an_ae_title_ends_before_a_nul_and_what_none_has_is_a_question_mark(field: bytes, title: str) -> None:
    read = wire.decode_associate_rq(rq(NAME, CONTEXT, USER, calling=field.ljust(16), called=field.ljust(16)))
    assert (read.calling_ae, read.called_ae) == (title, title)
    assert read.title_fields[:32] == field.ljust(16) * 2


def test_sloppy_names_do_not_end_an_association() -> None:
    user = item(
        0x50, LENGTH + item(0x52, b"not a uid \xff") + item(0x55, b"a name that is much too long\xff")
    )
    read = wire.decode_associate_rq(rq(NAME, CONTEXT, user))
    assert read.implementation_class_uid == "not a uid ?"
    assert read.implementation_version.endswith("long?")


def test_a_missing_maximum_length_is_taken_for_a_small_one() -> None:
    assert wire.decode_associate_rq(rq(NAME, CONTEXT, item(0x50, b""))).max_pdu_length == 16384


@pytest.mark.parametrize(
    "data",
    [
        rq(NAME, CONTEXT, USER, b"\x00"),
        rq(NAME, CONTEXT, USER[:-1]),
        rq(NAME, CONTEXT, USER) + b"\x00",
        rq(NAME, CONTEXT, USER)[:-1],
        rq(NAME, CONTEXT, USER, *[item(0x99, b"")] * 1024),
        rq(NAME, CONTEXT, item(0x50, LENGTH + item(0x99, b"") * 1024)),
        rq(NAME, CONTEXT, item(0x50, LENGTH + b"\x55\x00\x00\x05")),
        rq()[:60],
    ],
)
def test_broken_pdus_are_invalid_parameters(data: bytes) -> None:
    assert reason_of(data) == PeerError.INVALID_PARAMETER


@pytest.mark.parametrize("variable", [(), (NAME, CONTEXT), (NAME, USER), (CONTEXT, USER)])
def test_a_missing_item_is_read_as_nothing(variable: tuple[bytes, ...]) -> None:
    read = wire.decode_associate_rq(rq(*variable))
    assert read.application_context == (uids.APPLICATION_CONTEXT if NAME in variable else "")
    assert read.contexts == ((ProposedContext(1, CT, (IMPLICIT,)),) if CONTEXT in variable else ())
    assert read.max_pdu_length == (4096 if USER in variable else 16384)


@pytest.mark.parametrize(
    "variable",
    [(NAME, item(0x10, b"1.2"), CONTEXT, USER), (NAME, CONTEXT, USER, item(0x50, item(0x51, bytes(4))))],
)
def test_of_what_may_come_once_the_first_counts(variable: tuple[bytes, ...]) -> None:
    read = wire.decode_associate_rq(rq(*variable))
    assert (read.application_context, read.max_pdu_length) == (uids.APPLICATION_CONTEXT, 4096)


@pytest.mark.parametrize(
    "odd",
    [
        item(0x20, b"\x03\x00"),
        context(2, ABSTRACT, TRANSFER),
        context(0, ABSTRACT, TRANSFER),
        context(1, item(0x30, b"1.2.840.10008.1.1"), TRANSFER),
    ],
)
def test_a_context_that_no_answer_can_name_is_left_out(odd: bytes) -> None:
    read = wire.decode_associate_rq(rq(NAME, CONTEXT, odd, USER))
    assert read.contexts == (ProposedContext(1, CT, (IMPLICIT,)),)


@pytest.mark.parametrize(
    ("sub_items", "abstract", "transfer"),
    [
        ((TRANSFER,), "", (IMPLICIT,)),
        ((ABSTRACT,), CT, ()),
        ((ABSTRACT, ABSTRACT, TRANSFER), CT, (IMPLICIT,)),
        ((ABSTRACT, item(0x30, b"1.2.3"), TRANSFER), "", (IMPLICIT,)),
        ((item(0x30, b""), TRANSFER), "", (IMPLICIT,)),
        ((item(0x30, b"1" * 65), TRANSFER), "", (IMPLICIT,)),
        ((ABSTRACT, item(0x40, b"1.2.\xe9")), CT, ()),
        ((ABSTRACT, item(0x40, b"1" * 65), item(0x77, b"?"), TRANSFER), CT, (IMPLICIT,)),
        ((ABSTRACT, *[TRANSFER] * 300), CT, (IMPLICIT,) * 256),
        ((ABSTRACT, b"\x40\x00\x00\x30" + IMPLICIT.encode()), "", ()),
    ],
)
def test_an_odd_context_is_one_to_refuse_and_spoils_no_other(
    sub_items: tuple[bytes, ...], abstract: str, transfer: tuple[str, ...]
) -> None:
    read = wire.decode_associate_rq(rq(NAME, context(7, *sub_items), CONTEXT, USER))
    assert read.contexts == (ProposedContext(7, abstract, transfer), ProposedContext(1, CT, (IMPLICIT,)))


@pytest.mark.parametrize(
    "odd",
    [
        item(0x51, b"\x00\x00\x10"),
        item(0x51, b"\x00\x00\x00\x07"),
        item(0x53, b"\x00\x01"),
        item(0x54, b"\x00\x091.2\x01\x00"),
        item(0x54, b"\x00\x00\x01\x00"),
        item(0x54, b""),
        item(0x77, b"private"),
    ],
)
def test_a_sub_item_that_cannot_be_read_is_taken_as_not_there(odd: bytes) -> None:
    read = wire.decode_associate_rq(rq(NAME, CONTEXT, item(0x50, odd + item(0x55, b"V1"))))
    assert (read.implementation_version, read.max_pdu_length) == ("V1", 16384)
    assert (read.async_operations, read.roles) == (None, ())
    assert wire.decode_associate_rq(rq(NAME, CONTEXT, item(0x50, odd + LENGTH))).max_pdu_length == 4096


def result(context_id: int, code: int, *syntaxes: bytes) -> bytes:
    return item(0x21, bytes((context_id, 0, code, 0)) + b"".join(syntaxes))


SOUND = result(1, 0, TRANSFER)


@pytest.mark.parametrize(
    ("odd", "expected"),
    [
        (result(3, 7, TRANSFER), (3, 7, "")),
        (result(3, 255), (3, 255, "")),
        (result(3, 4, item(0x40, b"")), (3, 4, "")),
        (result(3, 0), (3, 2, "")),
        (result(3, 0, item(0x40, b"\xc4")), (3, 0, "?")),
        (result(3, 0, TRANSFER, item(0x40, b"1.2.3")), (3, 2, "")),
        (result(3, 0, TRANSFER, TRANSFER), (3, 0, IMPLICIT)),
        (result(3, 0, TRANSFER[:-1]), (3, 2, "")),
        (result(3, 0, TRANSFER) + result(3, 3, TRANSFER), (3, 2, "")),
        (result(3, 0, TRANSFER) + result(3, 0, TRANSFER), (3, 0, IMPLICIT)),
        (result(99, 0, TRANSFER), (99, 0, IMPLICIT)),
        (result(2, 0, TRANSFER), None),
        (item(0x21, b"\x03\x00"), None),
        (item(0x21, b""), None),
        (item(0x99, b"what"), None),
    ],
)
def test_odd_context_of_an_acceptance_says_nothing_of_the_others(
    odd: bytes, expected: tuple[int, int, str] | None
) -> None:
    sound = ContextResult(1, 0, IMPLICIT)
    known = {sound} if expected is None else {sound, ContextResult(*expected)}
    for data in (ac(NAME, odd, SOUND, USER), ac(NAME, SOUND, odd, USER), ac(SOUND, USER, odd)):
        read = wire.decode_associate_ac(data)
        assert set(read.contexts) == known
        assert read.max_pdu_length == 4096


@pytest.mark.parametrize(
    ("user", "length", "window"),
    [
        (b"", 16384, None),
        (item(0x50, b""), 16384, None),
        (item(0x50, item(0x51, b"\x10\x00")), 16384, None),
        (item(0x50, item(0x99, b"what") + LENGTH + item(0x5A, b"")), 4096, None),
        (item(0x50, LENGTH + LENGTH + item(0x53, b"\0\1")), 4096, None),
        (item(0x50, LENGTH + item(0x53, b"\0\2\0\1") + item(0x54, b"\0\x091.2")), 4096, (2, 1)),
        (item(0x50, LENGTH + item(0x59, b"identity") + b"\x52\0\xff\xff"), 4096, None),
        (USER + USER, 4096, None),
        (USER + b"\x50", 4096, None),
    ],
)
def test_odd_user_information_of_an_acceptance_is_passed_over(
    user: bytes, length: int, window: tuple[int, int] | None
) -> None:
    read = wire.decode_associate_ac(ac(SOUND, user))
    assert read.contexts == (ContextResult(1, 0, IMPLICIT),)
    assert (read.max_pdu_length, read.async_operations) == (length, window)


def test_an_acceptance_without_contexts_accepts_nothing() -> None:
    assert wire.decode_associate_ac(ac(NAME, USER)).contexts == ()


@pytest.mark.parametrize("data", [ac(NAME, SOUND[:-1]), ac(b"\x10"), ac(SOUND) + b"\0", ac()[:60]])
def test_an_acceptance_that_is_damaged_before_its_contexts_is_refused(data: bytes) -> None:
    assert reason_of(data) == PeerError.INVALID_PARAMETER


def test_an_acceptance_that_takes_no_fragment_is_refused() -> None:
    assert reason_of(ac(SOUND, item(0x50, item(0x51, b"\0\0\0\7")))) == PeerError.INVALID_PARAMETER


def test_refused_context_of_an_acceptance_needs_no_transfer_syntax() -> None:
    read = wire.decode_associate_ac(
        ac(NAME, item(0x21, b"\x01\x00\x04\x00"), item(0x21, b"\x03\x00\x03\x00" + item(0x40, b"")), USER)
    )
    assert read.contexts == (ContextResult(1, 4, ""), ContextResult(3, 3, ""))


def test_128_contexts_can_be_proposed_and_no_more_are_read() -> None:
    proposals = [context(number, ABSTRACT, TRANSFER) for number in range(1, 256, 2)]
    assert len(wire.decode_associate_rq(rq(NAME, *proposals, USER)).contexts) == 128
    assert len(wire.decode_associate_rq(rq(NAME, *proposals, proposals[7], USER)).contexts) == 128


@pytest.mark.parametrize(
    "request_",
    [
        AssociateRequest("", "B"),
        AssociateRequest("A" * 17, "B"),
        AssociateRequest("A", "Ä"),
        AssociateRequest("A", "B", contexts=(ProposedContext(2, CT, (IMPLICIT,)),)),
        AssociateRequest("A", "B", contexts=(ProposedContext(257, CT, (IMPLICIT,)),)),
        AssociateRequest("A", "B", contexts=(ProposedContext(1, "1" * 65, (IMPLICIT,)),)),
        AssociateRequest("A", "B", max_pdu_length=-1),
        AssociateRequest("A", "B", implementation_version="x" * 17),
    ],
)
def test_what_cannot_be_sent_is_a_value_error(request_: AssociateRequest) -> None:
    with pytest.raises(ValueError, match=r"."):
        wire.encode_associate_rq(request_)


def test_the_longest_pdu_of_a_hostile_peer_is_read_in_bounded_time() -> None:
    smallest = item(0x40, b"1")
    contexts = [context(number, ABSTRACT, *[smallest] * 256) for number in range(1, 256, 2)]
    data = rq(NAME, *contexts, USER)
    assert len(data) < 262144
    started = time.process_time()
    wire.decode_associate_rq(data)
    assert time.process_time() - started < 5
