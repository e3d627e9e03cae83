"""Small DICOM instances made of bytes, so that tests know every one of them."""

import struct
from dataclasses import dataclass

from ingest.dicom.part10 import FileMeta, encode_file_meta

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"

_LONG = {"OB", "OW", "UN", "SQ"}


def element(group: int, number: int, vr: str, value: bytes) -> bytes:
    """A data element in Explicit VR Little Endian (PS3.5 7.1.2), padded to even length."""
    if len(value) % 2:
        value += b"\0" if vr in {"UI", "OB"} else b" "
    head = struct.pack("<HH2s", group, number, vr.encode())
    if vr in _LONG:
        return head + b"\0\0" + struct.pack("<L", len(value)) + value
    return head + struct.pack("<H", len(value)) + value


def implicit(group: int, number: int, value: bytes) -> bytes:
    """The same in Implicit VR Little Endian (PS3.5 7.1.3), for UIDs and bytes."""
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HHL", group, number, len(value)) + value


@dataclass(frozen=True)
class Made:
    """What a test wants an instance to be; None leaves an attribute out."""

    sop: str = "1.2.3.4"
    study: str | None = "1.2.3"
    series: str | None = "1.2.3.1"
    syntax: str = EXPLICIT
    pixels: bytes = b"\1\2\3\4"
    calling: str = "CT1"
    source: str | None = "dicom-tls://10.0.0.1:4711"
    sop_in_data_set: str | None = None

    @property
    def data_set(self) -> bytes:
        inner = self.sop if self.sop_in_data_set is None else self.sop_in_data_set
        values = [(0x0008, 0x0016, CT), (0x0008, 0x0018, inner), (0x0020, 0x000D, self.study)]
        values.append((0x0020, 0x000E, self.series))
        if self.syntax == IMPLICIT:
            uids = [implicit(group, number, uid.encode()) for group, number, uid in values if uid is not None]
            return b"".join(uids) + implicit(0x7FE0, 0x0010, self.pixels)
        uids = [
            element(group, number, "UI", uid.encode()) for group, number, uid in values if uid is not None
        ]
        return b"".join(uids) + element(0x7FE0, 0x0010, "OB", self.pixels)

    @property
    def meta(self) -> bytes:
        return encode_file_meta(FileMeta(CT, self.sop, self.syntax, self.calling, "INGEST", self.source))

    @property
    def file(self) -> bytes:
        return self.meta + self.data_set
