"""What a status of a C-STORE response means for the instance: one table, for forwarder and `ingest send`.

PS3.7 Annex C divides statuses into classes by their code, PS3.4 Table B.2-1 names those of Storage. An SCU
acts by the class where it does not know the code, so the table holds patterns. A status without an entry is
refused.
"""

import re
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Final, Self

_PATTERN: Final = re.compile(r"(?:0[xX])?([0-9A-Fa-fxX]{4})[hH]?")


class Category(Enum):
    """The classes of PS3.7 Annex C."""

    SUCCESS = "success"
    WARNING = "warning"
    FAILURE = "failure"
    CANCEL = "cancel"
    PENDING = "pending"


class Meaning(Enum):
    """What an answer says about one instance."""

    STORED = "stored"
    STORED_WITH_WARNING = "stored with a warning"
    ALREADY_STORED = "stored already"
    TRY_AGAIN = "tried again"
    """The remote's trouble, or one that passes."""
    TRY_A_FEW_TIMES = "tried again a few times"
    """Mostly the instance, sometimes the remote: archives answer so while their database is away."""
    NEGOTIATE_AGAIN = "negotiated once more"
    REFUSED = "refused"

    @property
    def is_stored(self) -> bool:
        """Whether the remote has the instance."""
        return self in _STORED


_STORED: Final = (Meaning.STORED, Meaning.STORED_WITH_WARNING, Meaning.ALREADY_STORED)


@dataclass(frozen=True, slots=True)
class StatusPattern:
    """Statuses that begin alike: `C211` is one status, `Cxxx` is 4,096.

    Attributes:
        value: The digits that are given; 0 where there is an x.
        mask: FH at each digit that is given.
    """

    value: int
    mask: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read four hexadecimal digits, x for any digit; `0xC211` and `C211H` are taken too.

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
        """How many digits are not x: of two patterns that match, the one with more of them counts."""
        return self.mask.bit_count() // 4

    def matches(self, status: int) -> bool:
        """Whether a status begins so."""
        return status & self.mask == self.value

    def covers(self, other: "StatusPattern") -> bool:
        """Whether all statuses of another pattern are among ours."""
        return self.mask & other.mask == self.mask and other.value & self.mask == self.value

    def __str__(self) -> str:
        """The pattern as people write it: digits, and x."""
        given = f"{self.mask:04X}"
        return "".join(
            digit if mask == "F" else "x" for digit, mask in zip(f"{self.value:04X}", given, strict=True)
        )


STORE_STATUSES: Final[tuple[tuple[str, Meaning], ...]] = (
    ("0000", Meaning.STORED),
    # PS3.7 Annex C: the class Warning. The operation was done, with a remark.
    ("0001", Meaning.STORED_WITH_WARNING),
    ("0107", Meaning.STORED_WITH_WARNING),
    ("0116", Meaning.STORED_WITH_WARNING),
    ("Bxxx", Meaning.STORED_WITH_WARNING),
    # PS3.7 C.5.7, a failure: the remote has an instance of this UID, and that was the aim.
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
"""What each status means unless a destination says otherwise; a status that is not here is refused."""

_TABLE: Final = tuple((StatusPattern.parse(text), meaning) for text, meaning in STORE_STATUSES)


@lru_cache(maxsize=1024)
def meaning_of(status: int) -> Meaning:
    """What a status (0000,0900) of a C-STORE response means."""
    return next((meaning for pattern, meaning in _TABLE if pattern.matches(status)), Meaning.REFUSED)


def says_stored_only(pattern: StatusPattern) -> bool:
    """Whether each status of a pattern says that the remote has the instance."""
    return any(meaning.is_stored and known.covers(pattern) for known, meaning in _TABLE)


@dataclass(frozen=True, slots=True)
class StatusRules:
    """What one destination wants done about statuses, beside the table.

    Attributes:
        retry: Tried again up to the destination's attempts.
        dead: Not tried again.
    """

    retry: tuple[StatusPattern, ...] = ()
    dead: tuple[StatusPattern, ...] = ()

    def meaning(self, status: int) -> Meaning:
        """What a status means here. That the remote has an instance is nothing that a rule could change."""
        known = meaning_of(status)
        if known.is_stored:
            return known
        retry = max((each.digits_given for each in self.retry if each.matches(status)), default=-1)
        dead = max((each.digits_given for each in self.dead if each.matches(status)), default=-1)
        if retry == dead == -1:
            return known
        return Meaning.TRY_AGAIN if retry > dead else Meaning.REFUSED


def category(status: int) -> Category:
    """The class of a status (PS3.7 Annex C), whatever the operation."""
    if status == 0x0000:
        return Category.SUCCESS
    if status == 0xFE00:
        return Category.CANCEL
    if status in {0xFF00, 0xFF01}:
        return Category.PENDING
    return Category.WARNING if meaning_of(status) is Meaning.STORED_WITH_WARNING else Category.FAILURE
