"""The variable items of A-ASSOCIATE PDUs: bounds here, values from pynetdicom's item classes.

pynetdicom's decoders trust lengths, know no unknown items and raise what happens to break (AssertionError,
KeyError, struct.error …). So nothing reaches them before its lengths, its nesting and its character set are
checked, and whatever they raise still is a PeerError. Only `ingest.dicom.wire` uses this module.
"""

import logging
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from pynetdicom import pdu_items

from ingest.errors import PeerError

# What pynetdicom has to say about bytes of a peer, a PeerError says; a log has no place for its tracebacks.
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)

# Item and sub-item types, PS3.8 Tables 9-12 to 9-20 and PS3.7 D.3.3
APPLICATION_CONTEXT_ITEM = 0x10
PROPOSED_CONTEXT_ITEM = 0x20
CONTEXT_RESULT_ITEM = 0x21
ABSTRACT_SYNTAX = 0x30
TRANSFER_SYNTAX = 0x40
USER_INFORMATION_ITEM = 0x50
MAXIMUM_LENGTH = 0x51
IMPLEMENTATION_CLASS = 0x52
ASYNC_OPERATIONS = 0x53
ROLE_SELECTION = 0x54
IMPLEMENTATION_VERSION = 0x55
USER_IDENTITY = 0x58

MAX_TRANSFER_SYNTAXES = 256
"""In one presentation context; there are about 60 in PS3.6. Bounds the time that one PDU can cost."""

_PDU_ITEM_FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    TypeError,
    ValueError,
    struct.error,
)


def fault(message: str, reason: int = PeerError.INVALID_PARAMETER) -> PeerError:
    """The error for an A-ASSOCIATE PDU that cannot be used."""
    return PeerError(message, reason)


