"""What is answered to a proposal."""

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynetdicom import AllStoragePresentationContexts, QueryRetrievePresentationContexts
from pynetdicom.presentation import (
    BasicWorklistManagementPresentationContexts,
    ModalityPerformedPresentationContexts,
    PrintManagementPresentationContexts,
    StorageCommitmentPresentationContexts,
    UnifiedProcedurePresentationContexts,
)

from ingest.dicom import uids
from ingest.dicom.negotiate import (
    Accepted,
    AcceptedContext,
    AcceptorPolicy,
    Rejected,
    local_limit_exceeded,
    negotiate,
)
from ingest.dicom.wire import (
    APPLICATION_CONTEXT_NOT_SUPPORTED,
    CALLED_AE_NOT_RECOGNIZED,
    LOCAL_LIMIT_EXCEEDED,
    NO_REASON_GIVEN,
    PROTOCOL_VERSION_NOT_SUPPORTED,
    AssociateRequest,
    ProposedContext,
    RoleSelection,
    decode_associate_ac,
    decode_associate_rq,
    encode_associate_ac,
    encode_associate_rq,
)

CT, PRIVATE = "1.2.840.10008.5.1.4.1.1.2", "1.3.12.2.1107.5.9.1"
IMPLICIT, EXPLICIT, BIG = uids.IMPLICIT_LITTLE_ENDIAN, uids.EXPLICIT_LITTLE_ENDIAN, uids.EXPLICIT_BIG_ENDIAN
DEFLATED, JPEG = uids.DEFLATED_EXPLICIT_LITTLE_ENDIAN, "1.2.840.10008.1.2.4.50"
POLICY = AcceptorPolicy("INGEST")


def request(*contexts: tuple[str, tuple[str, ...]], **fields: object) -> AssociateRequest:
    proposed = tuple(ProposedContext(2 * n + 1, *context) for n, context in enumerate(contexts))
    return AssociateRequest("INGEST", "CT1", contexts=proposed, **fields)  # type: ignore[arg-type]


def accepted(rq: AssociateRequest, policy: AcceptorPolicy = POLICY) -> Accepted:
    answer = negotiate(rq, policy)
    assert isinstance(answer, Accepted)
    return answer


def result_of(
    abstract_syntax: str, *transfer_syntaxes: str, policy: AcceptorPolicy = POLICY
) -> tuple[int, str]:
    [result] = accepted(request((abstract_syntax, transfer_syntaxes)), policy).pdu.contexts
    return result.result, result.transfer_syntax


def test_accepted_contexts_are_those_that_the_answer_accepts() -> None:
    answer = accepted(
        request(
            (CT, (JPEG, IMPLICIT)), ("1.2.840.10008.5.1.4.31", (IMPLICIT,)), (uids.VERIFICATION, (IMPLICIT,))
        )
    )
    assert answer.contexts == {1: AcceptedContext(CT, JPEG), 5: AcceptedContext(uids.VERIFICATION, IMPLICIT)}
    assert [(c.context_id, c.result) for c in answer.pdu.contexts] == [(1, 0), (3, 3), (5, 0)]
    assert decode_associate_ac(encode_associate_ac(answer.pdu)).contexts[0] == answer.pdu.contexts[0]


def test_an_association_without_an_acceptable_context_is_accepted_and_says_why_for_each() -> None:
    policy = AcceptorPolicy("INGEST", transfer_syntaxes=(EXPLICIT,))
    answer = accepted(request(("1.2.840.10008.5.1.4.1.2.1.1", (EXPLICIT,)), (CT, (JPEG,))), policy)
    assert answer.contexts == {}
    assert [c.result for c in answer.pdu.contexts] == [3, 4]


@pytest.mark.parametrize(
    ("proposed", "chosen"),
    [
        ((IMPLICIT, EXPLICIT), EXPLICIT),
        ((EXPLICIT, IMPLICIT), EXPLICIT),
        ((JPEG, EXPLICIT), JPEG),
        ((BIG, EXPLICIT, IMPLICIT), EXPLICIT),
        ((DEFLATED, BIG, IMPLICIT), IMPLICIT),
        ((DEFLATED,), DEFLATED),
        ((BIG,), BIG),
        ((BIG, DEFLATED), BIG),
        ((PRIVATE, IMPLICIT), IMPLICIT),
    ],
)
def test_transfer_syntax_is_the_first_proposed_but_explicit_before_implicit_and_deflated_or_retired_last(
    proposed: tuple[str, ...], chosen: str
) -> None:
    assert result_of(CT, *proposed) == (0, chosen)


