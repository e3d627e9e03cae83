"""Decide about a second object of a SOP Instance UID (`[store] duplicates`), without I/O.

INVARIANT 10: decisions are pure.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal

DELIVERED_MAX: Final = 10
"""Limit on the objects of one SOP Instance UID that one destination gets within `DELIVERED_WITHIN_MS`.

A remote that returns each image changed would otherwise get, and return, another one for ever.
"""

DELIVERED_WITHIN_MS: Final = 3_600_000

DuplicatePolicy = Literal["keep-identical", "keep-first", "keep-both", "overwrite"]


class Action(Enum):
    """What to do with the second object."""

    KEEP = "keep"
    """Keep the first object alone. The second one is not delivered."""
    COMPARE = "compare"
    """Compare the data sets, and decide again."""
    VARIANT = "variant"
    """Keep the second object beside the first. Destinations that accepted the first one do not get it."""
    COPY = "copy"
    """Keep the second object beside the first, as a separate instance."""
    QUARANTINE = "quarantine"
    """Put the second object into quarantine, for a person to examine."""
    REPLACE = "replace"
    """Put the second object in place of the first, and deliver it."""


@dataclass(frozen=True, slots=True)
class DuplicateDecision:
    """What to do, and the note about it in the ledger."""

    action: Action
    note: str = ""


def decide_duplicate(
    policy: DuplicatePolicy, existing: str | None, incoming: str, identical: bool | None
) -> DuplicateDecision:
    """Decide about an object whose SOP Instance UID is in the store.

    An identical data set changes nothing under any policy. Otherwise two nodes that forward to each other
    would replace the same image for ever.

    Args:
        policy: `[store] duplicates`.
        existing: Transfer syntax UID of the stored file; None if it cannot be read as a DICOM file.
        incoming: Transfer syntax UID of the received file.
        identical: Whether both data sets have the same bytes; None if they were not compared.
    """
    if existing is None:
        return DuplicateDecision(Action.REPLACE, "the file that had its place could not be read")
    if policy == "keep-first":
        return DuplicateDecision(Action.KEEP)
    # PS3.5 section 10: bytes can only be compared within one transfer syntax.
    if existing == incoming and identical is not False:
        return DuplicateDecision(Action.KEEP if identical else Action.COMPARE)
    if policy == "keep-identical" and existing != incoming:
        return DuplicateDecision(
            Action.VARIANT, f"the first object of its SOP instance UID is in transfer syntax {existing}"
        )
    return _FOR_OTHER_CONTENT[policy]


_FOR_OTHER_CONTENT: Final[dict[DuplicatePolicy, DuplicateDecision]] = {
    "overwrite": DuplicateDecision(Action.REPLACE, "replaced an older object of its SOP instance UID"),
    "keep-both": DuplicateDecision(
        Action.COPY, "a further copy: another object of its SOP instance UID was there first"
    ),
    "keep-identical": DuplicateDecision(
        Action.QUARANTINE, "another object of its SOP instance UID, with other content, was there first"
    ),
}


def find_bounded_destinations(destinations: Collection[str], delivered: Mapping[str, int]) -> list[str]:
    """Return the destinations that got `DELIVERED_MAX` objects of a SOP Instance UID lately.

    Args:
        destinations: Names of the destinations of an instance.
        delivered: Objects delivered within `DELIVERED_WITHIN_MS`, by destination.
    """
    return [name for name in destinations if delivered.get(name, 0) >= DELIVERED_MAX]
