"""C-STORE messages that are encoded once and stamped for every instance, and what comes back for them.

Nothing is encoded again between two instances: the digits of the SOP instance UID and the message ID are
written in place, and the long rest of a large data set is one block of PDUs that is sent again and again. So
a sender costs little more than TLS, and a data set of a gigabyte takes a megabyte of its memory.
"""

import random
import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

from ingest.dicom.dimse import encode_store_request
from ingest.ext.encode import encode_p_data

CT_IMAGE: Final = "1.2.840.10008.5.1.4.1.1.2"
DIGITS: Final = 12
BLOCK: Final = 1 << 20
"""Bytes up to which a message is one piece; also about the size of the block that stands for the rest."""

COMMAND, LAST = 1, 2
"""PS3.8 E.2: bits of a message control header."""
P_DATA_TF: Final = 4
_FIRST_NUMBER: Final = 10 ** (DIGITS - 1)
_LENGTH: Final = struct.Struct(">L")
_HEAD: Final = 24
_RESPONDED_TO: Final = b"\x00\x00\x20\x01\x02\x00\x00\x00"  # (0000,0120) US
_STATUS: Final = b"\x00\x00\x00\x09\x02\x00\x00\x00"  # (0000,0900) US
_MESSAGE_ID: Final = b"\x00\x00\x10\x01\x02\x00\x00\x00"  # (0000,0110) US, PS3.7 E.1


def instance_uid(root: str, number: int) -> str:
    """Return the SOP instance UID of instance `number` under `root`. All UIDs of a root have one length."""
    return f"{root}.{_FIRST_NUMBER + number}"


