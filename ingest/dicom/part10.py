"""File Meta Information of PS3.10 7.1: preamble, prefix and group 0002, in Explicit VR Little Endian.

`encode_file_meta` runs once for each received instance, so the parts that are constant in an association are
cached.
"""

import os
import stat
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ingest.dicom.priority import HIGH, LOW, MEDIUM
from ingest.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION
from ingest.errors import PeerError

_HEAD_LENGTH = 132  # PS3.10 7.1: a preamble of 128 bytes, then DICM
_BEFORE_LENGTH = bytes(128) + b"DICM\x02\x00\x00\x00UL\x04\x00"
"""Bytes up to the value of (0002,0000) File Meta Information Group Length."""
_READ_FIRST = 4096
_META_MAX = 1 << 20
"""Upper bound of a File Meta in memory. Private information (0002,0102) may be long."""

_CERTIFICATE_MAX = 2048
"""Upper bound of the certificate in a File Meta. A certificate may have hundreds of names."""

_VERSION = b"\x02\x00\x01\x00OB\x00\x00\x02\x00\x00\x00\x00\x01"
"""(0002,0001) File Meta Information Version, 0001H."""

_PRIORITY_LINES = {HIGH: b"priority:high", LOW: b"priority:low"}
"""A line of (0002,0102) after those of the certificate. None of these begins with this prefix."""

_ASSOCIATION_PREFIX = b"association:"
"""Begin of the last line of (0002,0102): the id of the association, 16 hexadecimal digits."""

