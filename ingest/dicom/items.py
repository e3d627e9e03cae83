"""Read the variable items of A-ASSOCIATE PDUs: first check the bounds, then read the values.

INVARIANT 5: bad bytes raise one error. Only PeerError leaves this module. If the lengths agree, one odd item
affects only the items that depend on it (RFC 1122 1.2.2). An odd proposed context is refused, and an odd
transfer syntax or sub-item of the user information is skipped.
"""

from collections.abc import Iterator
from contextlib import suppress

from ingest.errors import PeerError

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

NO_REASON = 2
"""PS3.8 Table 9-18, byte 7: no reason (provider-rejection)."""

MAX_TRANSFER_SYNTAXES = 256
"""Limit for one presentation context. It bounds the time that one PDU can cost; PS3.6 has about 60."""

MAX_ITEMS = 1024
"""Limit for one PDU or item. A full proposal of 128 contexts stays far below it."""


def make_item_error(message: str, reason: int = PeerError.INVALID_PARAMETER) -> PeerError:
    """Make the error for an A-ASSOCIATE PDU that cannot be used."""
    return PeerError(message, reason)


def iterate_items(data: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield the items between two offsets as (item type, whole item with its four-byte header).

    Raises:
        PeerError: An item ends after `end`, or there are more than MAX_ITEMS.
    """
    at, count = start, 0
    while at < end:
        count += 1
        if count > MAX_ITEMS:
            raise make_item_error(f"more than {MAX_ITEMS} items in one")
        if end - at < 4:
            raise make_item_error(f"{end - at} bytes left where an item header of 4 should be")
        stop = at + 4 + int.from_bytes(data[at + 2 : at + 4])  # PS3.8 9.3: bytes 3-4 of any item, its length
        if stop > end:
            raise make_item_error(
                f"an item of type {data[at]:02X}H is {stop - end} bytes longer than what holds it"
            )
        yield data[at], data[at:stop]
        at = stop


def iterate_items_to_damage(data: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    """Yield items as `iterate_items`, but stop at an item that is longer than the rest of `data`."""
    with suppress(PeerError):
        yield from iterate_items(data, start, len(data))


def read_proposed_context(item: bytes) -> tuple[int, str, tuple[str, ...]] | None:
    """Read a proposed presentation context (PS3.8 Table 9-13): ID, abstract syntax, transfer syntaxes.

    Returns:
        None without a usable ID (odd, 1 to 255), because no answer could name the context. The abstract
        syntax
        is empty unless exactly one is readable, and the context is then to be refused. Unreadable transfer
        syntaxes are left out.
    """
    if len(item) < 8 or item[4] % 2 == 0:  # byte 5: presentation-context-ID
        return None
    abstract: list[str] = []
    transfer: list[str] = []
    with suppress(PeerError):
        for kind, raw in iterate_items(item, 8, len(item)):  # bytes 6-8 are reserved
            uid = _uid_or_nothing(raw[4:])
            if kind == TRANSFER_SYNTAX and uid and len(transfer) < MAX_TRANSFER_SYNTAXES:
                transfer.append(uid)
            elif kind == ABSTRACT_SYNTAX:
                abstract.append(uid)
        return item[4], abstract[0] if len(set(abstract)) == 1 else "", tuple(transfer)
    return item[4], "", ()  # the lengths do not agree


def read_context_result(item: bytes) -> tuple[int, int, str] | None:
    """Read an answered presentation context (PS3.8 Table 9-18): ID, result, transfer syntax.

    Returns:
        None without a usable ID. An accepted context without exactly one transfer syntax is returned as
        rejected (result 2, no reason), because its transfer syntax is unknown.
    """
    if len(item) < 8 or item[4] % 2 == 0:  # byte 5: presentation-context-ID, odd
        return None
    context_id, result = item[4], item[6]  # byte 7: result/reason
    if result != 0:
        return context_id, result, ""  # its transfer syntax "shall not be tested"
    syntaxes = {
        raw[4:].rstrip(b"\0 ") for kind, raw in iterate_items_to_damage(item, 8) if kind == TRANSFER_SYNTAX
    }
    if len(syntaxes) != 1:
        return context_id, NO_REASON, ""
    return context_id, result, decode_text(syntaxes.pop())


def read_application_context(item: bytes) -> str:
    """Read PS3.8 Table 9-12. Return an invalid UID unchanged: negotiation then rejects the association."""
    return decode_text(item[4:])


def read_maximum_length(item: bytes) -> int:
    """Read PS3.8 Table D.1-1. 0 is unlimited; a length without room for a fragment is an error."""
    _exactly(item, 8)
    length = int.from_bytes(item[4:8])  # bytes 5-8
    if 0 < length < 8:  # PDV length, ID, header, and fragments of even length: PS3.8 Tables 9-22 and 9-23
        raise make_item_error(f"a maximum PDU length of {length} has no room for a fragment")
    return length


def read_async_operations(item: bytes) -> tuple[int, int]:
    """Read PS3.7 D.3.3.3: maximum numbers of operations invoked and performed; 0 is unlimited."""
    _exactly(item, 8)
    return int.from_bytes(item[4:6]), int.from_bytes(item[6:8])  # bytes 5-6 and 7-8


def read_role(item: bytes) -> tuple[str, bool, bool]:
    """Read PS3.7 D.3.3.4: SOP class UID, SCU role, SCP role."""
    uid_length = int.from_bytes(item[4:6])  # bytes 5-6: UID-length
    if len(item) != 4 + 2 + uid_length + 2:
        raise make_item_error("a role selection sub-item whose lengths do not agree")
    scu, scp = item[-2:]  # the two bytes after the UID
    return _uid(item[6:-2]), scu != 0, scp != 0


def decode_ae_title(field: bytes) -> str:
    """Decode an AE title of an A-ASSOCIATE-RQ, without the spaces around it (PS3.8 Table 9-11).

    A NUL ends the title, because padding or old memory of the sender follows it. Characters outside VR AE
    (PS3.5 6.2: printable ASCII without backslash) become "?". If AE titles decide about admission, such a
    requestor is unknown and gets an A-ASSOCIATE-RJ. Otherwise it may associate.
    """
    title = field.partition(b"\0")[0].strip(b" ")
    return "".join(chr(byte) if 0x20 <= byte <= 0x7E and byte != 0x5C else "?" for byte in title)


def decode_text(raw: bytes) -> str:
    """Decode a field that affects no decision: remove padding, and replace other bytes than ASCII by "?"."""
    return raw.decode("ascii", "replace").replace("\ufffd", "?").strip("\0 ")


def _uid(raw: bytes) -> str:
    """Decode a UID, or raise PeerError."""
    uid = _uid_or_nothing(raw)
    if not uid:
        raise make_item_error(f"a UID of {len(raw)} bytes that cannot be one")
    return uid


def _uid_or_nothing(raw: bytes) -> str:
    """Decode a UID without padding. PS3.8 Annex F allows no padding, but peers send NUL and space.

    Text of up to 64 ASCII characters is returned unchanged, even if it is no valid UID: it then matches no
    known UID. Other bytes return an empty string.
    """
    uid = raw.rstrip(b"\0 ")
    return uid.decode("ascii") if len(uid) <= 64 and uid.isascii() else ""


def _exactly(item: bytes, length: int) -> None:
    if len(item) != length:
        raise make_item_error(f"an item of type {item[0]:02X}H has {len(item) - 4} bytes, not {length - 4}")
