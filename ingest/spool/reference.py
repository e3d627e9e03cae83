"""References: what travels on the queue instead of a data set.

A reference names the carrier, the spool and the location of one committed entry. Only spool and store
interpret it.

INVARIANT 12: a reference comes out of Redis, where others may write. It must name a location that a spool can
have. What it names is opened below the folder of the spool (`ingest.filesystem.beneath`), and it is removed
only after the ledger has it.
"""

import re
from dataclasses import dataclass
from typing import Final, NamedTuple

from ingest.spool import segment

SPOOL_ID_PATTERN: Final = re.compile(r"[0-9A-Za-z-]{1,64}")
"""Pattern of the id of a spool."""

READY_PATH: Final = re.compile(r"L[0-9]{1,9}/ready/[0-9a-f]{1,16}(-[0-9a-f]{1,16})?(\.[0-9A-F]{4})?\.dcm")
"""Pattern of the path of a committed file, below the folder of the spool."""

_NUMBER: Final = re.compile(rb"[0-9]{1,13}")
_FIELD_BYTES_MAX: Final = 256


class Location(NamedTuple):
    """Where one committed entry lies in its spool; the attributes are those of `Reference`.

    `path` and `offset` together distinguish two locations.
    """

    path: str
    offset: int = 0
    length: int = 0

    @property
    def name(self) -> str:
        """Path and offset as one text; keys of the queue and references in the ledger end with it."""
        return f"{self.path}#{self.offset}" if self.offset else self.path


@dataclass(frozen=True, slots=True)
class Reference:
    """A pointer to one committed entry.

    Attributes:
        carrier: "spool" (the file lies in a shared spool) or "redis" (a key of the queue holds a copy).
        spool: Id of the spool that committed the entry; the stream has the same name.
        path: Path below the folder of the spool. No other entry ever has the same path and offset. Within a
            slot the names sort by time of arrival.
        offset: First byte of the Part 10 file within `path`; 0 unless `path` is a segment.
        length: Length in bytes from `offset`; 0 means up to the end of the file.
    """

    carrier: str
    spool: str
    path: str
    offset: int = 0
    length: int = 0

    @property
    def location(self) -> Location:
        """The location within the spool."""
        return Location(self.path, self.offset, self.length)

    def to_fields(self) -> dict[str, str]:
        """Return the fields of a stream entry."""
        # INVARIANT 9: an entry of the stream holds no patient data, only where the data lies.
        return {
            "c": self.carrier,
            "s": self.spool,
            "w": self.path,
            "o": str(self.offset),
            "l": str(self.length),
        }


def parse_fields(fields: dict[bytes, bytes]) -> tuple[str, str, str, int, int]:
    """Parse the fields of a stream entry as redis-py returns them.

    Returns:
        Carrier, spool, path, offset and length, as `Reference` takes them.

    Raises:
        ValueError: A field is missing or has the wrong type, or no spool can have such a location.
    """
    # INVARIANT 12: every field is checked before anything is opened.
    try:
        carrier, spool, path = (fields[name].decode("ascii") for name in (b"c", b"s", b"w"))
        offset, length = (_parse_number(fields[name]) for name in (b"o", b"l"))
    except KeyError as error:
        raise ValueError(f"stream entry without the field {error}") from error
    if carrier not in {"spool", "redis"} or not SPOOL_ID_PATTERN.fullmatch(spool):
        raise ValueError(f"carrier {carrier[:80]!r}, spool {spool[:80]!r}")
    if len(path) > _FIELD_BYTES_MAX or not _is_possible(carrier, path, offset, length):
        raise ValueError(f"no place in a spool: {path[:80]!r}, offset {offset}, length {length}")
    return carrier, spool, path, offset, length


def _parse_number(value: bytes) -> int:
    if not _NUMBER.fullmatch(value):
        raise ValueError(f"no offset or length: {value[:80]!r}")
    return int(value)


def _is_possible(carrier: str, path: str, offset: int, length: int) -> bool:
    """Whether a spool can have an entry there: a whole file, or a record of a segment."""
    if READY_PATH.fullmatch(path):
        return offset == 0 and (length > 0) == (carrier == "redis")
    is_aligned = offset >= segment.HEADER_BYTES and offset % segment.ALIGNMENT == 0
    return bool(segment.SEGMENT_PATH.fullmatch(path)) and is_aligned and length > 0
