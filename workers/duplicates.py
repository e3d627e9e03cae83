"""What a second object of a SOP instance UID means (`[store] duplicates`): a decision, without I/O."""

from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal

Policy = Literal["keep-identical", "keep-first", "overwrite"]


class Action(Enum):
    """What to do with the object that came second."""

    KEEP = "keep"
    """The first one stays; the second goes, and is not delivered again."""
    COMPARE = "compare"
    """Not to be told without comparing the data sets; ask again when that is done."""
    VARIANT = "variant"
    """Keep the second beside the first."""
    QUARANTINE = "quarantine"
    """Keep the second apart, for a person to look at."""
    REPLACE = "replace"
    """The second takes the place of the first, and is delivered."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, and what the ledger should say about it."""

    action: Action
    note: str = ""


def decide(policy: Policy, existing: str | None, incoming: str, identical: bool | None) -> Decision:
    """Decide about an object whose SOP instance UID is in the store.

    Args:
        policy: `[store] duplicates`.
        existing: Transfer syntax UID of the file that is there; None where it cannot be read as a DICOM file.
        incoming: Transfer syntax UID of what came.
        identical: Whether both data sets are the same bytes; None where nobody has looked.
    """
    if existing is None:
        return Decision(Action.REPLACE, "the file that had its place could not be read")
    if policy == "overwrite":
        return Decision(Action.REPLACE, "replaced an older object of its SOP instance UID")
    if policy == "keep-first":
        return Decision(Action.KEEP)
    # Bytes can only be compared within one transfer syntax (PS3.5 10).
    if existing != incoming:
        return Decision(
            Action.VARIANT, f"the first object of its SOP instance UID is in transfer syntax {existing}"
        )
    return _BY_CONTENT[identical]


_BY_CONTENT: Final = {
    None: Decision(Action.COMPARE),
    True: Decision(Action.KEEP),
    False: Decision(
        Action.QUARANTINE, "another object of its SOP instance UID, with other content, was there first"
    ),
}
