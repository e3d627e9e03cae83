"""Bytes of the upper layer with their meaning: what a parser must make of them, however TCP cuts them.

A command set here has one element, Command Data Set Type (0000,0800), which is all that decides whether a
data set follows: 0101H says none does.
"""

from dataclasses import dataclass

ALONE = "0000 0008 02000000 0101"  # a command set without a data set, 10 bytes
AHEAD = "0000 0008 02000000 0000"  # a command set that announces a data set, 10 bytes


@dataclass(frozen=True, slots=True)
class Vector:
    """Bytes and what they are: the events in order, and the A-ABORT reason of the error that ends them."""

    name: str
    wire: bytes
    events: tuple[tuple[object, ...], ...]
    reason: int | None = None


def _wire(text: str) -> bytes:
    return bytes.fromhex(text)


def _control(text: str) -> tuple[object, ...]:
    data = _wire(text)
    return ("control", data[0], data)


def _command(context_id: int, text: str) -> tuple[object, ...]:
    return ("command", context_id, _wire(text))


def _data_set(context_id: int, text: str) -> tuple[object, ...]:
    return ("data set", context_id, _wire(text))


# PS3.8 Table 9-11: version 1, called "ANY-SCP", calling "ECHOSCU", reserved, then the variable items:
# application context (10H), presentation context (20H) with Verification (30H) in Implicit VR Little Endian
# (40H), user information (50H) with maximum length 16384 (51H).
ASSOCIATE_RQ = (
    "01 00 0000009B 0001 0000 414E592D534350202020202020202020 4543484F534355202020202020202020" + "00" * 32 +
    "10 00 0015 312E322E3834302E31303030382E332E312E312E31"
    "20 00 002E 01 00 FF 00"
    "30 00 0011 312E322E3834302E31303030382E312E31"
    "40 00 0011 312E322E3834302E31303030382E312E32"
    "50 00 0008 51 00 0004 00004000"
)  # fmt: skip
# A-ASSOCIATE-AC of the same shape as far as framing goes: header, version, reserved, names, reserved.
ASSOCIATE_AC = "02 00 00000044 0001 0000" + "41" * 32 + "00" * 32
# PS3.8 Table 9-21: rejected permanent (1), by the service user (1), called AE title not recognized (7)
ASSOCIATE_RJ = "03 00 00000004 00 01 01 07"
RELEASE_RQ = "05 00 00000004 00000000"
RELEASE_RP = "06 00 00000004 00000000"
# PS3.8 Table 9-26: from the service provider (2), unexpected PDU (2)
ABORT = "07 00 00000004 00 00 02 02"

