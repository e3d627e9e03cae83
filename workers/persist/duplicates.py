"""What a second object of a SOP instance UID means (`[store] duplicates`): a decision, without I/O."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal

DELIVERED_MAX: Final = 10
"""So many objects of one SOP instance UID one destination is sent within `DELIVERED_WITHIN_MS`.

A remote that sends each image back changed would otherwise get, and send, another one for ever.
"""

DELIVERED_WITHIN_MS: Final = 3_600_000

Policy = Literal["keep-identical", "keep-first", "keep-both", "overwrite"]


class Action(Enum):
    """What to do with the object that came second."""

    KEEP = "keep"
    """The first one stays; the second goes, and is not delivered again."""
    COMPARE = "compare"
    """Not to be told without comparing the data sets; ask again when that is done."""
    VARIANT = "variant"
    """Keep the second beside the first; destinations that have accepted the first do not get it."""
    COPY = "copy"
    """Keep the second beside the first, as an instance of its own."""
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

    An identical data set is no event under any policy. Otherwise two nodes that forward to each other would
    replace the same image for ever.

    Args:
        policy: `[store] duplicates`.
        existing: Transfer syntax UID of the file that is there; None where it cannot be read as a DICOM file.
        incoming: Transfer syntax UID of what came.
        identical: Whether both data sets are the same bytes; None where nobody has looked.
    """
    if existing is None:
        return Decision(Action.REPLACE, "the file that had its place could not be read")
    if policy == "keep-first":
        return Decision(Action.KEEP)
    # Bytes can only be compared within one transfer syntax (PS3.5 10).
    if existing == incoming and identical is not False:
        return Decision(Action.KEEP if identical else Action.COMPARE)
    if policy == "keep-identical" and existing != incoming:
        return Decision(
            Action.VARIANT, f"the first object of its SOP instance UID is in transfer syntax {existing}"
        )
    return _OF_OTHERS[policy]


_OF_OTHERS: Final[dict[Policy, Decision]] = {
    "overwrite": Decision(Action.REPLACE, "replaced an older object of its SOP instance UID"),
    "keep-both": Decision(
        Action.COPY, "a further copy: another object of its SOP instance UID was there first"
    ),
    "keep-identical": Decision(
        Action.QUARANTINE, "another object of its SOP instance UID, with other content, was there first"
    ),
}


def at_bound(destinations: Collection[str], delivered: Mapping[str, int]) -> list[str]:
    """Those of the destinations that have had `DELIVERED_MAX` objects of a SOP instance UID lately.

    Args:
        destinations: Names.
        delivered: How many objects of it were delivered within `DELIVERED_WITHIN_MS`, by destination.
    """
    return [name for name in destinations if delivered.get(name, 0) >= DELIVERED_MAX]