def test_star_takes_every_dicom_transfer_syntax_of_data_sets_also_future_ones_and_no_private_one() -> None:
    for uid in (
        IMPLICIT,
        DEFLATED,
        "1.2.840.10008.1.2.4.201",
        "1.2.840.10008.1.2.4.205",
        "1.2.840.10008.1.2.4.999",
    ):
        assert result_of(CT, uid) == (0, uid)
    for uid in (
        "1.2.840.113619.5.2",
        "1.2.840.10008.1.2.6.1",
        "1.2.840.10008.1.2.7.1",
        "1.2.840.10008.1.20",
        "1.2.840.10008.1.2.x",
    ):
        assert result_of(CT, uid)[0] == 4


@pytest.mark.parametrize(
    ("preferred", "proposed", "chosen"),
    [
        (None, (IMPLICIT, EXPLICIT), EXPLICIT),
        (None, (DEFLATED, IMPLICIT, JPEG, EXPLICIT), EXPLICIT),
        (None, (JPEG, IMPLICIT, EXPLICIT), JPEG),
        (None, ("1.2.840.10008.1.2.4.90", JPEG), "1.2.840.10008.1.2.4.90"),
        (None, (IMPLICIT, JPEG), IMPLICIT),
        (None, (BIG, IMPLICIT), IMPLICIT),
        ((), (IMPLICIT, EXPLICIT), IMPLICIT),
        ((JPEG, "*"), (IMPLICIT, EXPLICIT, JPEG), JPEG),
        ((JPEG, "*"), (IMPLICIT, EXPLICIT), IMPLICIT),
        ((DEFLATED, IMPLICIT), (IMPLICIT, DEFLATED), DEFLATED),
        (("1.2.840.10008.1.2.4.*", EXPLICIT), (EXPLICIT, IMPLICIT, JPEG), JPEG),
    ],
)
def test_preference_orders_what_it_lists_and_leaves_the_callers_order_to_the_rest(
    preferred: tuple[str, ...] | None, proposed: tuple[str, ...], chosen: str
) -> None:
    policy = POLICY if preferred is None else replace(POLICY, prefer_transfer_syntaxes=preferred)
    assert result_of(CT, *proposed, policy=policy) == (0, chosen)


def test_preference_takes_nothing_that_is_not_acceptable() -> None:
    policy = replace(POLICY, transfer_syntaxes=(IMPLICIT,))
    assert result_of(CT, IMPLICIT, EXPLICIT, policy=policy) == (0, IMPLICIT)


def largest_request(unique: bool) -> AssociateRequest:
    """128 contexts, and as many transfer syntaxes as fit into the longest A-ASSOCIATE-RQ; none is taken."""
    contexts = [
        (
            f"1.2.826.0.1.3680043.8.498.{number}",
            tuple(f"1.2.840.10008.1.2.4.{number if unique else 9}.{n}.7" for n in range(60)),
        )
        for number in range(128)
    ]
    return request(*contexts)


@pytest.mark.parametrize("unique", [True, False])
def test_the_largest_request_is_answered_at_once_however_many_patterns_there_are(unique: bool) -> None:
    patterns = tuple(f"1.2.840.10008.1.2.4.*{n}*.*{n}" for n in range(100, 130))
    policy = replace(
        POLICY,
        transfer_syntaxes=patterns,
        prefer_transfer_syntaxes=patterns,
        sop_classes=(*patterns, "1.2.826.*"),
        node_sop_classes=(*patterns, "*"),
        rejected_sop_classes=patterns,
    )
    data = encode_associate_rq(largest_request(unique))
    assert 170_000 < len(data) < 262_144
    start = time.process_time()
    answer = accepted(decode_associate_rq(data), policy)
    encode_associate_ac(answer.pdu)
    taken = time.process_time() - start
    assert {context.result for context in answer.pdu.contexts} == {4}
    assert taken < 0.3, f"{taken:.3f} s"


def test_patterns_choose_transfer_syntaxes() -> None:
    policy = AcceptorPolicy("INGEST", transfer_syntaxes=("1.2.840.10008.1.2.4.5?", "1.2.840.113619.5.2"))
    assert result_of(CT, EXPLICIT, JPEG, policy=policy) == (0, JPEG)
    assert result_of(CT, "1.2.840.113619.5.2", policy=policy)[0] == 0
    assert result_of(CT, EXPLICIT, policy=policy)[0] == 4


def test_every_storage_class_of_pynetdicom_is_taken_and_no_other_service() -> None:
    strict = AcceptorPolicy("INGEST", accept_unknown_sop_classes=False)
    for context in AllStoragePresentationContexts:
        assert result_of(str(context.abstract_syntax), IMPLICIT, policy=strict)[0] == 0
    for context in (
        *QueryRetrievePresentationContexts,
        *BasicWorklistManagementPresentationContexts,
        *ModalityPerformedPresentationContexts,
        *PrintManagementPresentationContexts,
        *StorageCommitmentPresentationContexts,
        *UnifiedProcedurePresentationContexts,
    ):
        assert result_of(str(context.abstract_syntax), IMPLICIT)[0] == 3


