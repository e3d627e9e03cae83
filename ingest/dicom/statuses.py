"""Meaning of C-STORE response statuses for the instance: one table, for forward workers and `ingest send`.

PS3.7 Annex C divides statuses into classes by their code, and PS3.4 Table B.2-1 names those of Storage. An
SCU that does not know a code acts by its class, so the table contains patterns. A status without an entry
means that the remote refuses the instance.
"""

import re
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Final, Self

_PATTERN: Final = re.compile(r"(?:0[xX])?([0-9A-Fa-fxX]{4})[hH]?")


class Category(Enum):
    """Status classes of PS3.7 Annex C."""

    SUCCESS = "success"
    WARNING = "warning"
    FAILURE = "failure"
    CANCEL = "cancel"
    PENDING = "pending"


class Meaning(Enum):
    """Consequence of a response for one instance."""

    STORED = "stored"
    STORED_WITH_WARNING = "stored with a warning"
    ALREADY_STORED = "stored already"
    TRY_AGAIN = "tried again"
    """The remote has a problem, which may pass."""
    TRY_A_FEW_TIMES = "tried again a few times"
    """The cause is mostly the instance, but archives also answer this while their database is away."""
    NEGOTIATE_AGAIN = "negotiated once more"
    REFUSED = "refused"

    @property
    def is_stored(self) -> bool:
        """Whether the remote has stored the instance."""
        return self in _STORED


_STORED: Final = (Meaning.STORED, Meaning.STORED_WITH_WARNING, Meaning.ALREADY_STORED)