def walk(data: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """The items between two offsets, as (item type, whole item with its four-byte header).

    Raises:
        PeerError: An item ends beyond `end`.
    """
    at = start
    while at < end:
        if end - at < 4:
            raise fault(f"{end - at} bytes left where an item header of 4 should be")
        stop = at + 4 + int.from_bytes(data[at + 2 : at + 4])  # PS3.8 9.3: bytes 3-4 of any item, its length
        if stop > end:
            raise fault(f"an item of type {data[at]:02X}H is {stop - end} bytes longer than what holds it")
        yield data[at], data[at:stop]
        at = stop


def read_proposed_context(item: bytes) -> tuple[int, str, tuple[str, ...]]:
    """A proposed presentation context (PS3.8 Table 9-13): ID, abstract syntax, transfer syntaxes."""
    return _proposed_context(item) if len(item) <= 1024 else _proposed_context.__wrapped__(item)


@lru_cache(maxsize=2048)  # senders propose the same again and again; at most 2 MB of keys
def _proposed_context(item: bytes) -> tuple[int, str, tuple[str, ...]]:
    if len(item) < 8:
        raise fault("a presentation context item without its fixed fields")
    kept = [item[:4], item[4:8]]  # bytes 5-8: presentation-context-ID and three reserved
    counts = {ABSTRACT_SYNTAX: 0, TRANSFER_SYNTAX: 0}
    for kind, raw in walk(item, 8, len(item)):
        if kind in counts:
            counts[kind] += 1
            kept.append(_checked_uid(raw))
    context_id = _context_id(item)
    if counts[ABSTRACT_SYNTAX] != 1 or not 0 < counts[TRANSFER_SYNTAX] <= MAX_TRANSFER_SYNTAXES:
        raise fault(
            f"presentation context {context_id} has {counts[ABSTRACT_SYNTAX]} abstract syntaxes "
            f"and {counts[TRANSFER_SYNTAX]} transfer syntaxes"
        )
    parsed = _decode(pdu_items.PresentationContextItemRQ(), b"".join(kept))
    return context_id, str(parsed.abstract_syntax), tuple(str(uid) for uid in parsed.transfer_syntax)


def read_context_result(item: bytes) -> tuple[int, int, str]:
    """An answered presentation context (PS3.8 Table 9-18): ID, result, transfer syntax."""
    if len(item) < 8:
        raise fault("a presentation context item without its fixed fields")
    context_id, result = _context_id(item), item[6]  # byte 7: result/reason
    if result > 4:
        raise fault(f"presentation context {context_id} has the result {result}, which PS3.8 does not know")
    if result != 0:
        return context_id, result, ""  # its transfer syntax "shall not be tested"
    syntaxes = [raw for kind, raw in walk(item, 8, len(item)) if kind == TRANSFER_SYNTAX]
    if len(syntaxes) != 1:
        raise fault(f"presentation context {context_id} is accepted with {len(syntaxes)} transfer syntaxes")
    parsed = _decode(pdu_items.PresentationContextItemAC(), item[:8] + _checked_uid(syntaxes[0]))
    return context_id, result, str(parsed.transfer_syntax)


def read_application_context(item: bytes) -> str:
    """PS3.8 Table 9-12. What no UID could be is given as it is, so that a rejection can answer it."""
    return text(item[4:])


def read_maximum_length(item: bytes) -> int:
    """PS3.8 Table D.1-1; 0 is unlimited, and what cannot hold one byte of a fragment is refused."""
    _exactly(item, 8)
    length = int(_decode(pdu_items.MaximumLengthSubItem(), item).maximum_length_received)
    if 0 < length < 8:  # PDV length, id, header, and fragments of even length: PS3.8 Tables 9-22 and 9-23
        raise fault(f"a maximum PDU length of {length} has no room for a fragment")
    return length


def read_async_operations(item: bytes) -> tuple[int, int]:
    """PS3.7 D.3.3.3: maximum numbers of operations invoked and performed; 0 is unlimited."""
    _exactly(item, 8)
    parsed = _decode(pdu_items.AsynchronousOperationsWindowSubItem(), item)
    return parsed.maximum_number_operations_invoked, parsed.maximum_number_operations_performed


def read_role(item: bytes) -> tuple[str, bool, bool]:
    """PS3.7 D.3.3.4: SOP class UID, SCU role, SCP role."""
    uid_length = int.from_bytes(item[4:6])  # bytes 5-6: UID-length
    if len(item) != 4 + 2 + uid_length + 2 or uid_length == 0 or not item[6:-2].isascii():
        raise fault("a role selection sub-item whose lengths do not agree")
    parsed = _decode(pdu_items.SCP_SCU_RoleSelectionSubItem(), item)
    return str(parsed.sop_class_uid).rstrip("\0 "), bool(parsed.scu_role), bool(parsed.scp_role)


def text(raw: bytes) -> str:
    """A field that decides nothing: padding is dropped, what is not ASCII becomes "?"."""
    return raw.decode("ascii", "replace").replace("\ufffd", "?").strip("\0 ")


def _context_id(item: bytes) -> int:
    context_id = item[4]  # PS3.8 Tables 9-13 and 9-18, byte 5: odd, 1 to 255
    if context_id % 2 == 0:
        raise fault(f"presentation context ID {context_id} is even")
    return context_id


def _checked_uid(item: bytes) -> bytes:
    """The sub-item without padding of its UID: PS3.8 Annex F allows none, but peers send NUL and space."""
    uid = item[4:].rstrip(b"\0 ")
    if not 0 < len(uid) <= 64 or not uid.isascii():
        raise fault(f"a UID of {len(item) - 4} bytes that cannot be one")
    return item[:2] + len(uid).to_bytes(2) + uid


def _exactly(item: bytes, length: int) -> None:
    if len(item) != length:
        raise fault(f"an item of type {item[0]:02X}H has {len(item) - 4} bytes, not {length - 4}")


def _decode(parsed: Any, item: bytes) -> Any:
    try:
        parsed.decode(item)
    except _PDU_ITEM_FAULTS as error:
        raise fault(f"an item of type {item[0]:02X}H cannot be read: {error}") from None
    return parsed