def test_retired_and_non_patient_storage_classes_are_known() -> None:
    for uid in ("1.2.840.10008.5.1.4.1.1.3", "1.2.840.10008.5.1.4.1.1.5", "1.2.840.10008.5.1.4.38.1"):
        assert uid in uids.storage_classes()


def test_no_register_entry_that_is_not_storage_is_taken_for_a_sop_class() -> None:
    for uid in (
        "1.2.840.10008.1.3.10",
        "1.2.840.10008.1.20.1",
        uids.APPLICATION_CONTEXT,
        IMPLICIT,
        "1.2.840.10008.4.2",
    ):
        assert result_of(uid, IMPLICIT)[0] == 3


def test_unknown_sop_classes_are_stored_only_where_they_are_allowed_and_only_under_a_real_uid() -> None:
    newer = "1.2.840.10008.5.1.4.1.1.9999"
    strict = AcceptorPolicy("INGEST", accept_unknown_sop_classes=False)
    for uid in (PRIVATE, newer):
        assert result_of(uid, IMPLICIT)[0] == 0
        assert result_of(uid, IMPLICIT, policy=strict)[0] == 3
    for uid in ("1..2", "../x", "1.2/3", "private"):
        assert result_of(uid, IMPLICIT)[0] == 3


def test_an_echo_needs_no_transfer_syntax_of_instances() -> None:
    policy = AcceptorPolicy("INGEST", transfer_syntaxes=(EXPLICIT,))
    assert result_of(CT, IMPLICIT, policy=policy)[0] == 4
    assert result_of(uids.VERIFICATION, IMPLICIT, policy=policy)[0] == 0


def test_what_a_caller_may_not_do_is_refused_by_context() -> None:
    only_echo = AcceptorPolicy("INGEST", allow_store=False)
    only_store = AcceptorPolicy("INGEST", allow_echo=False)
    assert result_of(CT, IMPLICIT, policy=only_echo)[0] == 3
    assert result_of(uids.VERIFICATION, IMPLICIT, policy=only_echo)[0] == 0
    assert result_of(CT, IMPLICIT, policy=only_store)[0] == 0
    assert result_of(uids.VERIFICATION, IMPLICIT, policy=only_store)[0] == 3


def test_another_application_context_or_protocol_version_is_refused_for_good() -> None:
    answer = negotiate(request((CT, (IMPLICIT,)), application_context="1.2.3"), POLICY)
    assert isinstance(answer, Rejected)
    assert answer.pdu == APPLICATION_CONTEXT_NOT_SUPPORTED
    assert "1.2.3" in answer.reason
    answer = negotiate(request((CT, (IMPLICIT,)), protocol_version=2), POLICY)
    assert isinstance(answer, Rejected)
    assert answer.pdu == PROTOCOL_VERSION_NOT_SUPPORTED
    accepted(request((CT, (IMPLICIT,)), protocol_version=3))  # bit 0 alone counts


def test_called_ae_title_counts_only_when_it_is_to_be_checked() -> None:
    checking = AcceptorPolicy(" OTHER ", check_called_ae=True)
    answer = negotiate(request((CT, (IMPLICIT,))), checking)
    assert isinstance(answer, Rejected)
    assert answer.pdu == CALLED_AE_NOT_RECOGNIZED
    assert "INGEST" in answer.reason
    assert "OTHER" in answer.reason
    accepted(request((CT, (IMPLICIT,))), AcceptorPolicy("OTHER"))
    accepted(request((CT, (IMPLICIT,))), AcceptorPolicy("INGEST", check_called_ae=True))
    several = AcceptorPolicy("OTHER", check_called_ae=True, other_ae_titles=("ONE", " INGEST "))
    accepted(request((CT, (IMPLICIT,))), several)
    accepted(
        request((CT, (IMPLICIT,))), AcceptorPolicy("ingest", check_called_ae=True, ignore_ae_title_case=True)
    )
    blank = negotiate(AssociateRequest("", "CT1", contexts=(ProposedContext(1, CT, (IMPLICIT,)),)), POLICY)
    assert isinstance(blank, Rejected)
    assert blank.pdu == CALLED_AE_NOT_RECOGNIZED


def test_sop_classes_of_the_node_hold_for_every_caller():
    offer = request((CT, (IMPLICIT,)), (uids.VERIFICATION, (IMPLICIT,)))
    for policy in (
        AcceptorPolicy("INGEST", node_sop_classes=("MRImageStorage",)),
        AcceptorPolicy("INGEST", rejected_sop_classes=("CT*",)),
    ):
        assert [item.result for item in accepted(offer, policy).pdu.contexts] == [3, 0]
    assert len(accepted(offer, AcceptorPolicy("INGEST", rejected_sop_classes=("MR*",))).contexts) == 2


