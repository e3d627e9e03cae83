"""DIMSE messages of Verification and Storage, with pynetdicom as the second opinion."""

from io import BytesIO
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.uid import UID
from pynetdicom.dimse_messages import C_ECHO_RQ, C_STORE_RQ
from pynetdicom.dimse_primitives import C_ECHO, C_STORE
from pynetdicom.dsutils import decode
from pynetdicom.status import STORAGE_SERVICE_CLASS_STATUS, code_to_category

from ingest.dicom import dimse
from ingest.dicom.dimse import EchoRequest, OtherRequest, Status, StoreRequest
from ingest.dicom.responses import Response, decode_response
from ingest.dicom.statuses import Category, classify_status
from ingest.errors import PeerError
from ingest.ext.command import encode_command

CT, VERIFICATION = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.1"


def as_data_set(command: bytes) -> Dataset:
    return decode(BytesIO(command), True, True)


def test_store_request_of_pynetdicom_is_read() -> None:
    theirs = C_STORE()
    theirs.MessageID, theirs.AffectedSOPClassUID, theirs.AffectedSOPInstanceUID = 7, UID(CT), UID("1.2.3")
    theirs.Priority, theirs.DataSet = 2, BytesIO(b"\0\0")
    theirs.MoveOriginatorApplicationEntityTitle, theirs.MoveOriginatorMessageID = "ARCHIVE", 9
    message = C_STORE_RQ()
    message.primitive_to_message(theirs)
    command = next(message.encode_msg(1, 0)).presentation_data_value_list[0][1][1:]
    assert dimse.decode_request(command) == StoreRequest(7, CT, "1.2.3", 2, "ARCHIVE", 9)


def test_echo_request_of_pynetdicom_is_read() -> None:
    theirs = C_ECHO()
    theirs.MessageID, theirs.AffectedSOPClassUID = 3, UID(VERIFICATION)
    message = C_ECHO_RQ()
    message.primitive_to_message(theirs)
    command = next(message.encode_msg(1, 0)).presentation_data_value_list[0][1][1:]
    assert dimse.decode_request(command) == EchoRequest(3)
    assert dimse.encode_echo_request(3) == command


def test_responses_are_read_by_pydicom() -> None:
    response = as_data_set(
        dimse.encode_store_response(StoreRequest(7, CT, "1.2.3"), Status.OUT_OF_RESOURCES, "disk full")
    )
    assert (response.CommandField, response.MessageIDBeingRespondedTo) == (0x8001, 7)
    assert (response.Status, response.ErrorComment) == (0xA700, "disk full")
    assert (response.AffectedSOPClassUID, response.AffectedSOPInstanceUID) == (CT, "1.2.3")
    assert response.CommandDataSetType == 0x0101
    echo = as_data_set(dimse.encode_echo_response(EchoRequest(3)))
    assert (echo.CommandField, echo.Status, echo.AffectedSOPClassUID) == (0x8030, 0, VERIFICATION)


def test_responses_read_back() -> None:
    request = StoreRequest(65535, CT, "1.2.3")
    assert decode_response(dimse.encode_store_response(request, 0)) == Response(
        0x8001, 65535, 0, "", "1.2.3", sop_class_uid=CT
    )
    assert decode_response(dimse.encode_echo_response(EchoRequest(1))).category is Category.SUCCESS
    long = decode_response(dimse.encode_store_response(request, 0xC000, "x" * 100))
    assert long.error_comment == "x" * 64  # PS3.5 6.2, VR LO


@given(st.integers(0, 65535), st.from_regex(r"\A[0-9.]{0,64}\Z"))
def test_commands_of_one_kind_are_those_that_the_encoder_writes(number: int, uid: str) -> None:
    assert dimse.encode_store_request(number, CT, uid) == encode_command(
        {
            "AffectedSOPClassUID": CT,
            "CommandField": 0x0001,
            "MessageID": number,
            "Priority": 0,
            "CommandDataSetType": 0x0001,
            "AffectedSOPInstanceUID": uid,
        }
    )
    assert dimse.encode_store_success(number, CT, uid) == encode_command(
        {
            "AffectedSOPClassUID": CT,
            "CommandField": 0x8001,
            "MessageIDBeingRespondedTo": number,
            "CommandDataSetType": 0x0101,
            "Status": 0,
            "AffectedSOPInstanceUID": uid,
        }
    )


