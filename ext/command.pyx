"""Codec of DIMSE command sets, Implicit VR Little Endian (PS3.7 section 6.3 and Annex E)."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t

from ingest.ext.byte_order cimport little_16, little_32

from ingest.ext.errors import PeerError

__all__ = ["decode_command", "encode_command"]

cdef int INVALID_PARAMETER = 6      # PS3.8 Table 9-26

# PS3.7 Table E.1-1: element number within group 0000, keyword, value representation. Retired elements (Table
# E.2-1) are skipped on receipt and never sent.
cdef tuple TABLE = (
    (0x0000, "CommandGroupLength", UL),
    (0x0002, "AffectedSOPClassUID", UI),
    (0x0003, "RequestedSOPClassUID", UI),
    (0x0100, "CommandField", US),
    (0x0110, "MessageID", US),
    (0x0120, "MessageIDBeingRespondedTo", US),
    (0x0600, "MoveDestination", AE),
    (0x0700, "Priority", US),
    (0x0800, "CommandDataSetType", US),
    (0x0900, "Status", US),
    (0x0901, "OffendingElement", AT),
    (0x0902, "ErrorComment", LO),
    (0x0903, "ErrorID", US),
    (0x1000, "AffectedSOPInstanceUID", UI),
    (0x1001, "RequestedSOPInstanceUID", UI),
    (0x1002, "EventTypeID", US),
    (0x1005, "AttributeIdentifierList", AT),
    (0x1008, "ActionTypeID", US),
    (0x1020, "NumberOfRemainingSuboperations", US),
    (0x1021, "NumberOfCompletedSuboperations", US),
    (0x1022, "NumberOfFailedSuboperations", US),
    (0x1023, "NumberOfWarningSuboperations", US),
    (0x1030, "MoveOriginatorApplicationEntityTitle", AE),
    (0x1031, "MoveOriginatorMessageID", US),
)
cdef dict BY_ELEMENT = {element: (keyword, kind) for element, keyword, kind in TABLE}
cdef dict BY_KEYWORD = {keyword: (element, kind) for element, keyword, kind in TABLE}


def decode_command(bytes data not None):
    """Decode a command set into values by DICOM keyword.

    UL and US become int, AT becomes a list of int (0xGGGGEEEE). UI, AE and LO become str without padding. An
    AE ends before its first NUL. Unprintable characters of an AE or LO become "?", because such text ends up
    in logs. A number without a value is left out. Elements that are not in PS3.7 Table E.1-1 are skipped,
    in any group. Element order and CommandGroupLength are not checked. Real senders get both wrong, and
    decoding needs neither.

    An invalid value, or two different values of one element, become a PeerError. The error is not raised but
    returned as the value. Only the caller knows whether the operation needs this element (RFC 1122 1.2.2).

    Raises:
        PeerError: The command set ends within an element.
    """
    cdef const uint8_t *at = <const uint8_t *> PyBytes_AS_STRING(data)
    cdef Py_ssize_t left = PyBytes_GET_SIZE(data)
    cdef uint32_t group, element, length
    cdef tuple entry
    cdef dict decoded = {}
    while left > 0:
        if left < ELEMENT_HEADER:
            if is_padding(at, left):
                break
            # INVARIANT 5: bad bytes raise one error. Each length is checked before its value is read.
            raise PeerError("command set ends within an element", INVALID_PARAMETER)
        group = little_16(at)                # PS3.7 6.3.1, bytes 1-2: group
        element = little_16(at + 2)          # bytes 3-4: element
        length = little_32(at + 4)           # bytes 5-8: value length
        at += ELEMENT_HEADER
        left -= ELEMENT_HEADER
        if length > <size_t> left:
            raise PeerError(f"command element ({group:04X},{element:04X}) is cut", INVALID_PARAMETER)
        entry = BY_ELEMENT.get(element) if group == 0 else None
        if entry is not None:
            value = decode_value(entry[0], entry[1], at, length)
            if value is not None and decoded.get(entry[0], value) != value:
                value = PeerError(f"{entry[0]} comes twice in a command set", INVALID_PARAMETER)
            if value is not None:
                decoded[entry[0]] = value
        at += length
        left -= length
    return decoded


cdef bint is_padding(const uint8_t *data, Py_ssize_t length) noexcept:
    """Report whether these bytes, too few for an element, are all zero."""
    cdef Py_ssize_t at
    for at in range(length):
        if data[at] != 0:
            return False
    return True


cdef object decode_value(str keyword, Kind kind, const uint8_t *data, uint32_t length):
    """Decode one value.

    Return None for an empty number, and a PeerError (not raised) for an invalid value.
    """
    cdef uint32_t at = 0
    cdef list tags
    if kind == US or kind == UL:
        if length == 0:
            return None
        if length != <uint32_t> (2 if kind == US else 4):
            return PeerError(f"{keyword} of {length} bytes is no number", INVALID_PARAMETER)
        return little_16(data) if kind == US else little_32(data)
    if kind == AT:
        if length % 4:
            return PeerError(f"{keyword} of {length} bytes is no list of tags", INVALID_PARAMETER)
        tags = []
        while at < length:
            tags.append((little_16(data + at) << 16) | little_16(data + at + 2))
            at += 4
        return tags
    return decode_text(keyword, kind, data, length)


cdef object decode_text(str keyword, Kind kind, const uint8_t *data, uint32_t length):
    """Decode text and strip its padding. Return a PeerError for a UI with a byte that no UID contains.

    The check protects file names and keys, which are built from UIDs.
    """
    cdef uint32_t start = 0, at
    if kind == AE:
        for at in range(length):
            if data[at] == 0x00:            # some senders leave uninitialised memory behind a NUL
                length = at
                break
    # PS3.5 6.2: NUL pads a UI, spaces pad an AE or LO. Real senders use either for all of them.
    while length > 0 and (data[length - 1] == 0x00 or data[length - 1] == 0x20):
        length -= 1
    if kind == AE:
        while start < length and data[start] == 0x20:           # leading spaces of an AE are not significant
            start += 1
    if kind == UI:
        for at in range(length):
            if data[at] <= 0x20 or data[at] > 0x7E:
                return PeerError(f"{keyword} holds byte {data[at]:02X}H", INVALID_PARAMETER)
    text = (data + start)[:length - start].decode("latin-1")
    if kind == AE and not text.isascii():
        text = text.encode("ascii", "replace").decode("ascii")
    return text if text.isprintable() else replace_unprintable(text)


cdef str replace_unprintable(str text):
    """Replace each unprintable character by "?".

    Do not use a list comprehension here. The code that Cython 3.3 generates for one frees an object twice if
    memory runs out.
    """
    cdef str shown = "", character
    for character in text:
        shown += character if character.isprintable() else "?"
    return shown


def encode_command(elements not None):
    """Encode a command set from values by DICOM keyword.

    The elements are in ascending order, values have even lengths, and CommandGroupLength is computed. The
    values have the types that `decode_command` returns. An AT may also be one int. A value of None leaves the
    element out.

    Raises:
        ValueError: A keyword is not in PS3.7 Table E.1-1, or a value does not fit its VR.
        TypeError: A value has a type that its VR does not allow.
    """
    cdef Kind kind
    cdef list encoded = []
    cdef bytes value, body = b""
    for keyword, given in elements.items():
        if keyword not in BY_KEYWORD:
            raise ValueError(f"{keyword} is no element of a command set")
        element, kind = BY_KEYWORD[keyword]
        if element == 0 or given is None:
            continue
        value = encode_value(keyword, kind, given)
        encoded.append((element, value))
    encoded.sort()
    for element, value in encoded:
        body += b"\x00\x00" + element.to_bytes(2, "little") + len(value).to_bytes(4, "little") + value
    # PS3.7 E.1: CommandGroupLength (0000,0000) counts the bytes that follow its own value
    return b"\x00\x00\x00\x00\x04\x00\x00\x00" + len(body).to_bytes(4, "little") + body


cdef bytes encode_value(str keyword, Kind kind, object value):
    cdef bytes text
    if kind == US or kind == UL:
        return encode_number(keyword, value, 2 if kind == US else 4)
    if kind == AT:
        return encode_tags(keyword, value)
    if not isinstance(value, str):
        raise TypeError(f"{keyword} takes a str, not {type(value).__name__}")
    try:
        text = value.encode("latin-1" if kind == LO else "ascii")
    except UnicodeEncodeError as error:
        raise ValueError(f"{keyword} cannot be encoded: {error.reason}") from None
    if len(text) & 1:
        text += b"\x00" if kind == UI else b" "
    return text


cdef bytes encode_number(str keyword, object value, int length):
    if not isinstance(value, int):
        raise TypeError(f"{keyword} takes an int, not {type(value).__name__}")
    if not 0 <= value < 1 << (8 * length):
        raise ValueError(f"{keyword} takes 0 to {(1 << (8 * length)) - 1}, not {value}")
    return value.to_bytes(length, "little")


cdef bytes encode_tags(str keyword, object value):
    cdef list tags = [value] if isinstance(value, int) else list(value)
    cdef bytes encoded = b""
    for tag in tags:
        encoded += encode_number(keyword, tag >> 16, 2) + encode_number(keyword, tag & 0xFFFF, 2)
    return encoded
