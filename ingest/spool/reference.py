"""What travels on the queue instead of the data set: an opaque reference, read by spool and store alone."""

from dataclasses import dataclass
from typing import NamedTuple, Self


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
            ValueError: A field is missing or is not of its type.
        """
        try:
            return cls(
                fields[b"c"].decode(),
                fields[b"s"].decode(),
                fields[b"w"].decode(),
                int(fields[b"o"]),
                int(fields[b"l"]),
            )
        except KeyError as error:
            raise ValueError(f"stream entry without the field {error}") from error
