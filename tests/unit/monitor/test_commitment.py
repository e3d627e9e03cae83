"""When a referenced instance counts as committed: a table, and what must hold for all of it."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.dicom.commitment import FailureReason, SOPReference
from ingest.ledger.commitments import COMMITTED, Evidence
from ingest.workers.monitor.commitment import CommitmentPolicy, judge_reference
from tests.support.instances import CT

POLICY = CommitmentPolicy(
    {"all": "delivered", "one": "delivered:pacs", "relay": "committed:pacs"}, wait_ms=1000, give_up_ms=9000
)
ASKED = SOPReference(CT, "1.2.3")
DONE, OPEN, LOST = "delivered", "retry", "dead"
WAIT = None
FAILED, MISSING, CONFLICT = (
    FailureReason.PROCESSING_FAILURE,
    FailureReason.NO_SUCH_INSTANCE,
    FailureReason.CLASS_INSTANCE_CONFLICT,
)


def known(
    state: str = "stored",
    routed: str = "",
    sop_class: str = CT,
    committed: Sequence[str] = (),
    set_aside: bool = False,
    **deliveries: str,
) -> Evidence:
    return Evidence(state, sop_class, routed, deliveries, frozenset(committed), is_set_aside=set_aside)


@pytest.mark.parametrize(
    ("evidence", "age_ms", "result"),
    [
        ([], 0, WAIT),
        ([], 1000, MISSING),
        ([known("quarantined")], 0, WAIT),
        ([known("quarantined")], 1000, FAILED),
        ([known("removed")], 1000, MISSING),
        ([known()], 0, COMMITTED),
        ([known("variant"), known("replaced")], 0, COMMITTED),
        ([known(sop_class="1.9")], 0, CONFLICT),
        ([known(sop_class="1.9"), known()], 0, COMMITTED),
        # A route of which nothing is said means "stored", however its deliveries are.
        ([known(routed="other", pacs=LOST)], 0, COMMITTED),
        ([known(routed="all", pacs=DONE, vna=DONE)], 0, COMMITTED),
        ([known(routed="all", pacs=DONE, vna=OPEN)], 5000, WAIT),
        ([known(routed="all", pacs=DONE, vna=OPEN)], 9000, FAILED),
        ([known(routed="all", pacs=DONE, vna=LOST)], 0, FAILED),
        ([known(routed="all")], 0, COMMITTED),
        ([known(routed="one", pacs=DONE, vna=LOST)], 0, COMMITTED),
        ([known(routed="one", pacs="dropped")], 0, FAILED),
        ([known(routed="one", vna=DONE)], 0, WAIT),
        ([known(routed="other, one; not sent back to vna", pacs=OPEN)], 0, WAIT),
        ([known(routed="relay", pacs=DONE)], 0, WAIT),
        ([known(routed="relay", pacs=OPEN, committed=("pacs",))], 0, WAIT),
        ([known(routed="relay", pacs=DONE, committed=("vna",))], 9000, FAILED),
        ([known(routed="relay", pacs=DONE, committed=("pacs",))], 0, COMMITTED),
        ([known(routed="relay", pacs=LOST)], 0, FAILED),
        # The requestor's own object lies in quarantine, and another one of that UID is kept.
        ([known(), known("quarantined", set_aside=True)], 0, WAIT),
        ([known(), known("quarantined", set_aside=True)], 1000, FAILED),
        ([known(), known("quarantined")], 0, COMMITTED),
        # Retention removed it: only what each of its routes demands of others can still commit it.
        ([known("removed", routed="one", pacs=DONE)], 0, COMMITTED),
        ([known("removed", routed="relay", pacs=DONE, committed=("pacs",))], 0, COMMITTED),
        ([known("removed", routed="relay", pacs=DONE)], 1000, MISSING),
        ([known("removed", routed="one", pacs="dropped")], 1000, MISSING),
        ([known("removed", routed="one, other", pacs=DONE)], 1000, MISSING),
        ([known("removed", routed="all")], 1000, MISSING),
        ([known("removed", routed="one", sop_class="1.9", pacs=DONE)], 1000, MISSING),
        ([known("removed", routed="one", pacs=DONE), known("quarantined", set_aside=True)], 1000, FAILED),
        # Two objects of one UID: both count.
        ([known(routed="one", pacs=DONE), known(routed="one", pacs=OPEN)], 0, WAIT),
        ([known(routed="one", pacs=LOST), known(routed="one", pacs=OPEN)], 0, FAILED),
    ],
)
def test_table(evidence: list[Evidence], age_ms: int, result: int | None) -> None:
    assert judge_reference(ASKED, evidence, POLICY, age_ms) == result


objects = st.builds(
    Evidence,
    st.sampled_from(["stored", "variant", "quarantined", "replaced", "removing", "removed"]),
    st.sampled_from([CT, "1.9"]),
    st.sampled_from(["", "all", "one", "other", "all, one", "no route took it"]),
    st.dictionaries(
        st.sampled_from(["pacs", "vna"]), st.sampled_from(["waiting", "sending", DONE, OPEN, LOST, "dropped"])
    ),
    st.frozensets(st.sampled_from(["pacs", "vna"])),
    st.booleans(),
)


@given(st.lists(objects, max_size=4), st.integers(0, 20_000))
def test_only_what_somebody_keeps_is_committed_and_nothing_waits_for_ever(
    evidence: list[Evidence], age_ms: int
) -> None:
    result = judge_reference(ASKED, evidence, POLICY, age_ms)
    kept = [one for one in evidence if one.state in {"stored", "variant"} and one.sop_class_uid == CT]
    if result == COMMITTED:
        assert not any(one.is_set_aside for one in evidence)
        elsewhere = [one for one in evidence if one.state in {"removing", "removed"} and one.deliveries]
        assert kept or any(one.routed in {"all", "one", "all, one"} for one in elsewhere)
        for one in kept:
            if "all" in one.routed.split(", "):
                assert set(one.deliveries.values()) <= {DONE}
    if age_ms >= POLICY.give_up_ms:
        assert result is not None


@pytest.mark.parametrize(
    ("name", "state", "members", "result"),
    [
        ("archive", DONE, {"a": DONE}, COMMITTED),
        ("a", DONE, {"a": DONE}, COMMITTED),
        # Another member has it, so this one never gets it.
        ("b", DONE, {"a": DONE}, FAILED),
        ("b", OPEN, {"a": OPEN}, WAIT),
        ("a", LOST, {"a": LOST}, FAILED),
    ],
)
def test_delivered_to_a_group_or_to_its_member(
    name: str, state: str, members: dict[str, str], result: int | None
) -> None:
    groups = {"a": ("archive",), "b": ("archive",)}
    policy = CommitmentPolicy({"one": f"delivered:{name}"}, 1000, 9000, groups)
    evidence = Evidence("stored", CT, "one", {"archive": state}, members=members)
    assert judge_reference(ASKED, [evidence], policy, 0) == result