@pytest.mark.parametrize(("number", "uid"), [(-1, "1.2"), (65536, "1.2"), (1, "1.\xb2")])
def test_what_fits_no_element_is_not_encoded(number: int, uid: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        dimse.encode_store_request(number, CT, uid)


def test_store_request_reads_back() -> None:
    data = dimse.encode_store_request(
        1, CT, "1.2.3", priority=1, move_originator_ae="MOVER", move_originator_message_id=0
    )
    assert dimse.decode_request(data) == StoreRequest(1, CT, "1.2.3", 1, "MOVER", 0)


def test_other_operations_are_told_and_can_be_refused() -> None:
    elements = {
        "CommandField": 0x0020,
        "MessageID": 5,
        "Priority": 0,
        "CommandDataSetType": 1,
        "AffectedSOPClassUID": CT,
    }
    request = dimse.decode_request(encode_command(elements))
    assert request == OtherRequest(0x0020, 5, True, CT)
    response = decode_response(dimse.encode_unsupported_response(request))
    assert response == Response(0x8020, 5, Status.UNRECOGNIZED_OPERATION, sop_class_uid=CT)


def test_requested_sop_class_of_an_n_operation_is_told() -> None:
    elements = {
        "CommandField": 0x0110,
        "MessageID": 5,
        "CommandDataSetType": 0x0101,
        "RequestedSOPClassUID": "1.2.3",
    }
    assert dimse.decode_request(encode_command(elements)) == OtherRequest(0x0110, 5, False, "1.2.3")


def test_a_cancel_has_no_response() -> None:
    elements = {"CommandField": 0x0FFF, "MessageIDBeingRespondedTo": 4, "CommandDataSetType": 0x0101}
    request = dimse.decode_request(encode_command(elements))
    assert request == OtherRequest(0x0FFF, 4, False)
    assert isinstance(request, OtherRequest)
    assert not request.wants_response
    with pytest.raises(ValueError, match="C-CANCEL"):
        dimse.encode_unsupported_response(request)


def test_an_announced_data_set_of_an_echo_is_told_so_that_it_can_be_drained() -> None:
    request = dimse.decode_request(
        encode_command({"CommandField": 0x30, "MessageID": 1, "CommandDataSetType": 0})
    )
    assert request == EchoRequest(1, has_data_set=True)


NEEDED = {0x0002: CT.encode() + b"\0", 0x0100: b"\1\0", 0x0110: b"\7\0", 0x0800: b"\0\0", 0x1000: b"1.2.3\0"}
"""What PS3.7 9.1.1 cannot do without, by element number."""


def command_set(values: list[tuple[int, bytes]]) -> bytes:
    return b"".join(
        bytes(2) + number.to_bytes(2, "little") + len(value).to_bytes(4, "little") + value
        for number, value in values
    )


@given(
    st.lists(
        st.tuples(
            st.sampled_from((0x0000, 0x0001, 0x0600, 0x0700, 0x0902, 0x1022, 0x1030, 0x1031, 0x5010, 0x9999)),
            st.binary(max_size=20),
        ),
        max_size=6,
    ),
    st.randoms(use_true_random=False),
)
def test_a_store_request_depends_on_what_it_needs_alone(
    others: list[tuple[int, bytes]], order: Random
) -> None:
    values = [*NEEDED.items(), *others]
    order.shuffle(values)
    request = dimse.decode_request(command_set(values))
    assert isinstance(request, StoreRequest)
    assert (request.message_id, request.sop_class_uid, request.sop_instance_uid) == (7, CT, "1.2.3")


@pytest.mark.parametrize("number", NEEDED)
def test_two_values_of_an_element_that_a_store_needs_are_not_guessed_between(number: int) -> None:
    same = command_set([*NEEDED.items(), (number, NEEDED[number])])
    assert dimse.decode_request(same) == StoreRequest(7, CT, "1.2.3")
    other = command_set([*NEEDED.items(), (number, b"9." if number in {0x0002, 0x1000} else b"\x09\x09")])
    try:
        request = dimse.decode_request(other)
    except PeerError as error:
        assert error.reason == PeerError.INVALID_PARAMETER  # noqa: PT017 - a UID has a status of its own
    else:
        assert isinstance(request, StoreRequest)
        assert dimse.find_store_fault(request, CT) is not None


@pytest.mark.parametrize(
    "elements",
    [
        {},
        {"MessageID": 1, "CommandDataSetType": 1},
        {"CommandField": 1, "CommandDataSetType": 1},
        {"CommandField": 1, "MessageID": 1},
        {"CommandField": 1, "MessageID": 1, "CommandDataSetType": 0x0101},
        {"CommandField": 0x8001, "MessageIDBeingRespondedTo": 1, "CommandDataSetType": 0x0101, "Status": 0},
    ],
)
def test_what_is_no_request_is_a_peer_error(elements: dict[str, int]) -> None:
    with pytest.raises(PeerError):
        dimse.decode_request(encode_command(elements))


@pytest.mark.parametrize(
    "elements",
    [
        {},
        {"CommandField": 0x8001, "CommandDataSetType": 0x0101, "Status": 0},
        {"CommandField": 0x8001, "MessageIDBeingRespondedTo": 1, "CommandDataSetType": 0x0101},
        {"CommandField": 1, "MessageID": 1, "MessageIDBeingRespondedTo": 1, "Status": 0},
    ],
)
def test_what_is_no_response_is_a_peer_error(elements: dict[str, int]) -> None:
    with pytest.raises(PeerError):
        decode_response(encode_command(elements))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_peer_error(data: bytes) -> None:
    for read in (dimse.decode_request, decode_response):
        try:
            read(data)
        except PeerError:
            continue


HOSTILE = ["", "../../etc", "1.2\x003", "1." * 5000, "1..2", "1.2\n", "1.2 ", "\u0661.2", "1.2.", "1" * 65]


@pytest.mark.parametrize("uid", HOSTILE)
def test_hostile_uids_are_refused_and_can_still_be_answered(uid: str) -> None:
    request = StoreRequest(1, CT, uid)
    fault = dimse.find_store_fault(request, CT)
    assert fault is not None
    assert fault[0] == Status.INVALID_SOP_INSTANCE
    assert decode_response(dimse.encode_store_response(request, *fault)).status == 0x0117
    other = StoreRequest(1, uid, "1.2.3")
    fault = dimse.find_store_fault(other, CT)
    assert fault is not None
    assert fault[0] == Status.SOP_CLASS_NOT_SUPPORTED
    assert decode_response(dimse.encode_store_response(other, *fault)).sop_instance_uid == "1.2.3"
    refusal = dimse.encode_unsupported_response(OtherRequest(0x20, 1, False, uid))
    assert decode_response(refusal).status == Status.UNRECOGNIZED_OPERATION


@pytest.mark.parametrize("length", [65, 1000, 60000])
def test_overlong_uids_in_a_command_are_read_or_refused_without_harm(length: int) -> None:
    data = dimse.encode_store_request(1, CT, "1.2.3")
    uid = b"1" * (length + length % 2)
    element = b"\0\0\0\x10" + len(uid).to_bytes(4, "little") + uid
    at = data.index(b"\0\0\0\x10")
    body = data[12:at] + element
    command = data[:8] + len(body).to_bytes(4, "little") + body
    try:
        request = dimse.decode_request(command)
    except PeerError:
        return
    assert isinstance(request, StoreRequest)
    assert dimse.find_store_fault(request, CT) is not None


def test_a_sound_request_has_no_fault() -> None:
    assert dimse.find_store_fault(StoreRequest(1, CT, "1.2.840.0.03"), CT) is None


def test_nothing_is_stored_on_a_context_of_verification() -> None:
    fault = dimse.find_store_fault(StoreRequest(1, VERIFICATION, "1.2.3"), VERIFICATION)
    assert fault is not None
    assert fault[0] == Status.SOP_CLASS_NOT_SUPPORTED


def test_categories_are_those_of_pynetdicom() -> None:
    for code in (
        *STORAGE_SERVICE_CLASS_STATUS,
        0xFE00,
        0xFF00,
        0xFF01,
        0x0001,
        *range(0x0105, 0x0125),
        0x0210,
        0x0213,
    ):
        if (theirs := code_to_category(code)) != "Unknown":
            assert classify_status(code).value == theirs.lower()


def test_statuses_of_storage_mean_what_pynetdicom_says() -> None:
    meant = {code: text for code, (_, text) in STORAGE_SERVICE_CLASS_STATUS.items()}
    assert "Out of Resources" in meant[Status.OUT_OF_RESOURCES]
    assert "Does Not Match" in meant[Status.DATA_SET_MISMATCH]
    assert "nderstand" in meant[Status.CANNOT_UNDERSTAND]
