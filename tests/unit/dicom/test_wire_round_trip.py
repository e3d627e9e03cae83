"""What is written is read again the same, by us and by pynetdicom."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynetdicom.pdu import (
    A_ABORT_RQ,
    A_ASSOCIATE_AC,
    A_ASSOCIATE_RJ,
    A_ASSOCIATE_RQ,
    A_RELEASE_RP,
    A_RELEASE_RQ,
    PDU,
)

from ingest.dicom import uids, wire
from ingest.dicom.wire import AssociateAccept, AssociateRequest, ContextResult, ProposedContext, RoleSelection
from ingest.errors import PeerError

CT, IMPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2"

uid = st.lists(st.integers(0, 99999), min_size=2, max_size=8).map(lambda arcs: ".".join(map(str, arcs)))
ae_title = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="\\"), min_size=1, max_size=16
)
context_ids = st.lists(st.integers(0, 127).map(lambda n: 2 * n + 1), unique=True, min_size=1, max_size=12)
window = st.none() | st.tuples(st.integers(0, 65535), st.integers(0, 65535))
roles = st.lists(st.builds(RoleSelection, uid, st.booleans(), st.booleans()), max_size=3).map(tuple)
length = st.just(0) | st.integers(8, 2**32 - 1)


@st.composite
def requests(draw: st.DrawFn) -> AssociateRequest:
    syntaxes = st.lists(uid, min_size=1, max_size=4).map(tuple)
    return AssociateRequest(
        draw(ae_title),
        draw(ae_title),
        draw(uid),
        tuple(ProposedContext(number, draw(uid), draw(syntaxes)) for number in draw(context_ids)),
        draw(length),
        draw(uid),
        draw(ae_title),
        draw(window),
        draw(roles),
    )


@st.composite
def acceptances(draw: st.DrawFn) -> AssociateAccept:
    contexts = tuple(
        ContextResult(number, draw(st.sampled_from((0, 0, 1, 2, 3, 4))), draw(uid))
        for number in draw(context_ids)
    )
    return AssociateAccept(
        draw(ae_title),
        draw(ae_title),
        contexts,
        draw(length),
        draw(uid),
        draw(ae_title),
        draw(window),
        draw(roles),
    )


@given(requests())
def test_request_is_read_as_it_was_written(request: AssociateRequest) -> None:
    read = wire.decode_associate_rq(wire.encode_associate_rq(request))
    assert len(read.title_fields) == 64
    assert read == AssociateRequest(
        **{n: getattr(request, n) for n in request.__slots__} | {"title_fields": read.title_fields}
    )


@given(acceptances())
def test_acceptance_is_read_as_it_was_written(accept: AssociateAccept) -> None:
    read = wire.decode_associate_ac(wire.encode_associate_ac(accept))
    # The transfer syntax of a context that is not accepted "shall not be tested" (PS3.8 Table 9-18).
    significant = tuple(
        c if c.result == 0 else ContextResult(c.context_id, c.result, "") for c in accept.contexts
    )
    assert read.contexts == significant
    for name in (
        "called_ae",
        "calling_ae",
        "max_pdu_length",
        "implementation_class_uid",
        "async_operations",
        "roles",
    ):
        assert getattr(read, name) == getattr(accept, name)


@given(st.sampled_from((1, 2)), st.integers(1, 2), st.integers(0, 7))
def test_rejection_is_pynetdicoms(result: int, source: int, reason: int) -> None:
    data = wire.encode_associate_rj(wire.AssociateReject(result, source, reason))
    theirs = A_ASSOCIATE_RJ()
    theirs.decode(data)
    assert (theirs.result, theirs.source, theirs.reason_diagnostic) == (result, source, reason)
    assert theirs.encode() == data
    assert wire.decode_associate_rj(data) == wire.AssociateReject(result, source, reason)


def test_abort_and_release_are_pynetdicoms() -> None:
    theirs = A_ABORT_RQ()
    theirs.decode(wire.encode_abort(wire.SERVICE_PROVIDER, PeerError.INVALID_PARAMETER))
    assert (theirs.source, theirs.reason_diagnostic) == (2, 6)
    assert wire.decode_abort(wire.encode_abort(wire.SERVICE_USER, 5)) == wire.Abort(0, 0)
    assert A_RELEASE_RQ().encode() == wire.RELEASE_RQ
    assert A_RELEASE_RP().encode() == wire.RELEASE_RP


@pytest.mark.parametrize("pdu_type", [1, 2])
def test_pynetdicom_reads_and_writes_what_we_write(pdu_type: int) -> None:
    ours: PDU
    role, window = (RoleSelection(CT, scu=True, scp=False),), (64, 1)
    if pdu_type == 1:
        contexts = (
            ProposedContext(1, CT, (IMPLICIT, uids.EXPLICIT_LITTLE_ENDIAN)),
            ProposedContext(3, uids.VERIFICATION, (IMPLICIT,)),
        )
        data = wire.encode_associate_rq(
            AssociateRequest(
                "NODE", "CT1", contexts=contexts, max_pdu_length=0, async_operations=window, roles=role
            )
        )
        ours = A_ASSOCIATE_RQ()
    else:
        results = (ContextResult(1, 0, IMPLICIT), ContextResult(3, 4, IMPLICIT))
        data = wire.encode_associate_ac(
            AssociateAccept("NODE", "CT1", results, 131072, async_operations=window, roles=role)
        )
        ours = A_ASSOCIATE_AC()
    ours.decode(data)
    assert ours.encode() == data
    assert len(ours.presentation_context) == 2
    assert ours.user_information.async_ops_window.max_operations_invoked == 64
    assert ours.user_information.implementation_class_uid == uids.IMPLEMENTATION_CLASS_UID
    assert ours.user_information.role_selection[CT].scu_role == 1
