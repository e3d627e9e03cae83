"""Scanner for top-level attributes in the first part of a data set (PS3.5 section 7 and Annex A).

The scan reads only the structure. It skips values that are not requested, and reads sequences of undefined
length up to their delimiter. It is as tolerant as widespread readers. It accepts elements out of order, group
0002 in a data set, Implicit VR items in an explicit sequence, and stray delimiters at the top level.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memset

import zlib

from ingest.ext.errors import PeerError

__all__ = ["HeaderReader", "scan"]

cdef int INVALID_PARAMETER = 6                  # PS3.8 Table 9-26
cdef Py_ssize_t DEFLATED_STEP = 8192            # input of one step; small, because zlib copies unused input
cdef Py_ssize_t INFLATED_STEP = 65536           # output of one step
cdef Py_ssize_t MAX_VALUE = 1048576             # longest value of a requested attribute, inflated
cdef uint64_t MAX_INFLATED = 67108864           # limit against a small stream that inflates to gigabytes

cdef uint32_t SOP_CLASS_UID = 0x00080016
cdef uint32_t SOP_INSTANCE_UID = 0x00080018
cdef uint32_t ITEM = 0xFFFEE000                 # PS3.5 Table 7.5-1 to 7.5-3
cdef uint32_t ITEM_DELIMITATION = 0xFFFEE00D
cdef uint32_t SEQUENCE_DELIMITATION = 0xFFFEE0DD

# PS3.5 A.1, and two more with the same structure: Papyrus 3, and the GE syntax with big endian pixels.
cdef frozenset IMPLICIT = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.20", "1.2.840.113619.5.2"})
cdef str BIG_ENDIAN = "1.2.840.10008.1.2.2"     # PS3.5 A.3, retired
# PS3.5 A.5, JPIP Referenced Deflate (A.7) and JPIP HTJ2K Referenced Deflate
cdef frozenset DEFLATED = frozenset(
    {"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"}
)


cdef inline uint32_t read_uint16(const uint8_t *data, bint big) noexcept nogil:
    if big:
        return (<uint32_t> data[0] << 8) | data[1]
    return data[0] | (<uint32_t> data[1] << 8)


cdef inline uint32_t read_uint32(const uint8_t *data, bint big) noexcept nogil:
    if big:
        return (read_uint16(data, True) << 16) | read_uint16(data + 2, True)
    return read_uint16(data, False) | (read_uint16(data + 2, False) << 16)


cdef inline uint32_t read_tag(const uint8_t *data, bint big) noexcept nogil:
    return (read_uint16(data, big) << 16) | read_uint16(data + 2, big)


cdef inline bint has_vr_letters(const uint8_t *vr) noexcept nogil:
    return c"A" <= vr[0] <= c"Z" and c"A" <= vr[1] <= c"Z"


cdef inline bint has_short_length(const uint8_t *vr) noexcept nogil:
    """Report whether a VR has a 16-bit length (PS3.5 Table 7.1-2).

    All other VRs have a 32-bit length. PS3.5 6.2 promises that for future VRs as well.
    """
    cdef int name = (vr[0] << 8) | vr[1]
    return (
        name == 0x4145 or name == 0x4153 or name == 0x4154 or name == 0x4353        # AE AS AT CS
        or name == 0x4441 or name == 0x4453 or name == 0x4454                       # DA DS DT
        or name == 0x4644 or name == 0x464C or name == 0x4953                       # FD FL IS
        or name == 0x4C4F or name == 0x4C54 or name == 0x504E                       # LO LT PN
        or name == 0x5348 or name == 0x534C or name == 0x5353 or name == 0x5354     # SH SL SS ST
        or name == 0x544D or name == 0x5549 or name == 0x554C or name == 0x5553     # TM UI UL US
    )


cdef inline bint is_blank_vr(const uint8_t *vr) noexcept nogil:
    """Report whether the VR is a filler that writers use for an unknown VR.

    Such bytes are unlikely as the length of an Implicit VR element.
    """
    return vr[0] == vr[1] and (vr[0] == 0x00 or vr[0] == 0x20 or vr[0] == c"?" or vr[0] == c"-")


cdef inline bint has_long_length(const uint8_t *vr) noexcept nogil:
    """Report whether a VR of the current standard has a 32-bit length (PS3.5 Table 7.1-1)."""
    cdef int name = (vr[0] << 8) | vr[1]
    return (
        name == 0x4F42 or name == 0x4F44 or name == 0x4F46 or name == 0x4F4C        # OB OD OF OL
        or name == 0x4F56 or name == 0x4F57 or name == 0x5351 or name == 0x5356     # OV OW SQ SV
        or name == 0x5543 or name == 0x554E or name == 0x5552 or name == 0x5554     # UC UN UR UT
        or name == 0x5556                                                           # UV
    )


cdef Step read_header(
    Coding coding, const uint8_t *data, size_t left, bint nested, bint tolerant, Element *e
) except? COMPLETE:
    """Read tag, VR and length of the element at `data`, of which `left` bytes are available."""
    cdef bint big = coding == EXPLICIT_BIG
    if left < 8:
        return NEEDS_DATA
    e.tag = read_tag(data, big)
    e.header = 8
    e.inner = coding
    e.unknown_vr = False
    # PS3.5 7.5: items and delimiters have no VR in any encoding.
    if coding == IMPLICIT_LITTLE or e.tag >> 16 == 0xFFFE:
        e.length = read_uint32(data + 4, big)                 # PS3.5 Table 7.1-3, bytes 5-8
        return CONTINUES
    e.unknown_vr = not has_vr_letters(data + 4)                 # PS3.5 Table 7.1-1, bytes 5-6: VR
    if e.unknown_vr:
        if nested and not big and not is_blank_vr(data + 4):
            # Some writers put Implicit VR elements into the items of an explicit data set.
            e.length = read_uint32(data + 4, False)
            e.inner = IMPLICIT_LITTLE
            return CONTINUES
        if tolerant:
            # Do as DCMTK: an unknown VR has a 32-bit length if it consists of letters, otherwise 16 bits.
            e.length = read_uint16(data + 6, big)
            return CONTINUES
        # INVARIANT 5: bad bytes raise one error.
        raise PeerError(
            f"({e.tag >> 16:04X},{e.tag & 0xFFFF:04X}) has no VR; is the data set of its transfer syntax?",
            INVALID_PARAMETER,
        )
    if has_short_length(data + 4):
        e.length = read_uint16(data + 6, big)                 # Table 7.1-2, bytes 7-8
        return CONTINUES
    if tolerant and not has_long_length(data + 4):
        e.unknown_vr = True
        if data[6] or data[7]:
            # Bytes 7-8 are reserved and zero before a 32-bit length (Table 7.1-1). These are not zero, so the
            # writer put a 16-bit length there.
            e.length = read_uint16(data + 6, big)
            return CONTINUES
    if left < 12:
        return NEEDS_DATA
    e.length = read_uint32(data + 8, big)                     # Table 7.1-1, bytes 9-12; 7-8 are reserved
    e.header = 12
    if data[4] == c"U" and data[5] == c"N":
        e.inner = IMPLICIT_LITTLE       # PS3.5 6.2.2: UN of undefined length holds Implicit VR
    return CONTINUES


cdef int enter_sequence(Scan *state, Element *element) except -1:
    """Open a sequence of undefined length."""
    if state.depth == MAX_DEPTH:
        raise PeerError(f"data set nests more than {MAX_DEPTH} sequences", INVALID_PARAMETER)
    state.levels[state.depth].coding = element.inner
    state.levels[state.depth].in_item = False
    state.depth += 1
    return 0


cdef Step scan_nested_element(Scan *state, const uint8_t *data, size_t *at, size_t end) except? COMPLETE:
    """Scan one item, delimiter or element of the innermost open sequence."""
    cdef Level *level = &state.levels[state.depth - 1]
    cdef Element element
    if read_header(level.coding, data + at[0], end - at[0], True, state.tolerant, &element) == NEEDS_DATA:
        return NEEDS_DATA
    if not level.in_item and element.tag >> 16 != 0xFFFE:
        raise PeerError("sequence of undefined length has an element outside its items", INVALID_PARAMETER)
    at[0] += element.header
    if element.tag == SEQUENCE_DELIMITATION and not level.in_item:      # PS3.5 7.5.2
        state.depth -= 1
    elif element.tag == ITEM_DELIMITATION and level.in_item:        # PS3.5 Table 7.5-2; length not tested
        level.in_item = False
    elif element.tag == ITEM and not level.in_item:
        if element.length == UNDEFINED:
            level.in_item = True
        else:
            state.bytes_to_skip = element.length
    elif element.tag >> 16 == 0xFFFE:
        raise PeerError("misplaced item or delimiter in a sequence of undefined length", INVALID_PARAMETER)
    elif element.length == UNDEFINED:
        enter_sequence(state, &element)
    else:
        state.bytes_to_skip = element.length
    return CONTINUES


cdef int find_requested(Scan *state, uint32_t tag) noexcept:
    """Return the index of a requested tag, or -1."""
    cdef int low = 0, high = state.requested, middle
    while low < high:
        middle = (low + high) // 2
        if state.tags[middle] < tag:
            low = middle + 1
        else:
            high = middle
    return low if low < state.requested and state.tags[low] == tag else -1


cdef int record_value_position(Scan *state, uint32_t tag, const uint8_t *value, size_t length) except -1:
    cdef int index = 0 if tag == state.tags[0] else 1
    if state.values[index] != NULL:
        raise PeerError(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) is there twice", INVALID_PARAMETER)
    state.values[index] = value
    state.lengths[index] = length
    return 0


cdef void note_element_damage(Scan *state, const Element *element) noexcept:
    if element.unknown_vr:
        state.damage |= UNKNOWN_VR
    if element.tag >> 16 != 0xFFFE:
        if element.tag <= state.previous_tag:
            state.damage |= OUT_OF_ORDER
        state.previous_tag = element.tag


cdef Step copy_value(
    Scan *state, const uint8_t *data, size_t *at, size_t end, dict found, const Element *element, int index
) except? COMPLETE:
    """Copy a requested value, or its beginning if it is too long.

    The first of repeated values counts, as in DCMTK. Optional values are seldom all there, so the scan ends
    behind the position of the last one. Damage behind the last required value is not recorded, because
    without optional values the scan would not have seen it.
    """
    cdef size_t length = min(<size_t> element.length, state.value_max)
    cdef bint is_optional = state.is_optional[index]
    cdef int damage = 0
    cdef bytes value
    if length > end - at[0] - element.header:
        state.truncated_tag = element.tag
        return NEEDS_DATA
    state.truncated_tag = 0
    at[0] += element.header
    value = PyBytes_FromStringAndSize(<const char *> data + at[0], <Py_ssize_t> length)
    at[0] += length
    state.bytes_to_skip = <uint64_t> element.length - length
    if state.bytes_to_skip and not is_optional:
        damage |= LONG_VALUE
    if element.unknown_vr:
        damage |= UNKNOWN_VR
    if element.tag < state.previous_tag:
        damage |= OUT_OF_ORDER
    if element.tag in found and found[element.tag] != value and not is_optional:
        damage |= DIFFERING_DUPLICATE
    if state.missing:
        state.damage |= damage
    if element.tag not in found:
        found[element.tag] = value
        state.missing -= not is_optional
    state.previous_tag = element.tag
    return COMPLETE if state.missing == 0 and element.tag >= state.last_optional else CONTINUES


cdef Step scan_top_element(
    Scan *state, const uint8_t *data, size_t *at, size_t end, dict found
) except? COMPLETE:
    """Scan one element at the top level of the data set."""
    cdef Element element
    cdef uint32_t tag
    cdef bytes value
    cdef int index = -1
    if end - at[0] < 4:
        return NEEDS_DATA
    tag = read_tag(data + at[0], state.coding == EXPLICIT_BIG)
    if state.tolerant:
        if state.missing == 0 and tag > state.last_optional:
            return COMPLETE
    elif tag > state.tags[state.requested - 1] and tag >> 16 != 0xFFFE:
        return COMPLETE
    if read_header(state.coding, data + at[0], end - at[0], False, state.tolerant, &element) == NEEDS_DATA:
        return NEEDS_DATA
    if tag >> 16 != 0xFFFE:
        index = find_requested(state, tag)
    if state.tolerant:
        if index >= 0 and element.length != UNDEFINED:
            return copy_value(state, data, at, end, found, &element, index)
        if state.missing:
            note_element_damage(state, &element)
        if tag == ITEM_DELIMITATION:
            if state.missing:
                state.damage |= BROKEN_SEQUENCE     # DCMTK also ends the data set here
            return COMPLETE
    elif index >= 0:
        if element.length == UNDEFINED:
            raise PeerError(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) is of undefined length", INVALID_PARAMETER)
        if element.length > end - at[0] - element.header:
            state.truncated_tag = tag
            return NEEDS_DATA
        state.truncated_tag = 0
        at[0] += element.header
        if found is None:
            record_value_position(state, tag, data + at[0], element.length)
            at[0] += <size_t> element.length
            return COMPLETE if tag == state.tags[state.requested - 1] else CONTINUES
        value = PyBytes_FromStringAndSize(<const char *> data + at[0], <Py_ssize_t> element.length)
        if found.setdefault(tag, value) != value:
            raise PeerError(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) is there twice", INVALID_PARAMETER)
        at[0] += <size_t> element.length
        return COMPLETE if tag == state.tags[state.requested - 1] else CONTINUES
    at[0] += element.header
    if element.length == UNDEFINED:
        if tag >> 16 == 0xFFFE:
            raise PeerError("item of undefined length outside of a sequence", INVALID_PARAMETER)
        enter_sequence(state, &element)
    else:
        state.bytes_to_skip = element.length
    return CONTINUES


cdef Step scan_elements(
    Scan *state, const uint8_t *data, size_t *at, size_t end, dict found
) except? COMPLETE:
    """Scan from `data[at]` until all tags are found or the data ends. Set `at` to where to continue."""
    cdef uint64_t length
    cdef Step step
    while True:
        if state.bytes_to_skip:
            length = min(state.bytes_to_skip, <uint64_t> (end - at[0]))
            at[0] += <size_t> length
            state.bytes_to_skip -= length
            if state.bytes_to_skip:
                return NEEDS_DATA
        if state.depth:
            step = scan_nested_element(state, data, at, end)
        else:
            step = scan_top_element(state, data, at, end, found)
        if step != CONTINUES:
            return step


cdef dict finish_scan(Scan *state, Step step, bint at_end, dict found):
    if step == COMPLETE:
        return found
    if not at_end:
        return None
    if state.truncated_tag:
        raise PeerError(
            f"the data set ends within ({state.truncated_tag >> 16:04X},{state.truncated_tag & 0xFFFF:04X})",
            INVALID_PARAMETER,
        )
    return found


cdef dict scan_deflated(Scan *state, object view, bint at_end, dict found):
    """Scan a deflated data set, a raw RFC 1951 stream (PS3.5 A.5).

    Inflate in steps and keep only the bytes that the next step needs. Memory stays bounded that way.
    """
    cdef Py_ssize_t given = 0
    cdef const uint8_t *start
    cdef uint64_t total = 0
    cdef size_t at
    cdef bytes carried = b"", piece, inflated
    cdef Step step
    inflater = zlib.decompressobj(-15)
    while not inflater.eof:
        piece = inflater.unconsumed_tail
        if not piece:
            piece = bytes(view[given:given + DEFLATED_STEP])
            given += len(piece)
        try:
            inflated = inflater.decompress(piece, INFLATED_STEP)
        except zlib.error as error:
            raise PeerError(f"deflated data set cannot be inflated: {error}", INVALID_PARAMETER) from None
        total += <uint64_t> len(inflated)
        carried += inflated
        at = 0
        start = <const uint8_t *> PyBytes_AS_STRING(carried)
        step = scan_elements(state, start, &at, <size_t> PyBytes_GET_SIZE(carried), found)
        if step == COMPLETE:
            return found
        carried = carried[<Py_ssize_t> at:]
        if PyBytes_GET_SIZE(carried) > MAX_VALUE or total > MAX_INFLATED:
            raise PeerError("deflated data set inflates to more than a header needs", INVALID_PARAMETER)
        if not piece and not inflated:
            break                   # all input is used, and zlib holds back no output
    if not inflater.eof and at_end:
        raise PeerError("deflated data set is cut short: its stream has no end", INVALID_PARAMETER)
    return finish_scan(state, NEEDS_DATA, inflater.eof, found)


cdef int set_requested_tags(Scan *state, object tags) except -1:
    cdef uint32_t tag
    for given in tags:
        tag = given
        if state.requested == MAX_TAGS or (state.requested and tag <= state.tags[state.requested - 1]):
            raise ValueError(f"tags to scan for must be ascending and unique, at most {MAX_TAGS}")
        state.tags[state.requested] = tag
        state.requested += 1
    return 0


cdef class HeaderReader:
    """Reads attributes from a data set that may be damaged, window by window, in bounded memory.

    After damage the reader continues if it can find the next element. Otherwise it keeps the values that it
    has read. It finishes when all required attributes are found and the optional ones cannot follow in
    ascending order, otherwise at the end of the data set.

    Attributes:
        position: Offset in the data set of the first byte of the next window.
        values: The raw values found, by tag, padding included.
        damage: Bit set of the damage found; the bits are `Damage` in `ext/header.pxd`.
        is_done: Whether no further window is needed.
        has_required: Whether all required attributes are found.
        is_exhausted: Whether more than `inflated_max` bytes were inflated.
    """

    cdef Scan state
    cdef object inflater            # None if the data set is not deflated
    cdef bytes carried              # inflated bytes that the scan has not read yet
    cdef uint64_t inflated
    cdef uint64_t inflated_max
    cdef readonly uint64_t position
    cdef readonly dict values
    cdef readonly bint is_done
    cdef readonly bint is_exhausted

    def __init__(self, transfer_syntax_uid, tags, value_max, inflated_max, optional=frozenset()):
        """Start before the first element.

        Args:
            transfer_syntax_uid: Encoding of the data set, as for `scan`.
            tags: The requested attributes, as for `scan`.
            value_max: Size to which longer values are truncated, in bytes.
            inflated_max: Inflating stops after this many bytes of a deflated data set.
            optional: Those of `tags` for which the reader does not search behind their position.

        Raises:
            ValueError: `tags` are not as described.
        """
        cdef int coding = get_coding(transfer_syntax_uid)
        cdef int index
        memset(&self.state, 0, sizeof(Scan))
        set_requested_tags(&self.state, tags)
        self.state.tolerant = True
        self.state.missing = self.state.requested
        for index in range(self.state.requested):
            if self.state.tags[index] in optional:
                self.state.is_optional[index] = True
                self.state.last_optional = self.state.tags[index]
                self.state.missing -= 1
        self.state.value_max = value_max
        self.state.coding = EXPLICIT_LITTLE if coding < 0 else <Coding> coding
        self.inflater = zlib.decompressobj(-15) if coding < 0 else None
        self.inflated_max = inflated_max
        self.carried = b""
        self.values = {}
        self.is_done = self.state.requested == 0

    @property
    def damage(self):
        return self.state.damage

    @property
    def has_required(self):
        return self.state.missing == 0

    def feed(self, const uint8_t[::1] window not None, bint at_end):
        """Read the next window of the data set.

        Args:
            window: The bytes of the data set from `position`. If `position` does not move, the next window
                must be longer. `value_max` plus 64 bytes are always enough.
            at_end: Whether the data set ends with this window.
        """
        cdef size_t at = 0
        cdef const uint8_t *data = &window[0] if window.shape[0] else NULL
        if self.is_done:
            return
        if self.inflater is not None:
            self.inflate_window(window, at_end)
            return
        self.read_elements(data, &at, <size_t> window.shape[0], at_end)
        self.position += at + self.state.bytes_to_skip
        self.state.bytes_to_skip = 0

    cdef int read_elements(self, const uint8_t *data, size_t *at, size_t end, bint at_end) except -1:
        """Continue the scan. At the end of the data set, record whether an element is incomplete."""
        cdef Step step = NEEDS_DATA
        try:
            if end:
                step = scan_elements(&self.state, data, at, end, self.values)
        except PeerError:
            if self.state.missing:
                self.state.damage |= BROKEN_SEQUENCE
            self.is_done = True
            return 0
        if step == COMPLETE:
            self.is_done = True
        elif at_end:
            # Fewer than the four bytes of a tag count as padding.
            if self.state.missing and (
                self.state.bytes_to_skip or self.state.depth or end - at[0] >= 4 or self.position + at[0] == 0
            ):
                self.state.damage |= TRUNCATED
            self.is_done = True
        return 0

    cdef int inflate_window(self, const uint8_t[::1] window, bint at_end) except -1:
        """Read a window of a raw RFC 1951 stream (PS3.5 A.5). Inflate in steps and keep only unread bytes."""
        cdef bytes piece = bytes(window), more
        cdef size_t at
        self.position += <uint64_t> window.shape[0]
        while not (self.is_done or self.is_exhausted):
            try:
                more = self.inflater.decompress(piece, INFLATED_STEP)
            except zlib.error:
                if self.state.missing:
                    self.state.damage |= NOT_INFLATED
                self.is_done = True
                return 0
            piece = self.inflater.unconsumed_tail
            self.inflated += <uint64_t> len(more)
            self.carried += more
            at = 0
            if not more and at_end and not self.inflater.eof and self.state.missing:
                self.state.damage |= NOT_INFLATED
            self.read_elements(
                <const uint8_t *> PyBytes_AS_STRING(self.carried),
                &at,
                <size_t> PyBytes_GET_SIZE(self.carried),
                self.inflater.eof or (at_end and not more),
            )
            self.carried = self.carried[<Py_ssize_t> at:]
            self.is_exhausted = self.inflated > self.inflated_max
            if not piece and not more:
                return 0
        return 0


def scan(data, transfer_syntax_uid, tags, bint at_end):
    """Return the raw values of top-level attributes from the first part of a data set.

    Args:
        data: The beginning of an encoded data set, or all of it, as a contiguous buffer.
        transfer_syntax_uid: Encoding of the data set. Unknown UIDs mean Explicit VR Little Endian (PS3.5
            A.4).
        tags: The requested attributes as 0xGGGGEEEE: ascending, at most 80, no sequence and none of group
            FFFE.
        at_end: Whether `data` is the whole data set.

    Returns:
        The values of the attributes that are present, padding included, b"" if empty. None if more data is
        needed. The scan ends at the last requested tag or at a greater one. With `at_end` the result is never
        None. If the data set ends within another element, it holds the values found before.

    Raises:
        PeerError: The data does not match its transfer syntax, nests too deeply or inflates to too much. Also
            raised if a requested attribute has two different values, or (with `at_end`) is incomplete.
        ValueError: `tags` are not as described.
    """
    cdef Scan state
    cdef Py_buffer buffer
    cdef int coding
    cdef size_t at = 0
    cdef dict found = {}
    cdef Step step
    memset(&state, 0, sizeof(state))
    set_requested_tags(&state, tags)
    if state.requested == 0:
        return found
    coding = get_coding(transfer_syntax_uid)
    state.coding = EXPLICIT_LITTLE if coding < 0 else <Coding> coding
    if coding < 0:
        return scan_deflated(&state, memoryview(data).cast("B"), at_end, found)
    PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
    try:
        step = scan_elements(&state, <const uint8_t *> buffer.buf, &at, <size_t> buffer.len, found)
    finally:
        PyBuffer_Release(&buffer)
    return finish_scan(&state, step, at_end, found)


cdef int get_coding(transfer_syntax_uid) except -2:
    """Return the `Coding` of a transfer syntax, or -1 if it is deflated."""
    if transfer_syntax_uid in IMPLICIT:
        return IMPLICIT_LITTLE
    if transfer_syntax_uid == BIG_ENDIAN:
        return EXPLICIT_BIG
    return -1 if transfer_syntax_uid in DEFLATED else EXPLICIT_LITTLE


cdef bint has_sop_uids(
    int coding, const uint8_t *data, size_t length, bytes sop_class, bytes sop_instance
) except -1:
    """Report whether the beginning of a data set contains exactly these SOP UIDs.

    False also means that the UIDs are missing, or lie behind the first `length` bytes. Python then decides.
    """
    cdef Scan state
    cdef size_t at = 0
    memset(&state, 0, sizeof(state))
    state.requested = SOP_UIDS
    state.tags[0] = SOP_CLASS_UID
    state.tags[1] = SOP_INSTANCE_UID
    state.coding = <Coding> coding
    if length >= 4 and read_tag(data, coding == EXPLICIT_BIG) >> 16 == 0x0002:
        return False                # readers would take it for File Meta; Python refuses such a data set
    try:
        if scan_elements(&state, data, &at, length, None) != COMPLETE:
            return False
    except PeerError:
        return False
    return equals_uid(state.values[0], state.lengths[0], sop_class) and equals_uid(
        state.values[1], state.lengths[1], sop_instance
    )


cdef bint equals_uid(const uint8_t *value, size_t length, bytes expected) noexcept:
    if value == NULL:
        return False
    while length > 0 and (value[length - 1] == 0x00 or value[length - 1] == 0x20):
        length -= 1
    return (
        length == <size_t> PyBytes_GET_SIZE(expected)
        and memcmp(value, PyBytes_AS_STRING(expected), length) == 0
    )