_GROUP = b"\x02\x00"
LONG_VRS = frozenset(
    {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
)
"""VRs with two reserved bytes and a 32-bit length (PS3.5 Table 7.1-1)."""

_Elements = dict[int, bytes]


@dataclass(frozen=True, slots=True)
class FileMeta:
    """Content of group 0002.

    Attributes:
        sop_class_uid: (0002,0002).
        sop_instance_uid: (0002,0003).
        transfer_syntax_uid: (0002,0010).
        calling_ae: (0002,0016) and (0002,0017), AE title of the sender; empty when unknown.
        called_ae: (0002,0018), AE title of the receiver; empty when unknown.
        source_address: (0002,0026), URI of the sender (`format_presentation_address`); None when unknown.
        receiving_address: (0002,0028), URI of the receiver; None when unknown.
        certificate: SHA-256 fingerprint, subject and alternative names of the caller certificate, in
            (0002,0102) Private Information under our own creator UID. Empty without one.
        priority: Priority (0000,0700) of the request, in the same element; 0 is MEDIUM, and not written.
        association: Id of the association, in the same element; 0 if it has none, and not written.
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae: str = ""
    called_ae: str = ""
    source_address: str | None = None
    receiving_address: str | None = None
    certificate: tuple[str, ...] = ()
    priority: int = MEDIUM
    association: int = 0


def format_presentation_address(host: str, port: int, *, tls: bool) -> str:
    """Format the URI of a peer for (0002,0026). An IPv6 address gets brackets."""
    scheme = "dicom-tls" if tls else "dicom"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def split_file_meta(meta: FileMeta) -> tuple[bytes, bytes, bytes]:
    """Encode the parts of a File Meta that are constant for a presentation context.

    Returns:
        Bytes up to the value of (0002,0000), bytes from there up to (0002,0003), and bytes after it.
    """
    return (
        _BEFORE_LENGTH,
        _VERSION + _cached_uid(0x0002, meta.sop_class_uid),
        _cached_uid(0x0010, meta.transfer_syntax_uid) + _provenance(meta),
    )


def encode_file_meta(meta: FileMeta) -> bytes:
    """Encode the bytes before the data set in a file of PS3.10.

    No value of a peer raises an exception here. A value that is too long is cut, and non-ASCII becomes "?".
    Callers refuse such values long before.
    """
    lead, before, after = split_file_meta(meta)
    group = before + _uid(0x0003, meta.sop_instance_uid) + after
    return lead + len(group).to_bytes(4, "little") + group


def read_file_meta(fd: int) -> tuple[FileMeta, int]:
    """Read the File Meta of an open file, and return it with the offset of the data set.

    The file position does not change. Missing and odd values are accepted, wrong lengths are not.

    Raises:
        PeerError: The file is no file of PS3.10, its group 0002 is longer than the file or not in Explicit VR
            Little Endian, or it names no transfer syntax.
        OSError: The file cannot be read.
    """
    data = os.pread(fd, _READ_FIRST, 0)
    if len(data) < _HEAD_LENGTH or data[128:132] != b"DICM":
        raise PeerError("no DICM after a preamble of 128 bytes: not a file of PS3.10")
    parsed = _parse(data)
    if parsed is None:
        data = _read_up_to(fd, _META_MAX)
        parsed = _parse(data)
    if parsed is None:
        raise PeerError(f"the File Meta is cut short or longer than {_META_MAX} bytes")
    elements, offset = parsed
    meta = FileMeta(
        _value(elements, 0x0002),
        _value(elements, 0x0003),
        _value(elements, 0x0010),
        _value(elements, 0x0017) or _value(elements, 0x0016),
        _value(elements, 0x0018),
        _value(elements, 0x0026) or None,
        _value(elements, 0x0028) or None,
        *_private_information(elements),
    )
    if not meta.transfer_syntax_uid:
        raise PeerError("the File Meta names no transfer syntax")
    return meta, offset


def is_part10(path: str | os.PathLike[str]) -> bool:
    """Return whether `path` is a readable regular file with the prefix of PS3.10."""
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            return False
        with open(path, "rb", buffering=0) as file:
            return os.pread(file.fileno(), 4, 128) == b"DICM"
    except (OSError, ValueError):
        return False


def _element(element: int, vr: bytes, value: bytes, pad: bytes) -> bytes:
    """Encode an element of group 0002 with a 16-bit length, padded to even length (PS3.5 7.1.2)."""
    if len(value) % 2:
        value += pad
    return struct.pack("<HH2sH", 0x0002, element, vr, len(value)) + value


def _uid(element: int, uid: str) -> bytes:
    return _element(element, b"UI", uid.encode("ascii", "replace")[:64], b"\0")


_cached_uid = lru_cache(maxsize=1024)(_uid)
"""Cache for SOP classes and transfer syntaxes, which are few."""


def _provenance(meta: FileMeta) -> bytes:
    return _cached_provenance(
        meta.calling_ae,
        meta.called_ae,
        meta.source_address or "",
        meta.receiving_address or "",
        meta.certificate,
        meta.priority,
        meta.association,
    )


@lru_cache(maxsize=1024)
def _cached_provenance(  # noqa: PLR0917 - the arguments are the key of the cache
    calling_ae: str,
    called_ae: str,
    source: str,
    receiving: str,
    certificate: tuple[str, ...],
    priority: int,
    association: int,
) -> bytes:
    """Encode everything from (0002,0012) on: constant for an association and a Priority."""
    parts = [
        _uid(0x0012, IMPLEMENTATION_CLASS_UID),
        _element(0x0013, b"SH", IMPLEMENTATION_VERSION.encode(), b" "),
    ]
    calling, called = (ae.encode("ascii", "replace")[:16] for ae in (calling_ae, called_ae))
    if calling:
        parts += [_element(0x0016, b"AE", calling, b" "), _element(0x0017, b"AE", calling, b" ")]
    if called:
        parts.append(_element(0x0018, b"AE", called, b" "))
    for element, address in ((0x0026, source), (0x0028, receiving)):
        if address:
            parts.append(_long_element(element, b"UR", address.encode("ascii", "replace")[:1024], b" "))
    lines = [_certificate_value(certificate)] if certificate else []
    lines += [_PRIORITY_LINES[priority]] if priority in _PRIORITY_LINES else []
    lines += [_ASSOCIATION_PREFIX + b"%016x" % association] if association else []
    if lines:
        # PS3.10 7.1: private information needs the UID of its creator.
        parts.append(_uid(0x0100, IMPLEMENTATION_CLASS_UID))
        parts.append(_long_element(0x0102, b"OB", b"\n".join(lines), b"\0"))
    return b"".join(parts)


def _certificate_value(certificate: tuple[str, ...]) -> bytes:
    """Encode one line for each text. Drop texts from the end until the others fit."""
    lines = [line.replace("\n", " ").encode() for line in certificate]
    while len(lines) > 1 and sum(map(len, lines)) + len(lines) > _CERTIFICATE_MAX:
        lines.pop()
    return b"\n".join(lines)


def _private_information(elements: _Elements) -> tuple[tuple[str, ...], int, int]:
    """Return the lines of the certificate, the Priority, and the id of the association."""
    if _value(elements, 0x0100) != IMPLEMENTATION_CLASS_UID:
        return (), MEDIUM, 0
    value, association = elements.get(0x0102, b"").rstrip(b"\0"), 0
    rest, _, last = value.rpartition(b"\n")
    if last.startswith(_ASSOCIATION_PREFIX):
        value, association = rest, _parse_association(last)
        rest, _, last = value.rpartition(b"\n")
    for priority, line in _PRIORITY_LINES.items():
        if last == line:
            return _split_lines(rest), priority, association
    return _split_lines(value), MEDIUM, association


def _parse_association(line: bytes) -> int:
    digits = line[len(_ASSOCIATION_PREFIX) :]
    try:
        number = int(digits, 16)
    except ValueError:
        return 0
    return number if 0 < number < 1 << 63 else 0


def _split_lines(value: bytes) -> tuple[str, ...]:
    return tuple(value.decode("utf-8", "replace").split("\n")) if value else ()


def _long_element(element: int, vr: bytes, value: bytes, pad: bytes) -> bytes:
    value += pad * (len(value) % 2)
    return struct.pack("<HH2sHL", 0x0002, element, vr, 0, len(value)) + value


def _parse(data: bytes) -> tuple[_Elements, int] | None:
    """Return the elements of group 0002 and the offset of the data set; None if `data` is too short.

    The group ends at its group length, if an element ends there. Otherwise the length is missing or wrong, as
    some writers have it, and the group ends before the first element of another group. The length must be
    tried first, because a deflated data set may begin with the bytes of a group number.
    """
    elements: _Elements = {}
    at, end = _HEAD_LENGTH, -1
    while at != end:
        if data[at : at + 2] != _GROUP:
            return (elements, at) if at + 2 <= len(data) else None
        found = _read_element(data, at)
        if found is None:
            return None
        element, value, at = found
        elements[element] = value
        if element == 0x0000 and len(value) == 4:
            end = at + int.from_bytes(value, "little")
    return elements, at


def _read_element(data: bytes, at: int) -> tuple[int, bytes, int] | None:
    """Read the element at an offset (PS3.5 7.1.2): number, value, next offset; None if cut."""
    header = data[at : at + 12]
    if len(header) < 8:
        return None
    element, vr, length = struct.unpack_from("<H2sH", header, 2)
    if not (vr.isalpha() and vr.isupper()):
        raise PeerError(f"(0002,{element:04X}) is not in Explicit VR Little Endian")
    start = at + 8
    if vr in LONG_VRS:
        if len(header) < 12:
            return None
        length, start = int.from_bytes(header[8:], "little"), at + 12
    if length > _META_MAX:  # also catches the undefined length
        raise PeerError(f"(0002,{element:04X}) has a length of {length} bytes")
    stop = start + length
    return None if stop > len(data) else (element, data[start:stop], stop)


def _read_up_to(fd: int, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while size < limit and (part := os.pread(fd, limit - size, size)):
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _value(elements: _Elements, element: int) -> str:
    return elements.get(element, b"").decode("ascii", "replace").strip("\0 ")
