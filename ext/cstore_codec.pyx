"""Codec of usual C-STORE messages: request command set, File Meta of the instance, and response."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy

from ingest.ext cimport header
from ingest.ext.encode cimport HEADERS_LENGTH, write_headers
from ingest.ext.byte_order cimport little_16, little_32, put_little

__all__ = ["StoreContext"]

cdef enum:
    UID_MAX = 64                # PS3.5 9.1
    C_STORE_RQ = 0x0001         # PS3.7 E.1
    C_STORE_RSP = 0x8001
    NO_DATA_SET = 0x0101        # (0000,0800), PS3.7 9.3
    SUCCESS = 0x0000            # (0000,0900), PS3.7 C.1
    MEDIUM = 0x0000             # (0000,0700), PS3.7 Table 9.3-1
    HIGH = 0x0001
    LOW = 0x0002

# Elements of PS3.7 Table 9.3-1 that were read from a command set.
cdef enum Seen:
    SOP_CLASS = 1
    FIELD = 2
    MESSAGE_ID = 4
    DATA_SET_TYPE = 8
    SOP_INSTANCE = 16
    PRIORITY = 32
    NEEDED = SOP_CLASS | FIELD | MESSAGE_ID | DATA_SET_TYPE | SOP_INSTANCE


cdef inline uint8_t *put_bytes(uint8_t *at, const void *data, size_t length) noexcept:
    memcpy(at, data, length)
    return at + length


cdef uint8_t *put_uid(uint8_t *at, bytes uid) noexcept:
    """Write a UID value, padded to even length (PS3.5 9.1)."""
    cdef size_t length = <size_t> PyBytes_GET_SIZE(uid)
    at = put_bytes(at, PyBytes_AS_STRING(uid), length)
    if length & 1:
        at[0] = 0
        at += 1
    return at


cdef uint8_t *put_element(uint8_t *at, uint32_t element, uint32_t length) noexcept:
    """Write the header of a command element (PS3.7 6.3.1)."""
    return put_little(put_little(put_little(at, 0, 2), element, 2), length, 4)


cdef size_t unpadded(const uint8_t *uid, size_t length) noexcept:
    while length > 0 and (uid[length - 1] == 0x00 or uid[length - 1] == 0x20):
        length -= 1
    return length


cdef bint is_uid(const uint8_t *text, size_t length) noexcept:
    """Tell whether a UID is valid, as `ingest.dicom.uids.is_valid_uid` does.

    It has 1 to 64 characters: components of digits, separated by single dots (PS3.5 9.1).
    """
    cdef size_t at
    cdef bint in_component = False
    if length == 0 or length > UID_MAX:
        return False
    for at in range(length):
        if c"0" <= text[at] <= c"9":
            in_component = True
        elif text[at] == c"." and in_component:
            in_component = False
        else:
            return False
    return in_component


cdef bint read_request(const uint8_t *at, size_t left, Request *request) noexcept:
    """Read a C-STORE-RQ. Return False unless it has each required element exactly once (PS3.7 Table 9.3-1).

    Other elements are skipped, as in `ingest.dicom.dimse`, because the operation does not depend on them.
    """
    cdef uint32_t element, length
    cdef uint16_t priority
    cdef int kind
    while left >= 8:
        if at[0] != 0 or at[1] != 0:                    # PS3.7 6.3.1, bytes 1-2: group
            return False
        element = little_16(at + 2)
        length = little_32(at + 4)
        at += 8
        left -= 8
        if length > left:
            return False
        if element == 0x0002:
            kind = SOP_CLASS
            request.sop_class = at
            request.sop_class_length = unpadded(at, length)
        elif element == 0x0100:
            kind = FIELD if length == 2 and little_16(at) == C_STORE_RQ else 0
        elif element == 0x0110:
            kind = MESSAGE_ID if length == 2 else 0
            if kind:
                request.message_id = <uint16_t> little_16(at)
        elif element == 0x0800:
            kind = DATA_SET_TYPE if length == 2 and little_16(at) != NO_DATA_SET else 0
        elif element == 0x1000:
            kind = SOP_INSTANCE
            request.sop_instance = at
            request.sop_instance_length = unpadded(at, length)
        else:
            if element == 0x0700:
                # As in `ingest.dicom.dimse`: a value that is odd or contradicts another one counts as MEDIUM.
                priority = <uint16_t> little_16(at) if length == 2 else MEDIUM
                if request.seen & PRIORITY and priority != request.priority:
                    priority = MEDIUM
                request.priority = priority
                request.seen |= PRIORITY
            at += length
            left -= length
            continue
        if not kind or request.seen & kind:
            return False
        request.seen |= kind
        at += length
        left -= length
    return left == 0 and request.seen & NEEDED == NEEDED


cdef size_t write_response(uint8_t *at, StoreContext context, uint16_t message_id, bytes uid) noexcept:
    """Write a C-STORE-RSP with Success (PS3.7 Table 9.3-2) as one P-DATA-TF of at most RESPONSE_MAX bytes."""
    cdef uint32_t class_length = <uint32_t> (PyBytes_GET_SIZE(context.sop_class) + 1) & ~<uint32_t> 1
    cdef uint32_t uid_length = <uint32_t> (PyBytes_GET_SIZE(uid) + 1) & ~<uint32_t> 1
    cdef uint32_t group = 8 + class_length + 4 * 10 + 8 + uid_length
    cdef uint8_t *start = at
    write_headers(at, context.context_id, 12 + group, True, True)
    at = put_little(put_element(at + HEADERS_LENGTH, 0x0000, 4), group, 4)
    at = put_uid(put_element(at, 0x0002, class_length), context.sop_class)
    at = put_little(put_element(at, 0x0100, 2), C_STORE_RSP, 2)
    at = put_little(put_element(at, 0x0120, 2), message_id, 2)
    at = put_little(put_element(at, 0x0800, 2), NO_DATA_SET, 2)
    at = put_little(put_element(at, 0x0900, 2), SUCCESS, 2)
    at = put_uid(put_element(at, 0x1000, uid_length), uid)
    return <size_t> (at - start)


@cython.final
cdef class StoreContext:
    """A presentation context that accepts C-STORE.

    Args:
        context_id: Presentation context ID, odd, 1 to 255.
        sop_class_uid: Abstract syntax of the context.
        transfer_syntax_uid: The negotiated transfer syntax.
        lead: Bytes of a Part 10 file up to the value of (0002,0000).
        before: Elements of group 0002 before (0002,0003).
        after: Elements of group 0002 after (0002,0003).
        after_high: The same for Priority HIGH. None: HIGH is as MEDIUM.
        after_low: The same for Priority LOW.
    """

    def __cinit__(
        self, int context_id, str sop_class_uid not None, str transfer_syntax_uid not None,
        bytes lead not None, bytes before not None, bytes after not None, bytes after_high=None,
        bytes after_low=None
    ):
        if context_id < 1 or context_id > 255 or not context_id & 1:
            raise ValueError(f"{context_id} is not a presentation context ID (odd, 1 to 255)")
        self.context_id = context_id
        self.sop_class = sop_class_uid.encode("ascii")
        if PyBytes_GET_SIZE(self.sop_class) > UID_MAX:
            raise ValueError("a SOP class UID has at most 64 characters")
        self.coding = header.get_coding(transfer_syntax_uid)
        self.lead, self.before, self.after = lead, before, after
        self.after_high = after if after_high is None else after_high
        self.after_low = after if after_low is None else after_low

    cdef bint accepts_request(self, const Request *request) noexcept:
        """Tell whether a request has the SOP class of this context and a valid SOP instance UID."""
        return (
            request.sop_class_length == <size_t> PyBytes_GET_SIZE(self.sop_class)
            and memcmp(request.sop_class, PyBytes_AS_STRING(self.sop_class), request.sop_class_length) == 0
            and is_uid(request.sop_instance, request.sop_instance_length)
        )

    cdef bytes file_meta(self, bytes uid, uint16_t priority):
        """Encode the File Meta (PS3.10 7.1), as `ingest.dicom.part10.encode_file_meta` does."""
        cdef size_t value = <size_t> (PyBytes_GET_SIZE(uid) + 1) & ~<size_t> 1
        cdef size_t before = <size_t> PyBytes_GET_SIZE(self.before)
        cdef bytes last = (
            self.after_high if priority == HIGH else self.after_low if priority == LOW else self.after
        )
        cdef size_t after = <size_t> PyBytes_GET_SIZE(last)
        cdef size_t lead = <size_t> PyBytes_GET_SIZE(self.lead)
        cdef size_t group = before + 8 + value + after
        cdef bytes made = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> (lead + 4 + group))
        cdef uint8_t *at = <uint8_t *> PyBytes_AS_STRING(made)
        at = put_bytes(at, PyBytes_AS_STRING(self.lead), lead)
        at = put_little(at, group, 4)
        at = put_bytes(at, PyBytes_AS_STRING(self.before), before)
        at = put_bytes(at, b"\x02\x00\x03\x00UI", 6)
        at = put_little(at, value, 2)
        at = put_uid(at, uid)
        put_bytes(at, PyBytes_AS_STRING(last), after)
        return made
