"""The command-set codec: against pynetdicom in both directions, and against bytes that are broken."""

import random
from io import BytesIO
from typing import Any

import pytest
from pydicom._dicom_dict import DicomDictionary
from pynetdicom import dimse_messages, dimse_primitives
from pynetdicom.dsutils import decode, encode

from ingest.ext.command import decode_command, encode_command
from ingest.ext.errors import PeerError

UID = "1.2.840.10008.5.1.4.1.1.7"
INSTANCE = "1.2.826.0.1.3680043.8.498.1"

# One of each message that PS3.7 knows; the elements are those of its tables 9.1-1 to 10.1-11.
MESSAGES: dict[str, dict[str, Any]] = {
    "C_STORE_RQ": {
        "MessageID": 7, "AffectedSOPClassUID": UID, "AffectedSOPInstanceUID": INSTANCE, "Priority": 2,
        "MoveOriginatorApplicationEntityTitle": "MOVER", "MoveOriginatorMessageID": 65535,
    },
    "C_STORE_RSP": {
        "MessageIDBeingRespondedTo": 7, "AffectedSOPClassUID": UID, "AffectedSOPInstanceUID": INSTANCE,
        "Status": 0xA700, "OffendingElement": [0x00100010, 0x7FE00010], "ErrorComment": "no room",
    },
    "C_ECHO_RQ": {"MessageID": 1, "AffectedSOPClassUID": "1.2.840.10008.1.1"},
    "C_ECHO_RSP": {"MessageIDBeingRespondedTo": 1, "AffectedSOPClassUID": "1.2.840.10008.1.1", "Status": 0},
    "C_FIND_RQ": {"MessageID": 1, "AffectedSOPClassUID": UID, "Priority": 0},
    "C_FIND_RSP": {"MessageIDBeingRespondedTo": 1, "AffectedSOPClassUID": UID, "Status": 0xFF00},
    "C_MOVE_RQ": {"MessageID": 1, "AffectedSOPClassUID": UID, "Priority": 0, "MoveDestination": "TARGET"},
    "C_MOVE_RSP": {
        "MessageIDBeingRespondedTo": 1, "AffectedSOPClassUID": UID, "Status": 0xFF00,
        "NumberOfRemainingSuboperations": 4, "NumberOfCompletedSuboperations": 3,
        "NumberOfFailedSuboperations": 2, "NumberOfWarningSuboperations": 1,
    },
    "C_CANCEL_RQ": {"MessageIDBeingRespondedTo": 1},
    "N_EVENT_REPORT_RQ": {
        "MessageID": 1, "AffectedSOPClassUID": UID, "AffectedSOPInstanceUID": INSTANCE, "EventTypeID": 2,
    },
    "N_GET_RQ": {
        "MessageID": 1, "RequestedSOPClassUID": UID, "RequestedSOPInstanceUID": INSTANCE,
        "AttributeIdentifierList": [0x00080018, 0x00100020, 0x00400275],
    },
    "N_SET_RQ": {"MessageID": 1, "RequestedSOPClassUID": UID, "RequestedSOPInstanceUID": INSTANCE},
    "N_ACTION_RQ": {
        "MessageID": 1, "RequestedSOPClassUID": UID, "RequestedSOPInstanceUID": INSTANCE, "ActionTypeID": 3,
    },
    "N_ACTION_RSP": {
        "MessageIDBeingRespondedTo": 1, "AffectedSOPClassUID": UID, "AffectedSOPInstanceUID": INSTANCE,
        "Status": 0x0110, "ErrorID": 9, "ErrorComment": "an odd one", "ActionTypeID": 3,
    },
    "N_CREATE_RQ": {"MessageID": 1, "AffectedSOPClassUID": UID, "AffectedSOPInstanceUID": INSTANCE},
    "N_DELETE_RQ": {"MessageID": 1, "RequestedSOPClassUID": UID, "RequestedSOPInstanceUID": INSTANCE},
}  # fmt: skip


def pynetdicom_bytes(name: str, values: dict[str, Any]) -> tuple[bytes, Any]:
    """The command set as pynetdicom sends it, and as pydicom shows it."""
    kind = name.rsplit("_", 1)[0]
    primitive = getattr(dimse_primitives, kind.replace("_RQ", "").replace("_RSP", ""))()
    for keyword, value in values.items():
        setattr(primitive, keyword, value)
    message = getattr(dimse_messages, name)()
    message.primitive_to_message(primitive)
    (pdata, *_) = message.encode_msg(1, 0)
    ((_, pdv),) = pdata.presentation_data_value_list
    return pdv[1:], message.command_set


