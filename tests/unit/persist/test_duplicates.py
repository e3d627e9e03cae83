"""What a second object of a SOP instance UID means, as interface.md has it."""

import pytest

from ingest.workers.persist.duplicates import Action, DuplicatePolicy, decide_duplicate
from tests.support.instances import EXPLICIT, IMPLICIT


@pytest.mark.parametrize(
    ("policy", "existing", "identical", "action"),
    [
        ("keep-identical", EXPLICIT, None, Action.COMPARE),
        ("keep-identical", EXPLICIT, True, Action.KEEP),
        ("keep-identical", EXPLICIT, False, Action.QUARANTINE),
        ("keep-identical", IMPLICIT, None, Action.VARIANT),
        ("keep-first", EXPLICIT, None, Action.KEEP),
        ("keep-first", IMPLICIT, None, Action.KEEP),
        ("overwrite", EXPLICIT, None, Action.COMPARE),
        ("overwrite", EXPLICIT, True, Action.KEEP),
        ("overwrite", EXPLICIT, False, Action.REPLACE),
        ("overwrite", IMPLICIT, None, Action.REPLACE),
        ("keep-both", EXPLICIT, None, Action.COMPARE),
        ("keep-both", EXPLICIT, True, Action.KEEP),
        ("keep-both", EXPLICIT, False, Action.COPY),
        ("keep-both", IMPLICIT, None, Action.COPY),
        # What cannot be read is no object that could be kept first.
        ("keep-identical", None, None, Action.REPLACE),
        ("keep-first", None, None, Action.REPLACE),
        ("keep-both", None, None, Action.REPLACE),
        ("overwrite", None, None, Action.REPLACE),
    ],
)
def test_policy_decides(
    policy: DuplicatePolicy, existing: str | None, identical: bool | None, action: Action
) -> None:
    assert decide_duplicate(policy, existing, EXPLICIT, identical).action is action


@pytest.mark.parametrize(("existing", "identical"), [(EXPLICIT, False), (IMPLICIT, None), (None, None)])
def test_decision_that_an_operator_should_know_of_says_why(
    existing: str | None, identical: bool | None
) -> None:
    assert decide_duplicate("keep-identical", existing, EXPLICIT, identical).note