VALID = (
    # Nothing at all.
    Vector("silence", b"", ()),
    # Each of the six PDUs that are not P-DATA-TF.
    Vector("A-ASSOCIATE-RQ", _wire(ASSOCIATE_RQ), (_control(ASSOCIATE_RQ),)),
    Vector("A-ASSOCIATE-AC", _wire(ASSOCIATE_AC), (_control(ASSOCIATE_AC),)),
    Vector("A-ASSOCIATE-RJ", _wire(ASSOCIATE_RJ), (_control(ASSOCIATE_RJ),)),
    Vector("A-RELEASE-RQ", _wire(RELEASE_RQ), (_control(RELEASE_RQ),)),
    Vector("A-RELEASE-RP", _wire(RELEASE_RP), (_control(RELEASE_RP),)),
    Vector("A-ABORT", _wire(ABORT), (_control(ABORT),)),
    # Byte 2 is reserved and not tested; an A-ASSOCIATE without a body is framed, and its reader's to refuse.
    Vector("reserved byte set", _wire("05 FF 00000004 01020304"), (_control("05 FF 00000004 01020304"),)),
    Vector("A-ASSOCIATE-RQ of no body", _wire("01 00 00000000"), (_control("01 00 00000000"),)),
    Vector(
        "several control PDUs at once",
        _wire(ASSOCIATE_RQ + RELEASE_RQ + ABORT),
        (_control(ASSOCIATE_RQ), _control(RELEASE_RQ), _control(ABORT)),
    ),
    # One PDU, one PDV: 12 bytes of item, context 1, command and last (03H).
    Vector("a command", _wire("04 00 00000010 0000000C 01 03" + ALONE), (_command(1, ALONE),)),
    # The highest context ID; bits 2-7 of the message control header are not tested (PS3.8 E.2).
    Vector("context 255", _wire("04 00 00000010 0000000C FF FF" + ALONE), (_command(255, ALONE),)),
    # The same command set as three fragments (4, 0 and 6 bytes) in two PDUs.
    Vector(
        "a command in fragments",
        _wire(
            "04 00 0000001000000006 03 01 0000000800000002 03 0104 00 0000000C00000008 03 03 02000000 0101"
        ),
        (_command(3, ALONE),),
    ),
    # Two messages in one PDU: PS3.8 9.3.5 lets a P-DATA-TF hold any number of PDVs.
    Vector(
        "two commands in one PDU",
        _wire("04 00 00000020 0000000C 01 03" + ALONE + "0000000C 05 03" + ALONE),
        (_command(1, ALONE), _command(5, ALONE)),
    ),
    # A command set without a byte is framed; its codec decides.
    Vector("an empty command", _wire("04 00 00000006 00000002 01 03"), (("command", 1, b""),)),
    # Command set, then the data set's only fragment (02H) in the same PDU.
    Vector(
        "command and data set in one PDU",
        _wire("04 00 0000001A 0000000C 01 03" + AHEAD + "00000006 01 02 CAFEBABE"),
        (_command(1, AHEAD), _data_set(1, "CAFEBABE")),
    ),
    # A data set in four fragments, the second and the last empty, over three PDUs; then another message.
    Vector(
        "a data set in fragments, then another message",
        _wire(
            "04 00 00000010 0000000C 01 03" + AHEAD + "04 00 0000000E 00000004 01 00 0102 00000002 01 00"
            "04 00 0000000E 00000004 01 00 0304 00000002 01 02"
            "04 00 00000010 0000000C 01 03" + ALONE
        ),
        (_command(1, AHEAD), _data_set(1, "01020304"), _command(1, ALONE)),
    ),
    Vector(
        "an empty data set",
        _wire("04 00 00000016 0000000C 07 03" + AHEAD + "00000002 07 02"),
        (_command(7, AHEAD), _data_set(7, "")),
    ),
    # Fragments of an odd number of bytes are against the rules and still sent by some.
    Vector(
        "odd fragments",
        _wire("04 00 00000024 0000000C 01 03" + AHEAD + "00000005 01 00 010203 00000007 01 02 0405060708"),
        (_command(1, AHEAD), _data_set(1, "0102030405060708")),
    ),
    # The requestor may give up anywhere: A-ABORT between the fragments of a command set, and of a data set.
    Vector(
        "abort within a command",
        _wire("04 00 0000000A 00000006 01 01 00000008" + ABORT),
        (_control(ABORT),),
    ),
    Vector(
        "abort within a data set",
        _wire("04 00 0000001A 0000000C 01 03" + AHEAD + "00000006 01 00 CAFEBABE" + ABORT),
        (_command(1, AHEAD), _control(ABORT)),
    ),
    # What is not finished is no event.
    Vector("half a header", _wire("04 00 00"), ()),
    Vector("half a release", _wire("05 00 00000004 0000"), ()),
    Vector("half a command", _wire("04 00 00000010 0000000C 01 03 0000 0008"), ()),
)