@pytest.mark.parametrize("name", MESSAGES)
def test_message_of_pynetdicom_decodes_to_its_values(name: str) -> None:
    wire, command_set = pynetdicom_bytes(name, MESSAGES[name])
    decoded = decode_command(wire)
    for keyword, value in MESSAGES[name].items():
        assert decoded[keyword] == value
    assert decoded["CommandField"] == command_set.CommandField
    assert decoded["CommandDataSetType"] == command_set.CommandDataSetType
    assert decoded["CommandGroupLength"] == len(wire) - 12
    assert set(decoded) == {element.keyword for element in command_set if not element.is_empty}


@pytest.mark.parametrize("name", MESSAGES)
def test_encoded_command_is_byte_for_byte_that_of_pynetdicom(name: str) -> None:
    wire, command_set = pynetdicom_bytes(name, MESSAGES[name])
    elements = decode_command(wire)
    shuffled = list(elements.items())
    random.Random(name).shuffle(shuffled)
    assert encode_command(dict(shuffled)) == encode(command_set, True, True)


def test_encoded_command_reads_in_pydicom() -> None:
    command_set = decode(BytesIO(encode_command(MESSAGES["C_STORE_RSP"])), True, True)
    assert command_set.Status == 0xA700
    assert list(command_set.OffendingElement) == [0x00100010, 0x7FE00010]
    assert command_set.ErrorComment == "no room"


def test_table_is_that_of_the_standard() -> None:
    current = {
        keyword: vr
        for tag, (vr, _, _, retired, keyword) in DicomDictionary.items()
        if tag >> 16 == 0 and not retired and tag
    }
    samples: dict[str, Any] = {"UI": UID, "US": 513, "AE": "TITLE", "LO": "text", "AT": [0x00100010]}
    elements = {keyword: samples[vr] for keyword, vr in current.items()}
    assert decode_command(encode_command(elements)).keys() == {*current, "CommandGroupLength"}


def element(number: int, value: bytes, group: int = 0) -> bytes:
    return (
        group.to_bytes(2, "little") + number.to_bytes(2, "little") + len(value).to_bytes(4, "little") + value
    )


PASSES = [
    # nothing at all; the reader of the dict misses what it needs
    (b"", {}),
    # UID with a NUL, with two, with a space, of odd length
    (element(2, b"1.2.3\x00"), {"AffectedSOPClassUID": "1.2.3"}),
    (element(2, b"1.2.34\x00\x00"), {"AffectedSOPClassUID": "1.2.34"}),
    (element(2, b"1.2.3 "), {"AffectedSOPClassUID": "1.2.3"}),
    (element(2, b"1.2.3"), {"AffectedSOPClassUID": "1.2.3"}),
    (element(2, b""), {"AffectedSOPClassUID": ""}),
    (element(2, b"\x00 \x00 "), {"AffectedSOPClassUID": ""}),
    # AE title with spaces on both sides, and within
    (element(0x600, b"  MY NODE   "), {"MoveDestination": "MY NODE"}),
    (element(0x600, b"   "), {"MoveDestination": ""}),
    # a number without a value is as good as absent
    (element(0x110, b""), {}),
    (element(0x110, b"\xff\xff"), {"MessageID": 65535}),
    # group length that is wrong, or not first
    (element(0, b"\xff\xff\xff\xff"), {"CommandGroupLength": 0xFFFFFFFF}),
    (
        element(0x110, b"\x01\x00") + element(0, b"\x0a\x00\x00\x00"),
        {"MessageID": 1, "CommandGroupLength": 10},
    ),
    # retired (0000,0001) and (0000,5120), and one that no table has
    (element(1, b"\x00" * 4) + element(0x5120, b"12") + element(0x9999, b"x"), {}),
    # several tags, one, none
    (element(0x901, bytes.fromhex("10001000e07f1000")), {"OffendingElement": [0x00100010, 0x7FE00010]}),
    (element(0x901, b""), {"OffendingElement": []}),
    # text that would break a line of a log, and text that is not ASCII
    (element(0x902, b"a\r\nb\x1b[31m"), {"ErrorComment": "a??b?[31m"}),
    (element(0x902, "für".encode("latin-1") + b" "), {"ErrorComment": "für"}),
    # AE titles that no AE title may be, and with rubbish behind a NUL
    (element(0x600, b"A\nB\xc4 "), {"MoveDestination": "A?B?"}),
    (element(0x600, b"PACS\x00OLDNAME"), {"MoveDestination": "PACS"}),
    (element(0x1030, b"A" * 20), {"MoveOriginatorApplicationEntityTitle": "A" * 20}),
    # an element twice with one value, or once without
    (element(0x110, b"\x01\x00") * 2, {"MessageID": 1}),
    (element(0x110, b"\x01\x00") + element(0x110, b""), {"MessageID": 1}),
    # of another group, private, and zeros that fill up
    (element(0x18, b"1.2.3\x00", group=8) + element(0x10, b"X ", group=9), {}),
    (element(0x110, b"\x01\x00") + bytes(7), {"MessageID": 1}),
]