@dataclass(frozen=True, slots=True)
class StatusPattern:
    """Statuses with the same first digits: `C211` is one status, `Cxxx` is 4,096.

    Attributes:
        value: The fixed digits; 0 in place of each x.
        mask: FH at each fixed digit.
    """

    value: int
    mask: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read four hexadecimal digits, with x for any digit. `0xC211` and `C211H` are accepted too.

        Raises:
            ValueError: The text is no such pattern.
        """
        found = _PATTERN.fullmatch(text.strip())
        if found is None:
            raise ValueError(f'"{text}" is no status')
        digits = found[1].lower()
        return cls(
            int(digits.replace("x", "0"), 16),
            int("".join("0" if digit == "x" else "f" for digit in digits), 16),
        )

    @property
    def digits_given(self) -> int:
        """Number of fixed digits. If two patterns match, the one with more fixed digits counts."""
        return self.mask.bit_count() // 4

    def matches(self, status: int) -> bool:
        """Return whether the pattern contains a status."""
        return status & self.mask == self.value

    def covers(self, other: "StatusPattern") -> bool:
        """Return whether the pattern contains all statuses of another pattern."""
        return self.mask & other.mask == self.mask and other.value & self.mask == self.value

    def __str__(self) -> str:
        """Return the pattern as people write it: digits and x."""
        given = f"{self.mask:04X}"
        return "".join(
            digit if mask == "F" else "x" for digit, mask in zip(f"{self.value:04X}", given, strict=True)
        )


STORE_STATUSES: Final[tuple[tuple[str, Meaning], ...]] = (
    ("0000", Meaning.STORED),
    # PS3.7 Annex C, class Warning: the remote has done the operation, with a remark.
    ("0001", Meaning.STORED_WITH_WARNING),
    ("0107", Meaning.STORED_WITH_WARNING),
    ("0116", Meaning.STORED_WITH_WARNING),
    ("Bxxx", Meaning.STORED_WITH_WARNING),
    # PS3.7 C.5.7 is a failure. But the remote has an instance of this UID, and that was the aim.
    ("0111", Meaning.ALREADY_STORED),
    # PS3.7 C.5.20, processing failure; C.5.25, resource limitation; PS3.4 Table B.2-1, out of resources.
    ("0110", Meaning.TRY_AGAIN),
    ("0213", Meaning.TRY_AGAIN),
    ("A7xx", Meaning.TRY_AGAIN),
    # PS3.4 Table B.2-1, "cannot understand"; pynetdicom answers C211H when its handler raised.
    ("Cxxx", Meaning.TRY_A_FEW_TIMES),
    # PS3.7 C.5.6, SOP class not supported, of a context that was accepted.
    ("0122", Meaning.NEGOTIATE_AGAIN),
)
"""Meaning of each status, unless a destination configures another one."""

_TABLE: Final = tuple((StatusPattern.parse(text), meaning) for text, meaning in STORE_STATUSES)


STATUS_NAMES: Final[tuple[tuple[str, str], ...]] = (
    # PS3.7 Annex C and PS3.4 Table B.2-1
    ("0000", "success"),
    ("0105", "no such attribute"),
    ("0106", "invalid attribute value"),
    ("0107", "attribute list error"),
    ("0110", "processing failure"),
    ("0111", "duplicate SOP instance"),
    ("0112", "no such SOP instance"),
    ("0115", "invalid argument value"),
    ("0116", "attribute value out of range"),
    ("0117", "invalid SOP instance"),
    ("0118", "no such SOP class"),
    ("0119", "class-instance conflict"),
    ("0120", "missing attribute"),
    ("0121", "missing attribute value"),
    ("0122", "SOP class not supported"),
    ("0124", "not authorized"),
    ("0210", "duplicate invocation"),
    ("0211", "unrecognized operation"),
    ("0212", "mistyped argument"),
    ("0213", "resource limitation"),
    ("A7xx", "out of resources"),
    ("A9xx", "data set does not match SOP class"),
    ("Cxxx", "cannot understand"),
    ("B000", "coercion of data elements"),
    ("B006", "elements discarded"),
    ("B007", "data set does not match SOP class"),
    ("Bxxx", "warning"),
    ("FE00", "cancel"),
)
"""Name of each status in the standard."""

_NAMES: Final = tuple((StatusPattern.parse(text), name) for text, name in STATUS_NAMES)


def name_status(status: int) -> str:
    """Return the name of a C-STORE status; empty for a status that the standard does not have."""
    return next((name for pattern, name in _NAMES if pattern.matches(status)), "")


@lru_cache(maxsize=1024)
def find_meaning(status: int) -> Meaning:
    """Return the meaning of a status (0000,0900) of a C-STORE response."""
    return next((meaning for pattern, meaning in _TABLE if pattern.matches(status)), Meaning.REFUSED)


def means_stored_only(pattern: StatusPattern) -> bool:
    """Return whether each status of a pattern means that the remote has stored the instance."""
    return any(meaning.is_stored and known.covers(pattern) for known, meaning in _TABLE)


@dataclass(frozen=True, slots=True)
class StatusRules:
    """Statuses for which one destination departs from the table.

    Attributes:
        retry: Deliveries are tried again, up to the destination's attempts.
        dead: Deliveries are not tried again.
    """

    retry: tuple[StatusPattern, ...] = ()
    dead: tuple[StatusPattern, ...] = ()

    def find_meaning(self, status: int) -> Meaning:
        """Return the meaning of a status. No rule can change that the remote has stored the instance."""
        known = find_meaning(status)
        if known.is_stored:
            return known
        retry = max((each.digits_given for each in self.retry if each.matches(status)), default=-1)
        dead = max((each.digits_given for each in self.dead if each.matches(status)), default=-1)
        if retry == dead == -1:
            return known
        return Meaning.TRY_AGAIN if retry > dead else Meaning.REFUSED


def classify_status(status: int) -> Category:
    """Return the class of a status (PS3.7 Annex C) of any operation."""
    if status == 0x0000:
        return Category.SUCCESS
    if status == 0xFE00:
        return Category.CANCEL
    if status in {0xFF00, 0xFF01}:
        return Category.PENDING
    return Category.WARNING if find_meaning(status) is Meaning.STORED_WITH_WARNING else Category.FAILURE
