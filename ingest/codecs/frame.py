"""The description of a frame, which worker and codec process share."""

from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class FrameLayout:
    """Attributes of the Image Pixel module (PS3.3 C.7.6.3) that a codec needs.

    Attributes:
        photometric: Photometric Interpretation.
        is_planar: Whether native frames are stored color by plane.
    """

    rows: int
    columns: int
    samples: int
    bits_allocated: int
    bits_stored: int
    is_signed: bool
    photometric: str
    is_planar: bool = False

    @property
    def size_bytes(self) -> int:
        """Length of a native frame in bytes."""
        return self.rows * self.columns * self.samples * self.bits_allocated // 8


@dataclass(frozen=True, slots=True)
class FrameJob:
    """A transcoding of frames.

    Attributes:
        layout: Attributes of the frames; those of the stored data set.
        stored: UID of their transfer syntax; a native one stands for words in little endian.
        wanted: UID of the transfer syntax that they get. Native frames are color by pixel.
    """

    layout: FrameLayout
    stored: str
    wanted: str

    def to_json(self) -> dict[str, Any]:
        """Return the job for JSON."""
        return {"layout": asdict(self.layout), "stored": self.stored, "wanted": self.wanted}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """Read a job from JSON."""
        return cls(FrameLayout(**found["layout"]), found["stored"], found["wanted"])
