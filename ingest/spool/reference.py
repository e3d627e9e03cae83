"""What travels on the queue instead of the data set: an opaque reference, read by spool and store alone.

A reference comes out of Redis, where others may write. It is one only if it names what a spool can hold; what
it names is opened below the spool's folder (`ingest.filesystem.beneath`), and removed only once the ledger
holds it.
"""

import re
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

from ingest.spool import segment

SPOOL_ID: Final = re.compile(r"[0-9A-Za-z-]{1,64}")
"""What the id of a spool looks like."""

READY: Final = re.compile(r"L[0-9]{1,9}/ready/[0-9a-f]{1,16}(-[0-9a-f]{1,16})?(\.[0-9A-F]{4})?\.dcm")
"""What the place of a file in a spool looks like."""

_NUMBER: Final = re.compile(rb"[0-9]{1,13}")
_FIELD_BYTES_MAX: Final = 256


class Place(NamedTuple):
    """Where in its spool one committed instance lies; the attributes are those of `Reference`.

    What tells two places apart is `where` and `offset`.
    """

    where: str
    offset: int = 0
    length: int = 0

    @property
    def name(self) -> str:
        """What tells it apart, as one word: keys of the queue and of the ledger end with it."""
        return f"{self.where}#{self.offset}" if self.offset else self.where


@dataclass(frozen=True, slots=True)
class Reference:
    """Where one committed instance waits.

    Attributes:
        carrier: "spool" (the file in the shared spool) or "redis" (a copy of it under a key of the queue).
        spool: Id of the spool that made the promise; also names the stream.
        where: Path below the spool's folder. Unique for ever, and sorts by time of arrival within a slot.
        offset: First byte within `where`, for spools that keep several instances in one segment.
        length: Length in bytes from `offset`; 0 means up to the end of the file.
    """

    carrier: str
    spool: str
    where: str
    offset: int = 0
    length: int = 0

    @property
    def place(self) -> Place:
        """Where it waits within its spool."""
        return Place(self.where, self.offset, self.length)

    def to_fields(self) -> dict[str, str]:
        """The fields of a stream entry."""
        return {
            "c": self.carrier,
            "s": self.spool,
            "w": self.where,
            "o": str(self.offset),
            "l": str(self.length),
        }

    @classmethod
    def from_fields(cls, fields: dict[bytes, bytes]) -> Self:
        """The reference in a stream entry as redis-py gives it.

        Raises:
            ValueError: A field is missing or is not of its type, or it names nothing that a spool can hold.
        """
        try:
            carrier, spool, where = (fields[name].decode("ascii") for name in (b"c", b"s", b"w"))
            offset, length = (_number(fields[name]) for name in (b"o", b"l"))
        except KeyError as error:
            raise ValueError(f"stream entry without the field {error}") from error
        if carrier not in {"spool", "redis"} or not SPOOL_ID.fullmatch(spool):
            raise ValueError(f"carrier {carrier[:80]!r}, spool {spool[:80]!r}")
        if len(where) > _FIELD_BYTES_MAX or not _may_be(carrier, where, offset, length):
            raise ValueError(f"no place in a spool: {where[:80]!r}, offset {offset}, length {length}")
        return cls(carrier, spool, where, offset, length)


def _number(value: bytes) -> int:
    if not _NUMBER.fullmatch(value):
        raise ValueError(f"no offset or length: {value[:80]!r}")
    return int(value)


def _may_be(carrier: str, where: str, offset: int, length: int) -> bool:
    """Whether a spool can hold something there: a whole file, or a record of a segment."""
    if READY.fullmatch(where):
        return offset == 0 and (length > 0) == (carrier == "redis")
    aligned = offset >= segment.HEADER_BYTES and offset % segment.ALIGNMENT == 0
    return bool(segment.PLACE.fullmatch(where)) and aligned and length > 0
