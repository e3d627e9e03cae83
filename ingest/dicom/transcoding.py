"""Transcoding: decide in which transfer syntaxes a stored instance is offered to a remote.

The decision is pure, and knows transfer syntaxes only. Whether a certain data set can be encoded in another
one is known when it is read (`ingest.outgoing.transcoding`).
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from typing import Final

from ingest.dicom import uids

NATIVE: Final = {
    uids.EXPLICIT_LITTLE_ENDIAN: "ExplicitVRLittleEndian",
    uids.IMPLICIT_LITTLE_ENDIAN: "ImplicitVRLittleEndian",
    uids.DEFLATED_EXPLICIT_LITTLE_ENDIAN: "DeflatedExplicitVRLittleEndian",
    uids.EXPLICIT_BIG_ENDIAN: "ExplicitVRBigEndian",
}
"""Transfer syntaxes without compressed pixel data (PS3.5 A.1 to A.5), with their keywords in PS3.6."""

JPEG_LS: Final = "1.2.840.10008.1.2.4.80"
JPEG_2000: Final = "1.2.840.10008.1.2.4.90"
RLE: Final = "1.2.840.10008.1.2.5"

ENCODED: Final = {JPEG_LS: "JPEGLSLossless", JPEG_2000: "JPEG2000Lossless", RLE: "RLELossless"}
"""Compressed transfer syntaxes that the codecs of the extra `transcode` encode and decode (PS3.5 A.4)."""

DECODED: Final = frozenset({*ENCODED, "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"})
"""Compressed transfer syntaxes that the codecs decode: also JPEG Lossless. None of them can be lossy."""

TARGETS: Final = NATIVE | ENCODED
"""Transfer syntaxes to send in, with their keywords."""

FALLBACKS: Final = (uids.EXPLICIT_LITTLE_ENDIAN, uids.IMPLICIT_LITTLE_ENDIAN)
"""Transfer syntaxes that remotes know, in order of preference. PS3.5 10.1 demands the second one of all."""


class TranscodeMode(Enum):
    """When data sets are transcoded for a destination: its `transcode`."""

    NEVER = "never"
    IF_REFUSED = "if-refused"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True)
class TranscodingRule:
    """What a destination asks for.

    Attributes:
        mode: When data sets are transcoded.
        preferred: UID of the transfer syntax that is tried before the fallbacks; empty if there is none.
        codecs: UIDs of the compressed transfer syntaxes whose codecs are installed.
    """

    mode: TranscodeMode = TranscodeMode.NEVER
    preferred: str = ""
    codecs: frozenset[str] = frozenset()

    def list_offers(self, stored: str) -> tuple[str, ...]:
        """List the transfer syntaxes to propose for an instance. The first one that is accepted is used.

        Args:
            stored: UID of the transfer syntax that the instance is stored in.
        """
        # INVARIANT 10: decisions are pure
        if self.mode is TranscodeMode.NEVER:
            return (stored,)
        first = (self.preferred, stored) if self.mode is TranscodeMode.ALWAYS else (stored, self.preferred)
        wanted = [*first, *FALLBACKS]
        possible = [uid for uid in wanted if uid == stored or can_transcode(stored, uid, self.codecs)]
        return tuple(dict.fromkeys(possible))


def can_transcode(stored: str, wanted: str, codecs: Collection[str]) -> bool:
    """Return whether instances of one transfer syntax can be encoded in another one, as far as it is known.

    Args:
        stored: UID of the transfer syntax that they are stored in.
        wanted: UID of the other one.
        codecs: UIDs of the compressed transfer syntaxes whose codecs are installed.
    """
    if stored in NATIVE and wanted in NATIVE:
        return True
    can_decode = stored in NATIVE or (stored in DECODED and stored in codecs)
    return can_decode and ((wanted in ENCODED and wanted in codecs) or wanted in FALLBACKS)


def find_target(text: str) -> str | None:
    """Return the UID of a transfer syntax to send in, by its UID or keyword; None if there is no such one."""
    if text in TARGETS:
        return text
    return next((uid for uid, keyword in TARGETS.items() if keyword == text), None)


def name_syntax(uid: str) -> str:
    """Return the keyword of a transfer syntax in PS3.6, or its UID."""
    if uid in TARGETS:
        return TARGETS[uid]
    names = uids.names_of(uid)
    return names[1] if len(names) > 1 else uid
