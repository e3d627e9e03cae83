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
    parse_request,
)
from ingest.dicom.dimse import ActionRequest, Status
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
    ("changes", "status"),
    [
        ({}, None),
        ({"sop_class_uid": CT}, Status.SOP_CLASS_NOT_SUPPORTED),
        ({"sop_instance_uid": "1.2.3"}, Status.NO_SUCH_SOP_INSTANCE),
        ({"action_type": 2}, Status.NO_SUCH_ACTION),
        ({"action_type": None}, Status.NO_SUCH_ACTION),
        ({"has_data_set": False}, Status.INVALID_ARGUMENT),
    ],
)
def test_unsound_action_is_refused(changes: dict[str, object], status: Status | None) -> None:
    sound: dict[str, object] = {
        "message_id": 7,
        "sop_class_uid": STORAGE_COMMITMENT,
        "sop_instance_uid": STORAGE_COMMITMENT_INSTANCE,
        "action_type": 1,
        "has_data_set": True,
    }
    request = ActionRequest(**{**sound, **changes})  # type: ignore[arg-type]
    fault = dimse.find_action_fault(request, STORAGE_COMMITMENT)
    assert (fault[0] if fault else None) is status
    elements = {
        "RequestedSOPClassUID": request.sop_class_uid,
        "CommandField": 0x0130,
        "MessageID": 7,
        "CommandDataSetType": 1 if request.has_data_set else 0x0101,
        "RequestedSOPInstanceUID": request.sop_instance_uid,
        **({} if request.action_type is None else {"ActionTypeID": request.action_type}),
    }
    assert dimse.decode_request(encode_command(elements)) == request


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