@pytest.mark.parametrize(
    ("asked", "most", "answered", "operations"),
    [
        (None, 64, None, 1),
        ((0, 0), 64, (64, 1), 64),
        ((8, 1), 64, (8, 1), 8),
        ((100, 5), 64, (64, 1), 64),
        ((1, 1), 64, (1, 1), 1),
        ((0, 1), 1, (1, 1), 1),
    ],
)
def test_asynchronous_operations_are_answered_when_asked(
    asked: tuple[int, int] | None, most: int, answered: tuple[int, int] | None, operations: int
) -> None:
    answer = accepted(
        request((CT, (IMPLICIT,)), async_operations=asked), AcceptorPolicy("INGEST", max_operations=most)
    )
    assert (answer.pdu.async_operations, answer.operations) == (answered, operations)


def test_roles_are_answered_when_asked_and_the_requestor_is_scu_alone() -> None:
    asked = (
        RoleSelection(CT, scu=True, scp=True),
        RoleSelection(uids.VERIFICATION, scu=True, scp=False),
        RoleSelection("1.2.3", scu=True, scp=True),
    )
    answer = accepted(request((CT, (IMPLICIT,)), (uids.VERIFICATION, (IMPLICIT,)), roles=asked))
    assert set(answer.pdu.roles) == {
        RoleSelection(CT, scu=True, scp=False),
        RoleSelection(uids.VERIFICATION, scu=True, scp=False),
    }
    assert accepted(request((CT, (IMPLICIT,)))).pdu.roles == ()


def test_a_requestor_that_would_only_be_scp_gets_no_context() -> None:
    answer = accepted(request((CT, (IMPLICIT,)), roles=(RoleSelection(CT, scu=False, scp=True),)))
    assert [c.result for c in answer.pdu.contexts] == [3]
    assert answer.pdu.roles == ()


def test_pdu_lengths_of_both_sides_are_told() -> None:
    answer = accepted(
        request((CT, (IMPLICIT,)), max_pdu_length=0), AcceptorPolicy("INGEST", max_pdu_length=65536)
    )
    assert (answer.peer_max_pdu_length, answer.pdu.max_pdu_length) == (0, 65536)


def test_local_limits_are_transient_and_no_failure_of_the_caller() -> None:
    refusal = local_limit_exceeded("500 associations")
    assert (refusal.pdu, refusal.reason) == (LOCAL_LIMIT_EXCEEDED, "500 associations")
    assert not refusal.is_failure


def test_a_request_that_proposes_nothing_is_rejected_and_is_no_failure_of_the_caller() -> None:
    refusal = negotiate(request(), POLICY)
    assert isinstance(refusal, Rejected)
    assert (refusal.pdu, refusal.is_failure) == (NO_REASON_GIVEN, False)


def test_a_context_without_names_that_can_be_read_is_refused_and_can_be_answered() -> None:
    answer = accepted(request(("", (IMPLICIT,)), (CT, ()), (CT, (IMPLICIT,))))
    assert [context.result for context in answer.pdu.contexts] == [3, 4, 0]
    assert len(decode_associate_ac(encode_associate_ac(answer.pdu)).contexts) == 3


@given(
    st.lists(
        st.tuples(
            st.sampled_from((CT, PRIVATE, uids.VERIFICATION, "1.2.840.10008.5.1.4.31", "x")),
            st.lists(
                st.sampled_from((IMPLICIT, EXPLICIT, BIG, DEFLATED, JPEG, "1.2.3")), min_size=1, max_size=5
            ).map(tuple),
        ),
        min_size=1,
        max_size=10,
    )
)
def test_every_proposal_gets_one_answer_and_every_accepted_syntax_was_proposed(
    contexts: list[tuple[str, tuple[str, ...]]],
) -> None:
    rq = request(*contexts)
    answer = accepted(rq)
    assert [c.context_id for c in answer.pdu.contexts] == [c.context_id for c in rq.contexts]
    for proposed, result in zip(rq.contexts, answer.pdu.contexts, strict=True):
        assert result.transfer_syntax in proposed.transfer_syntaxes
        assert (result.result == 0) == (result.context_id in answer.contexts)


@pytest.mark.parametrize(
    ("patterns", "result"),
    [
        (("*",), 0),
        ((CT,), 0),
        (("CTImageStorage",), 0),
        (("CT Image*",), 0),
        (("MR*", "CT*"), 0),
        (("MR*",), 3),
        (("ct*",), 3),
        ((), 3),
    ],
)
def test_caller_stores_the_sop_classes_that_it_may(patterns: tuple[str, ...], result: int) -> None:
    policy = AcceptorPolicy("INGEST", sop_classes=patterns)
    assert result_of(CT, IMPLICIT, policy=policy)[0] == result
    assert result_of(uids.VERIFICATION, IMPLICIT, policy=policy)[0] == 0
