"""Data sets and requests of storage commitment, against pydicom's and pynetdicom's."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingest.dicom import dimse
from ingest.dicom.commitment import (
    EventType,
    FailureReason,
    ReferenceOutcome,
    SOPReference,
    encode_report,
    event_type_of,
    parse_report,
    parse_request,
)
from ingest.dicom.dimse import N_ACTION_RQ, N_EVENT_REPORT_RQ, NServiceRequest, Status
from ingest.dicom.negotiate import Accepted, AcceptorPolicy, negotiate
from ingest.dicom.pdus import AssociateRequest, ProposedContext
from ingest.dicom.uids import STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
from ingest.errors import PeerError
from ingest.ext.command import encode_command
from tests.support.instances import CT, EXPLICIT, IMPLICIT, element

uids = st.from_regex(r"[12]\.[1-9][0-9]{0,20}(\.[1-9][0-9]{0,8}){0,3}", fullmatch=True)
references = st.builds(SOPReference, uids, uids)


@given(
    st.lists(references, min_size=1, max_size=20, unique=True), uids, st.sampled_from([EXPLICIT, IMPLICIT])
)
def test_committed_instances_of_a_report_read_like_those_of_a_request(
    asked: list[SOPReference], transaction: str, syntax: str
) -> None:
    data = encode_report(transaction, [ReferenceOutcome(one) for one in asked], syntax)
    request = parse_request(data, syntax)
    assert (request.transaction_uid, list(request.references)) == (transaction, asked)


def test_failures_stand_in_a_sequence_of_their_own() -> None:
    import io

    from pydicom import dcmread

    outcomes = [
        ReferenceOutcome(SOPReference(CT, "1.2.3")),
        ReferenceOutcome(SOPReference(CT, "1.2.4"), FailureReason.NO_SUCH_INSTANCE),
    ]
    report = dcmread(io.BytesIO(encode_report("1.9", outcomes, IMPLICIT)), force=True)
    assert [item.ReferencedSOPInstanceUID for item in report.ReferencedSOPSequence] == ["1.2.3"]
    [failed] = report.FailedSOPSequence
    assert (failed.ReferencedSOPInstanceUID, failed.FailureReason) == ("1.2.4", 0x0112)
    assert [event_type_of(outcomes), event_type_of(outcomes[:1])] == [
        EventType.FAILURES_EXIST,
        EventType.ALL_COMMITTED,
    ]


def test_report_in_the_encoding_of_dcm4chee_is_read() -> None:
    """Implicit VR, sequences and items of undefined length, Retrieve AE Title beside each instance."""

    def tag(group: int, number: int, value: bytes) -> bytes:
        head = group.to_bytes(2, "little") + number.to_bytes(2, "little")
        return head + len(value).to_bytes(4, "little") + value

    def item(sop_class: bytes, sop_instance: bytes, *more: bytes) -> bytes:
        uids = tag(0x0008, 0x1150, sop_class) + tag(0x0008, 0x1155, sop_instance)
        body = tag(0x0008, 0x0054, b"DCM4CHEE") + uids + b"".join(more)
        return bytes.fromhex("feff00e0ffffffff") + body + bytes.fromhex("feff0de000000000")

    def sequence(number: int, *items: bytes) -> bytes:
        head = b"\x08\0" + number.to_bytes(2, "little") + b"\xff" * 4
        return head + b"".join(items) + bytes.fromhex("feffdde000000000")

    ct = CT.encode() + b"\0" * (len(CT) & 1)
    report = (
        tag(0x0008, 0x0054, b"DCM4CHEE")
        + tag(0x0008, 0x1195, b"2.25.31\0")
        + sequence(0x1198, item(ct, b"1.2.4\0", tag(0x0008, 0x1197, b"\x12\x01")))
        + sequence(0x1199, item(ct, b"1.2.3\0"), item(ct, b"1.2.5\0"))
    )
    assert parse_report(report, IMPLICIT) == (
        "2.25.31",
        [
            ReferenceOutcome(SOPReference(CT, "1.2.3")),
            ReferenceOutcome(SOPReference(CT, "1.2.5")),
            ReferenceOutcome(SOPReference(CT, "1.2.4"), 0x0112),
        ],
    )
    # It sends an empty sequence with a length of zero.
    assert parse_report(tag(0x0008, 0x1195, b"2.25.31\0") + tag(0x0008, 0x1199, b""), IMPLICIT)[1] == []


@example(b"")
@example(element(0x0008, 0x1195, "UI", b"1.2.3"))
@example(element(0x0008, 0x1195, "UI", b"../../x") + element(0x0008, 0x1199, "SQ", b""))
@given(st.binary(max_size=400))
def test_bad_bytes_raise_one_error(data: bytes) -> None:
    for syntax in (EXPLICIT, IMPLICIT, "1.2.840.10008.1.2.2"):
        with pytest.raises(PeerError):
            parse_request(data, syntax)


def test_cut_request_raises_the_same_error_at_every_byte() -> None:
    data = encode_report("1.2.3", [ReferenceOutcome(SOPReference(CT, "1.2.4"))], EXPLICIT)
    for length in range(len(data)):
        with pytest.raises(PeerError):
            parse_request(data[:length], EXPLICIT)


@pytest.mark.parametrize(
    ("field", "changes", "status"),
    [
        *(
            (field, changes, status)
            for field in (N_ACTION_RQ, N_EVENT_REPORT_RQ)
            for changes, status in (
                ({}, None),
                ({"sop_class_uid": CT}, Status.SOP_CLASS_NOT_SUPPORTED),
                ({"sop_instance_uid": "1.2.3"}, Status.NO_SUCH_SOP_INSTANCE),
                ({"has_data_set": False}, Status.INVALID_ARGUMENT),
            )
        ),
        (N_ACTION_RQ, {"type_id": 2}, Status.NO_SUCH_ACTION),
        (N_ACTION_RQ, {"type_id": None}, Status.NO_SUCH_ACTION),
        (N_EVENT_REPORT_RQ, {"type_id": 2}, None),
        (N_EVENT_REPORT_RQ, {"type_id": 3}, Status.NO_SUCH_EVENT_TYPE),
        (N_EVENT_REPORT_RQ, {"type_id": None}, Status.NO_SUCH_EVENT_TYPE),
    ],
)
def test_unsound_message_is_refused(field: int, changes: dict[str, object], status: Status | None) -> None:
    sound: dict[str, object] = {
        "command_field": field,
        "message_id": 7,
        "sop_class_uid": STORAGE_COMMITMENT,
        "sop_instance_uid": STORAGE_COMMITMENT_INSTANCE,
        "type_id": 1,
        "has_data_set": True,
    }
    request = NServiceRequest(**{**sound, **changes})  # type: ignore[arg-type]
    fault = dimse.find_commitment_fault(request, STORAGE_COMMITMENT)
    assert (fault[0] if fault else None) is status
    kind, keyword = ("Requested", "ActionTypeID") if field == N_ACTION_RQ else ("Affected", "EventTypeID")
    elements = {
        f"{kind}SOPClassUID": request.sop_class_uid,
        "CommandField": field,
        "MessageID": 7,
        "CommandDataSetType": 1 if request.has_data_set else 0x0101,
        f"{kind}SOPInstanceUID": request.sop_instance_uid,
        **({} if request.type_id is None else {keyword: request.type_id}),
    }
    assert dimse.decode_request(encode_command(elements)) == request
    assert dimse.find_commitment_fault(request, CT) is not None, "a context of another SOP class"


def test_nothing_is_stored_on_a_context_of_commitment() -> None:
    request = dimse.StoreRequest(1, STORAGE_COMMITMENT, "1.2.3")
    fault = dimse.find_store_fault(request, STORAGE_COMMITMENT)
    assert fault is not None
    assert fault[0] is Status.SOP_CLASS_NOT_SUPPORTED


@pytest.mark.parametrize("is_allowed", [True, False])
def test_context_is_accepted_only_from_those_who_may_ask(is_allowed: bool) -> None:
    proposed = ProposedContext(1, STORAGE_COMMITMENT, ("1.2.840.10008.1.2.2", EXPLICIT))
    policy = AcceptorPolicy("INGEST", transfer_syntaxes=(IMPLICIT,), allow_commitment=is_allowed)
    answer = negotiate(AssociateRequest("INGEST", "CT1", contexts=(proposed,)), policy)
    assert isinstance(answer, Accepted)
    assert [one.transfer_syntax for one in answer.contexts.values()] == ([EXPLICIT] if is_allowed else [])


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize("is_undefined", [True, False])
def test_request_as_pydicom_writes_it_with_every_kind_of_length(syntax: str, is_undefined: bool) -> None:
    """Elements that nobody asked for are skipped, also nested ones."""

    from pydicom.dataset import Dataset
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset

    def nest(depth: int) -> Dataset:
        inner = Dataset()
        inner.StudyDescription = "CT"
        if depth:
            inner.RequestAttributesSequence = [nest(depth - 1), nest(depth - 1)]
            inner["RequestAttributesSequence"].is_undefined_length = is_undefined
            for item in inner.RequestAttributesSequence:
                item.is_undefined_length_sequence_item = is_undefined
        return inner

    request = nest(3)
    request.TransactionUID = "1.2.3"
    request.ReferencedSOPSequence = []
    for number in range(3):
        item = nest(2)
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CT, f"1.2.{number}"
        item.is_undefined_length_sequence_item = is_undefined
        request.ReferencedSOPSequence.append(item)
    request["ReferencedSOPSequence"].is_undefined_length = is_undefined
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, syntax == IMPLICIT
    write_dataset(buffer, request)
    parsed = parse_request(buffer.getvalue(), syntax)
    assert [one.sop_instance_uid for one in parsed.references] == ["1.2.0", "1.2.1", "1.2.2"]