BREAKS = [
    ("half a header", b"\x00\x00\x02\x00\x00\x00\x00"),
    ("value cut", element(2, b"1.2.3\x00")[:-1]),
    ("length of 4 GiB", b"\x00\x00\x02\x00\xff\xff\xff\xff" + b"1.2.3\x00"),
    ("unknown element cut", element(0x9999, b"1234")[:-1]),
]

ODD = [
    ("US of one byte", element(0x110, b"\x01")),
    ("US of two values", element(0x700, b"\x01\x00\x00\x00")),
    ("UL of two bytes", element(0, b"\x01\x00")),
    ("AT of six bytes", element(0x901, b"\x10\x00\x10\x00\x10\x00")),
    ("UID with a slash of a path in NUL", element(2, b"1.2\x00../x\x00")),
    ("UID with a space in it", element(2, b"1.2 .3")),
    ("UID beyond ASCII", element(2, b"1.2.\xb2\x00")),
    ("twice, and not the same", element(0x110, b"\x01\x00") + element(0x110, b"\x02\x00")),
    ("twice, and the first is odd", element(0x110, b"\x01") + element(0x110, b"\x02\x00")),
]
"""One element that cannot be taken at its word, in a command set of which the rest can be read."""


@pytest.mark.parametrize(("wire", "expected"), PASSES)
def test_what_the_field_sends_is_understood(wire: bytes, expected: dict[str, Any]) -> None:
    assert decode_command(wire) == expected


@pytest.mark.parametrize("wire", [wire for _, wire in ODD], ids=[name for name, _ in ODD])
def test_an_odd_element_stands_for_itself_and_spoils_no_other(wire: bytes) -> None:
    around = decode_command(element(0x900, b"\x00\x00") + wire + element(0x902, b"text"))
    assert (around.pop("Status"), around.pop("ErrorComment")) == (0, "text")
    (fault,) = around.values()
    assert isinstance(fault, PeerError)
    assert fault.reason == PeerError.INVALID_PARAMETER


@pytest.mark.parametrize("wire", [wire for _, wire in BREAKS], ids=[name for name, _ in BREAKS])
def test_broken_command_set_is_one_error(wire: bytes) -> None:
    with pytest.raises(PeerError) as error:
        decode_command(wire)
    assert error.value.reason == PeerError.INVALID_PARAMETER


@pytest.mark.parametrize(
    ("elements", "error"),
    [
        ({"PatientName": "x"}, ValueError),
        ({"MessageID": 65536}, ValueError),
        ({"MessageID": -1}, ValueError),
        ({"MessageID": "1"}, TypeError),
        ({"MessageID": 1.0}, TypeError),
        ({"AffectedSOPClassUID": 1}, TypeError),
        ({"AffectedSOPClassUID": "1.²"}, ValueError),
        ({"MoveDestination": b"AE"}, TypeError),
        ({"ErrorComment": "Ω"}, ValueError),
        ({"OffendingElement": [1 << 32]}, ValueError),
        ({"OffendingElement": [-1]}, ValueError),
        ({"OffendingElement": ["00100010"]}, TypeError),
    ],
)
def test_what_cannot_be_encoded_is_told(elements: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        encode_command(elements)


def test_none_is_left_out_and_one_tag_needs_no_list() -> None:
    assert encode_command({"MessageID": None, "OffendingElement": 0x00100010}) == (
        element(0, b"\x0c\x00\x00\x00") + element(0x901, b"\x10\x00\x10\x00")
    )