INVALID = (
    # PS3.8 Table 9-26, reason 1: types 00H and 08H; the first byte of TLS (16H) and of HTTP ("G").
    Vector("PDU type 0", _wire("00 00 00000004 00000000"), (), 1),
    Vector("PDU type 8", _wire("08 00 00000004 00000000"), (), 1),
    Vector("a TLS ClientHello", _wire("16 03 01 02 00 01"), (), 1),
    Vector("HTTP, one byte of it", b"G", (), 1),
    Vector("an unknown PDU after a known one", _wire(RELEASE_RQ + "FF"), (_control(RELEASE_RQ),), 1),
    # Reason 6: PDU-length that these types cannot have.
    Vector("A-ASSOCIATE-RJ of 5 bytes", _wire("03 00 00000005 0001010700"), (), 6),
    Vector("A-RELEASE-RQ of 0 bytes", _wire("05 00 00000000"), (), 6),
    Vector("A-RELEASE-RP of 3 bytes", _wire("06 00 00000003 000000"), (), 6),
    Vector("A-ABORT of 4 GiB", _wire("07 00 FFFFFFFF"), (), 6),
    Vector("A-ASSOCIATE-RQ of 4 GiB", _wire("01 00 FFFFFFFF"), (), 6),
    Vector("A-ASSOCIATE-AC beyond the limit", _wire("02 00 00040001"), (), 6),
    Vector("P-DATA-TF beyond the limit", _wire("04 00 00020001"), (), 6),
    # PS3.8 Table 9-22: one or more PDV items.
    Vector("P-DATA-TF without a PDV", _wire("04 00 00000000"), (), 6),
    # Table 9-23: items that do not fit their PDU, or have no room for context ID and control header.
    Vector("P-DATA-TF with half a PDV header", _wire("04 00 00000005 00000001 01"), (), 6),
    Vector("PDV of 0 bytes", _wire("04 00 00000006 00000000 01 03"), (), 6),
    Vector("PDV of 1 byte", _wire("04 00 00000006 00000001 01 03"), (), 6),
    Vector("PDV a byte longer than its PDU", _wire("04 00 00000010 0000000D 01 03" + ALONE), (), 6),
    Vector("PDV of 4 GiB", _wire("04 00 00000010 FFFFFFFF 01 03" + ALONE), (), 6),
    Vector(
        "rest of a PDU too short for a PDV",
        _wire("04 00 00000012 0000000C 01 03" + ALONE + "0000"),
        (_command(1, ALONE),),
        6,
    ),
    # Table 9-18 and 9-23, byte 5: presentation context IDs are odd.
    Vector("context 0", _wire("04 00 00000010 0000000C 00 03" + ALONE), (), 6),
    Vector("context 2", _wire("04 00 00000010 0000000C 02 03" + ALONE), (), 6),
    # Reason 2: PDVs out of order.
    Vector("a data set without a command", _wire("04 00 0000000A 00000006 01 02 CAFEBABE"), (), 2),
    Vector(
        "a data set that was not announced",
        _wire("04 00 0000001A 0000000C 01 03" + ALONE + "00000006 01 02 CAFEBABE"),
        (_command(1, ALONE),),
        2,
    ),
    Vector(
        "a data set within a command",
        _wire("04 00 00000014 00000006 01 01 00000008 00000006 01 02 CAFEBABE"),
        (),
        2,
    ),
    Vector(
        "a second data set",
        _wire("04 00 00000020 0000000C 01 03" + AHEAD + "00000002 01 02 00000006 01 02 CAFEBABE"),
        (_command(1, AHEAD), _data_set(1, "")),
        2,
    ),
    Vector(
        "a data set on another context",
        _wire("04 00 0000001A 0000000C 01 03" + AHEAD + "00000006 03 02 CAFEBABE"),
        (_command(1, AHEAD),),
        2,
    ),
    Vector(
        "a command instead of a data set",
        _wire("04 00 00000020 0000000C 01 03" + AHEAD + "0000000C 01 03" + ALONE),
        (_command(1, AHEAD),),
        2,
    ),
    Vector(
        "a command within a data set",
        _wire("04 00 00000028 0000000C 01 03" + AHEAD + "00000004 01 00 0102 0000000C 01 03" + ALONE),
        (_command(1, AHEAD),),
        2,
    ),
    Vector(
        "a command that changes its context",
        _wire("04 00 00000016 00000006 01 01 00000008 00000008 03 03 020000000101"),
        (),
        2,
    ),
)

VECTORS = VALID + INVALID