class Message:
    """One C-STORE-RQ with its data set, for presentation context 1.

    Attributes:
        data_bytes: Length of the data set.
        pieces: What to send, in order; `stamp` changes the first in place.
    """

    def __init__(self, size: int, pdu: int, root: str) -> None:
        """Encode it.

        Args:
            size: Bytes of the data set; made even, and at least what its header takes.
            pdu: Largest PDU length (PS3.8 D.1) that may be sent, at least 1024.
            root: UID under which the instances are numbered; also the study.
        """
        uid = instance_uid(root, 0)
        elements = _elements(uid, root)
        self.data_bytes = max(size & ~1, len(elements) + 12)
        pixels = self.data_bytes - len(elements) - 12
        elements += struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OW", 0, pixels)
        step = (pdu - 6) & ~1
        filler = random.Random(1).randbytes(step)
        first = (elements + filler)[: min(step, self.data_bytes)]
        full, rest = divmod(self.data_bytes - len(first), step)
        if full and not rest:
            full, rest = full - 1, step  # the last fragment is marked
        command = encode_p_data(1, encode_store_request(1, CT_IMAGE, uid), pdu)
        self._head = bytearray(command + _fragment(first, last=not rest))
        middle, tail = _fragment(filler, last=False), _fragment(filler[:rest], last=True) if rest else b""
        together = max(1, BLOCK // len(middle))
        repeats, more = divmod(full, together) if full > together else (0, full)
        body, tail = middle * together if repeats else b"", middle * more + tail
        if not repeats:
            self._head += tail
            tail = b""
        self._uids = list(_places(self._head, instance_uid("", 0).encode(), len(command) + len(first) + 12))
        self.pieces: tuple[bytes | bytearray, ...] = (
            self._head,
            *[body] * repeats,
            *([tail] if tail else []),
        )
        self._message_id = self._head.index(_MESSAGE_ID) + len(_MESSAGE_ID)

    def stamp(self, number: int, message_id: int) -> None:
        """Make it instance `number` (from 0), sent as `message_id` (1 to 65535)."""
        digits = b".%d" % (_FIRST_NUMBER + number)
        head = self._head
        for place in self._uids:
            head[place : place + DIGITS + 1] = digits
        head[self._message_id] = message_id & 0xFF
        head[self._message_id + 1] = message_id >> 8


class Answer(NamedTuple):
    """A C-STORE-RSP: (0000,0120) Message ID Being Responded To and (0000,0900) Status."""

    message_id: int
    status: int


class Answers:
    """Reads PDUs from what a receiver sends; a reader of its own, not the one that is measured."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._command = bytearray()
        self._shape: _Shape | None = None

    def feed(self, data: memoryview | bytes) -> None:
        """Take what was received."""
        self._buffer += data

    def pdu(self) -> tuple[int, bytes] | None:
        """Return the next whole PDU as type and bytes with its header; None while there is none."""
        buffer = self._buffer
        if len(buffer) < 6:
            return None
        end = 6 + _LENGTH.unpack_from(buffer, 2)[0]
        if len(buffer) < end:
            return None
        found = bytes(buffer[:end])
        del buffer[:end]
        return found[0], found

    def answers(self, pdu: bytes) -> list[Answer]:
        """Return the responses that a P-DATA-TF completes.

        Raises:
            ValueError: It holds part of a data set, or a response without status or message ID.
        """
        shape = self._shape
        if shape is not None and len(pdu) == shape.fields.size and not self._command:
            head, first, message_id, second, status = shape.fields.unpack(pdu)
            if head == shape.head and first == _RESPONDED_TO and second == _STATUS:
                return [Answer(message_id, status)]
        found, at = [], 6
        while at < len(pdu):
            length = _LENGTH.unpack_from(pdu, at)[0]
            control = pdu[at + 5]
            if not control & COMMAND:
                raise ValueError("a data set comes with the answer")
            self._command += pdu[at + 6 : at + 4 + length]
            if control & LAST:
                found.append(_answer(self._command))
                self._command.clear()
            at += 4 + length
        self._shape = _Shape.of(pdu)
        return found


@dataclass(frozen=True, slots=True)
class _Shape:
    """Where the fields of a receiver's answers lie, which hardly ever changes: read so, they cost a fifth.

    Attributes:
        head: PDU and PDV header, and the element of the group length.
    """

    fields: struct.Struct
    head: bytes

    @classmethod
    def of(cls, pdu: bytes) -> "_Shape | None":
        """Return the shape of a P-DATA-TF with one whole response; None for other PDUs."""
        whole = _LENGTH.unpack_from(pdu, 6)[0] + 10 == len(pdu) and pdu[11] == COMMAND | LAST
        first, second = pdu.find(_RESPONDED_TO, _HEAD), pdu.find(_STATUS, _HEAD)
        if not whole or not 0 < first < second:
            return None
        between, rest = second - first - 10, len(pdu) - second - 10
        fields = struct.Struct(f"<{_HEAD}s{first - _HEAD}x8sH{between}x8sH{rest}x")
        return cls(fields, pdu[:_HEAD])


def _answer(command: bytearray) -> Answer:
    at, message_id, status = 0, None, None
    while at + 8 <= len(command):
        _, element, length = struct.unpack_from("<HHL", command, at)
        if element == 0x0120:
            message_id = command[at + 8] | command[at + 9] << 8
        elif element == 0x0900:
            status = command[at + 8] | command[at + 9] << 8
        at += 8 + length
    if message_id is None or status is None:
        raise ValueError(f"no C-STORE-RSP: {bytes(command)!r}")
    return Answer(message_id, status)


def _places(data: bytearray, needle: bytes, end: int) -> list[int]:
    found, at = [], data.find(needle, 0, end)
    while at >= 0:
        found.append(at)
        at = data.find(needle, at + 1, end)
    return found


def _fragment(piece: bytes, *, last: bool) -> bytes:
    """Encode a P-DATA-TF with one PDV of a data set (PS3.8 9.3.5)."""
    length = len(piece)
    return struct.pack(">BBLLBB", P_DATA_TF, 0, length + 6, length + 2, 1, LAST if last else 0) + piece


def _element(group: int, element: int, vr: str, value: str | int) -> bytes:
    """One element of a short VR in Explicit VR Little Endian (PS3.5 7.1.2)."""
    if isinstance(value, int):
        data = struct.pack("<H", value)
    else:
        data = value.encode()
        data += (b"\0" if vr == "UI" else b" ") * (len(data) % 2)
    return struct.pack("<HH2sH", group, element, vr.encode(), len(data)) + data


def _elements(uid: str, root: str) -> bytes:
    """Return the elements of a CT before its pixel data, enough for receivers that keep an index."""
    return b"".join(
        _element(*fields)
        for fields in (
            (0x0008, 0x0016, "UI", CT_IMAGE),
            (0x0008, 0x0018, "UI", uid),
            (0x0008, 0x0020, "DA", "20240102"),
            (0x0008, 0x0030, "TM", "030405"),
            (0x0008, 0x0050, "SH", ""),
            (0x0008, 0x0060, "CS", "CT"),
            (0x0010, 0x0010, "PN", "Load^Generated"),
            (0x0010, 0x0020, "LO", "LOAD"),
            (0x0010, 0x0030, "DA", ""),
            (0x0010, 0x0040, "CS", "O"),
            (0x0020, 0x000D, "UI", root),
            (0x0020, 0x000E, "UI", f"{root}.1"),
            (0x0020, 0x0010, "SH", "1"),
            (0x0020, 0x0011, "IS", "1"),
            (0x0020, 0x0013, "IS", "1"),
            (0x0028, 0x0002, "US", 1),
            (0x0028, 0x0004, "CS", "MONOCHROME2"),
            (0x0028, 0x0010, "US", 512),
            (0x0028, 0x0011, "US", 512),
            (0x0028, 0x0100, "US", 16),
            (0x0028, 0x0101, "US", 12),
            (0x0028, 0x0102, "US", 11),
            (0x0028, 0x0103, "US", 0),
        )
    )
