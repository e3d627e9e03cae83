"""Finds named top-level attributes in the first part of a data set (PS3.5 section 7 and Annex A).

Nothing but structure is read: values that are not asked for are stepped over, sequences of undefined length
are walked to their delimiter. The scan is as tolerant as widespread readers are: elements out of order, group
0002 in a data set, items in Implicit VR within an explicit sequence and stray delimiters at the top level are
taken as they come.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memset

import zlib

from ingest.ext.errors import PeerError

__all__ = ["HeaderReader", "scan"]

cdef int INVALID_PARAMETER = 6                  # PS3.8 Table 9-26
cdef Py_ssize_t DEFLATED_STEP = 8192            # input of one step: zlib copies what it did not use of it
cdef Py_ssize_t INFLATED_STEP = 65536           # output of one step
cdef Py_ssize_t MAX_VALUE = 1048576             # of an attribute asked for, when inflated
cdef uint64_t MAX_INFLATED = 67108864           # a few KiB can inflate to more than any header needs

cdef uint32_t SOP_CLASS_UID = 0x00080016
cdef uint32_t SOP_INSTANCE_UID = 0x00080018
cdef uint32_t ITEM = 0xFFFEE000                 # PS3.5 Table 7.5-1 to 7.5-3
cdef uint32_t ITEM_DELIMITATION = 0xFFFEE00D
cdef uint32_t SEQUENCE_DELIMITATION = 0xFFFEE0DD

# PS3.5 Annex A.1, and two that others defined alike: Papyrus 3, and GE's with big endian pixels.
cdef frozenset IMPLICIT = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.20", "1.2.840.113619.5.2"})
cdef str BIG_ENDIAN = "1.2.840.10008.1.2.2"     # PS3.5 A.3, retired
# PS3.5 A.5, and JPIP Referenced Deflate (A.7) with its HTJ2K sibling
cdef frozenset DEFLATED = frozenset(
    {"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"}
)


cdef inline uint32_t number_16(const uint8_t *data, bint big) noexcept nogil:
    if big:
        return (<uint32_t> data[0] << 8) | data[1]
    return data[0] | (<uint32_t> data[1] << 8)


cdef inline uint32_t number_32(const uint8_t *data, bint big) noexcept nogil:
    if big:
        return (number_16(data, True) << 16) | number_16(data + 2, True)
    return number_16(data, False) | (number_16(data + 2, False) << 16)


cdef inline uint32_t tag_at(const uint8_t *data, bint big) noexcept nogil:
    return (number_16(data, big) << 16) | number_16(data + 2, big)


cdef inline bint is_letters(const uint8_t *vr) noexcept nogil:
    return c"A" <= vr[0] <= c"Z" and c"A" <= vr[1] <= c"Z"


cdef inline bint has_short_length(const uint8_t *vr) noexcept nogil:
    """PS3.5 Table 7.1-2: the VRs with a 16-bit length; all others, of the future too, have 32 bits (6.2)."""
    cdef int name = (vr[0] << 8) | vr[1]
    return (
        name == 0x4145 or name == 0x4153 or name == 0x4154 or name == 0x4353        # AE AS AT CS
        or name == 0x4441 or name == 0x4453 or name == 0x4454                       # DA DS DT
        or name == 0x4644 or name == 0x464C or name == 0x4953                       # FD FL IS
        or name == 0x4C4F or name == 0x4C54 or name == 0x504E                       # LO LT PN
        or name == 0x5348 or name == 0x534C or name == 0x5353 or name == 0x5354     # SH SL SS ST
        or name == 0x544D or name == 0x5549 or name == 0x554C or name == 0x5553     # TM UI UL US
    )


cdef inline bint is_blank(const uint8_t *vr) noexcept nogil:
    """A VR that a writer did not know, and no length of Implicit VR."""
    return vr[0] == vr[1] and (vr[0] == 0x00 or vr[0] == 0x20 or vr[0] == c"?" or vr[0] == c"-")


cdef inline bint has_long_length(const uint8_t *vr) noexcept nogil:
    """PS3.5 Table 7.1-1: the VRs of today with a 32-bit length."""
    cdef int name = (vr[0] << 8) | vr[1]
    return (
        name == 0x4F42 or name == 0x4F44 or name == 0x4F46 or name == 0x4F4C        # OB OD OF OL
        or name == 0x4F56 or name == 0x4F57 or name == 0x5351 or name == 0x5356     # OV OW SQ SV
        or name == 0x5543 or name == 0x554E or name == 0x5552 or name == 0x5554     # UC UN UR UT
        or name == 0x5556                                                           # UV
    )


cdef Step read_header(
    Coding coding, const uint8_t *data, size_t left, bint nested, bint tolerant, Element *e
) except? DONE:
    """The element at `data`, of which `left` bytes are there."""
    cdef bint big = coding == EXPLICIT_BIG
    if left < 8:
        return NEEDS_MORE
    e.tag = tag_at(data, big)
    e.header = 8
    e.inner = coding
    e.unknown_vr = False
    # PS3.5 7.5: items and delimiters have no VR in any encoding
    if coding == IMPLICIT_LITTLE or e.tag >> 16 == 0xFFFE:
        e.length = number_32(data + 4, big)                 # PS3.5 Table 7.1-3, bytes 5-8
        return GOES_ON
    e.unknown_vr = not is_letters(data + 4)                 # PS3.5 Table 7.1-1, bytes 5-6: VR
    if e.unknown_vr:
        if nested and not big and not is_blank(data + 4):
            # Some writers put Implicit VR elements into the items of an explicit data set.
            e.length = number_32(data + 4, False)
            e.inner = IMPLICIT_LITTLE
            return GOES_ON
        if tolerant:
            # As DCMTK reads it: VRs of letters that it does not know have 32 bits, all others 16 bits.
            e.length = number_16(data + 6, big)
            return GOES_ON
        raise PeerError(
            f"({e.tag >> 16:04X},{e.tag & 0xFFFF:04X}) has no VR; is the data set of its transfer syntax?",
            INVALID_PARAMETER,
        )
    if has_short_length(data + 4):
        e.length = number_16(data + 6, big)                 # Table 7.1-2, bytes 7-8
        return GOES_ON
    if tolerant and not has_long_length(data + 4):
        e.unknown_vr = True
        if data[6] or data[7]:
            # Reserved bytes are zero (Table 7.1-1): its writer did not know of lengths of 32 bits.
            e.length = number_16(data + 6, big)
            return GOES_ON
    if left < 12:
        return NEEDS_MORE
    e.length = number_32(data + 8, big)                     # Table 7.1-1, bytes 9-12; 7-8 are reserved
    e.header = 12
    if data[4] == c"U" and data[5] == c"N":
        e.inner = IMPLICIT_LITTLE                           # PS3.5 6.2.2: UN of undefined length
    return GOES_ON


cdef int enter(Scan *state, Element *element) except -1:
    """Go into a sequence of undefined length."""
    if state.depth == MAX_DEPTH:
        raise PeerError(f"data set nests more than {MAX_DEPTH} sequences", INVALID_PARAMETER)
    state.levels[state.depth].coding = element.inner
    state.levels[state.depth].in_item = False
    state.depth += 1
    return 0


cdef Step step_inside(Scan *state, const uint8_t *data, size_t *at, size_t end) except? DONE:
    """One item, delimiter or element of the innermost open sequence."""
    cdef Level *level = &state.levels[state.depth - 1]
    cdef Element element
    if read_header(level.coding, data + at[0], end - at[0], True, state.tolerant, &element) == NEEDS_MORE:
        return NEEDS_MORE
    if not level.in_item and element.tag >> 16 != 0xFFFE:
        raise PeerError("sequence of undefined length holds something else than items", INVALID_PARAMETER)
    at[0] += element.header
    if element.tag == SEQUENCE_DELIMITATION and not level.in_item:      # PS3.5 7.5.2
        state.depth -= 1
    elif element.tag == ITEM_DELIMITATION and level.in_item:        # PS3.5 Table 7.5-2; length not tested
        level.in_item = False
    elif element.tag == ITEM and not level.in_item:
        if element.length == UNDEFINED:
            level.in_item = True
        else:
            state.skip = element.length
    elif element.tag >> 16 == 0xFFFE:
        raise PeerError("item or delimiter out of place in a sequence of undefined length", INVALID_PARAMETER)
    elif element.length == UNDEFINED:
        enter(state, &element)
    else:
        state.skip = element.length
    return GOES_ON


cdef bint is_asked(Scan *state, uint32_t tag) noexcept:
    cdef int low = 0, high = state.asked, middle
    while low < high:
        middle = (low + high) // 2
        if state.tags[middle] < tag:
            low = middle + 1
        else:
            high = middle
    return low < state.asked and state.tags[low] == tag


cdef int keep_place(Scan *state, uint32_t tag, const uint8_t *value, size_t length) except -1:
    cdef int which = 0 if tag == state.tags[0] else 1
    if state.values[which] != NULL:
        raise PeerError(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) is there twice", INVALID_PARAMETER)
    state.values[which] = value
    state.lengths[which] = length
    return 0


cdef void note_order(Scan *state, const Element *element) noexcept:
    if element.unknown_vr:
        state.damage |= UNKNOWN_VR
    if element.tag >> 16 != 0xFFFE:
        if element.tag <= state.last:
            state.damage |= DISORDER
        state.last = element.tag


cdef Step take_value(
    Scan *state, const uint8_t *data, size_t *at, size_t end, dict found, const Element *element
) except? DONE:
    """Keep a value asked for, or its beginning; the first of several counts, as it does in DCMTK."""
    cdef size_t length = min(<size_t> element.length, state.value_max)
    cdef bytes value
    if length > end - at[0] - element.header:
        state.cut = element.tag
        return NEEDS_MORE
    state.cut = 0
    at[0] += element.header
    value = PyBytes_FromStringAndSize(<const char *> data + at[0], <Py_ssize_t> length)
    at[0] += length
    state.skip = <uint64_t> element.length - length
    if state.skip:
        state.damage |= LONG_VALUE
    if element.tag in found:
        if found[element.tag] != value:
            state.damage |= TWICE
    else:
        found[element.tag] = value
        state.missing -= 1
    if element.unknown_vr:
        state.damage |= UNKNOWN_VR
    if element.tag < state.last:
        state.damage |= DISORDER
    state.last = element.tag
    return GOES_ON if state.missing else DONE


cdef Step step_outside(Scan *state, const uint8_t *data, size_t *at, size_t end, dict found) except? DONE:
    """One element of the data set itself."""
    cdef Element element
    cdef uint32_t tag
    cdef bytes value
    if end - at[0] < 4:
        return NEEDS_MORE
    tag = tag_at(data + at[0], state.coding == EXPLICIT_BIG)
    if not state.tolerant and tag > state.tags[state.asked - 1] and tag >> 16 != 0xFFFE:
        return DONE
    if read_header(state.coding, data + at[0], end - at[0], False, state.tolerant, &element) == NEEDS_MORE:
        return NEEDS_MORE
    if state.tolerant:
        if tag >> 16 != 0xFFFE and is_asked(state, tag) and element.length != UNDEFINED:
            return take_value(state, data, at, end, found, &element)
        note_order(state, &element)
        if tag == ITEM_DELIMITATION:
            state.damage |= BROKEN_SEQUENCE     # DCMTK ends the data set here
            return DONE
    elif tag >> 16 != 0xFFFE and is_asked(state, tag):
        if element.length == UNDEFINED:
            raise PeerError(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) is of undefined length", INVALID_PARAMETER)
        if element.length > end - at[0] - element.header:
            state.cut = tag
            return NEEDS_MORE
        state.cut = 0
        at[0] += element.header
        if found is None:
            keep_place(state, tag, data + at[0], element.length)
            at[0] += <size_t> element.length
            return DONE if tag == state.tags[state.asked - 1] else GOES_ON
        value = PyBytes_FromStringAndSize(<const char *> data + at[0], <Py_ssize_t> element.length)
        if found.setdefault(tag, value) != value:
            raise PeerError(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) is there twice", INVALID_PARAMETER)
        at[0] += <size_t> element.length
        return DONE if tag == state.tags[state.asked - 1] else GOES_ON
    at[0] += element.header
    if element.length == UNDEFINED:
        if tag >> 16 == 0xFFFE:
            raise PeerError("item of undefined length outside of a sequence", INVALID_PARAMETER)
        enter(state, &element)
    else:
        state.skip = element.length
    return GOES_ON


cdef Step run(Scan *state, const uint8_t *data, size_t *at, size_t end, dict found) except? DONE:
    """Go on from `data[at]` until all is found or the data ends; `at` then says where to go on."""
    cdef uint64_t length
    cdef Step step
    while True:
        if state.skip:
            length = min(state.skip, <uint64_t> (end - at[0]))
            at[0] += <size_t> length
            state.skip -= length
            if state.skip:
                return NEEDS_MORE
        if state.depth:
            step = step_inside(state, data, at, end)
        else:
            step = step_outside(state, data, at, end, found)
        if step != GOES_ON:
            return step


cdef dict outcome(Scan *state, Step step, bint at_end, dict found):
    if step == DONE:
        return found
    if not at_end:
        return None
    if state.cut:
        raise PeerError(
            f"the data set ends within ({state.cut >> 16:04X},{state.cut & 0xFFFF:04X})", INVALID_PARAMETER
        )
    return found


cdef dict scan_deflated(Scan *state, object view, bint at_end, dict found):
    """PS3.5 A.5: a raw RFC 1951 stream, inflated in steps of which only what the next one needs is kept."""
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
        step = run(state, start, &at, <size_t> PyBytes_GET_SIZE(carried), found)
        if step == DONE:
            return found
        carried = carried[<Py_ssize_t> at:]
        if PyBytes_GET_SIZE(carried) > MAX_VALUE or total > MAX_INFLATED:
            raise PeerError("deflated data set inflates to more than a header needs", INVALID_PARAMETER)
        if not piece and not inflated:
            break                   # all input is used, and zlib holds no output back
    if not inflater.eof and at_end:
        raise PeerError("deflated data set is cut", INVALID_PARAMETER)
    return outcome(state, NEEDS_MORE, inflater.eof, found)


cdef int ask(Scan *state, object tags) except -1:
    cdef uint32_t tag
    for given in tags:
        tag = given
        if state.asked == MAX_TAGS or (state.asked and tag <= state.tags[state.asked - 1]):
            raise ValueError(f"tags to scan for are at most {MAX_TAGS}, ascending, each once")
        state.tags[state.asked] = tag
        state.asked += 1
    return 0


cdef class HeaderReader:
    """Reads attributes out of a data set that may be damaged, window by window, in bounded memory.

    The reader goes on where the next element can be found, and keeps what it has read where it cannot. It is
    done when all attributes asked for are found; one that is missing is looked for up to the end.

    Attributes:
        position: Offset in the data set of the first byte of the next window.
        values: What was found, by tag: raw values, padding included.
        damage: What was wrong, as the sum of the numbers in `ext/header.pxd`.
        is_done: Whether no further window is needed.
        is_exhausted: Whether `inflated_max` bytes were inflated before that.
    """

    cdef Scan state
    cdef object inflater            # None where the data set is not deflated
    cdef bytes carried              # inflated, and not read yet
    cdef uint64_t inflated
    cdef uint64_t inflated_max
    cdef readonly uint64_t position
    cdef readonly dict values
    cdef readonly bint is_done
    cdef readonly bint is_exhausted

    def __init__(self, transfer_syntax_uid, tags, value_max, inflated_max):
        """Begin before the first element.

        Args:
            transfer_syntax_uid: How the data set is encoded, as for `scan`.
            tags: The attributes asked for, as for `scan`.
            value_max: Bytes of a value that are kept; of a longer one the beginning.
            inflated_max: Bytes of a deflated data set that are inflated at most.

        Raises:
            ValueError: `tags` are not as described.
        """
        cdef int coding = coding_of(transfer_syntax_uid)
        memset(&self.state, 0, sizeof(Scan))
        ask(&self.state, tags)
        self.state.tolerant = True
        self.state.missing = self.state.asked
        self.state.value_max = value_max
        self.state.coding = EXPLICIT_LITTLE if coding < 0 else <Coding> coding
        self.inflater = zlib.decompressobj(-15) if coding < 0 else None
        self.inflated_max = inflated_max
        self.carried = b""
        self.values = {}
        self.is_done = self.state.asked == 0

    @property
    def damage(self):
        return self.state.damage

    def feed(self, const uint8_t[::1] window not None, bint at_end):
        """Read one window.

        Args:
            window: The bytes of the data set from `position` on. If `position` stands still, the next one
                must be longer: at most `value_max` and 64 bytes are needed.
            at_end: Whether the data set ends with this window.
        """
        cdef size_t at = 0
        cdef const uint8_t *data = &window[0] if window.shape[0] else NULL
        if self.is_done:
            return
        if self.inflater is not None:
            self.inflate(window, at_end)
            return
        self.read(data, &at, <size_t> window.shape[0], at_end)
        self.position += at + self.state.skip
        self.state.skip = 0

    cdef int read(self, const uint8_t *data, size_t *at, size_t end, bint at_end) except -1:
        """Go on reading; at the end of the data set, say what is cut."""
        cdef Step step = NEEDS_MORE
        try:
            if end:
                step = run(&self.state, data, at, end, self.values)
        except PeerError:
            self.state.damage |= BROKEN_SEQUENCE
            self.is_done = True
            return 0
        if step == DONE:
            self.is_done = True
        elif at_end:
            # Fewer bytes than a tag has are padding.
            if self.state.skip or self.state.depth or end - at[0] >= 4 or self.position + at[0] == 0:
                self.state.damage |= CUT
            self.is_done = True
        return 0

    cdef int inflate(self, const uint8_t[::1] window, bint at_end) except -1:
        """PS3.5 A.5: a raw RFC 1951 stream, inflated in steps of which only the rest is kept."""
        cdef bytes piece = bytes(window), more
        cdef size_t at
        self.position += <uint64_t> window.shape[0]
        while not (self.is_done or self.is_exhausted):
            try:
                more = self.inflater.decompress(piece, INFLATED_STEP)
            except zlib.error:
                self.state.damage |= NOT_INFLATED
                self.is_done = True
                return 0
            piece = self.inflater.unconsumed_tail
            self.inflated += <uint64_t> len(more)
            self.carried += more
            at = 0
            if not more and at_end and not self.inflater.eof:
                self.state.damage |= NOT_INFLATED
            self.read(
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
    """The raw values of top-level attributes out of the first part of a data set.

    Args:
        data: A data set or its beginning, as on the wire: any contiguous object with the buffer protocol.
        transfer_syntax_uid: How it is encoded; UIDs that are not known are Explicit VR Little Endian (PS3.5
            A.4).
        tags: The attributes asked for, as 0xGGGGEEEE: ascending, at most 64, none of group FFFE or a
            sequence.
        at_end: Whether `data` is all there is.

    Returns:
        The values of those that are present, padding included, b"" when empty; those are all once a greater
        tag than the last one asked for, or that one itself, was seen. None when more data is needed, which is
        never so with `at_end`: a data set that ends within an element not asked for gives what was found
        before.

    Raises:
        PeerError: The data is not of its transfer syntax, nests too deeply, inflates to too much, says an
            attribute asked for twice with different values, or (with `at_end`) ends within one asked for.
        ValueError: `tags` are not as described.
    """
    cdef Scan state
    cdef Py_buffer buffer
    cdef int coding
    cdef size_t at = 0
    cdef dict found = {}
    cdef Step step
    memset(&state, 0, sizeof(state))
    ask(&state, tags)
    if state.asked == 0:
        return found
    coding = coding_of(transfer_syntax_uid)
    state.coding = EXPLICIT_LITTLE if coding < 0 else <Coding> coding
    if coding < 0:
        return scan_deflated(&state, memoryview(data).cast("B"), at_end, found)
    PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
    try:
        step = run(&state, <const uint8_t *> buffer.buf, &at, <size_t> buffer.len, found)
    finally:
        PyBuffer_Release(&buffer)
    return outcome(&state, step, at_end, found)


cdef int coding_of(transfer_syntax_uid) except -2:
    """How a data set is encoded, as `Coding`; -1 where it is deflated."""
    if transfer_syntax_uid in IMPLICIT:
        return IMPLICIT_LITTLE
    if transfer_syntax_uid == BIG_ENDIAN:
        return EXPLICIT_BIG
    return -1 if transfer_syntax_uid in DEFLATED else EXPLICIT_LITTLE


cdef bint names(
    int coding, const uint8_t *data, size_t length, bytes sop_class, bytes sop_instance
) except -1:
    """Whether the beginning of a data set says these UIDs; False: it says others, or not here, or nothing."""
    cdef Scan state
    cdef size_t at = 0
    memset(&state, 0, sizeof(state))
    state.asked = NAMED
    state.tags[0] = SOP_CLASS_UID
    state.tags[1] = SOP_INSTANCE_UID
    state.coding = <Coding> coding
    if length >= 4 and tag_at(data, coding == EXPLICIT_BIG) >> 16 == 0x0002:
        return False                # it would pass for a part of the File Meta: Python says so
    try:
        if run(&state, data, &at, length, None) != DONE:
            return False
    except PeerError:
        return False
    return is_value(state.values[0], state.lengths[0], sop_class) and is_value(
        state.values[1], state.lengths[1], sop_instance
    )


cdef bint is_value(const uint8_t *value, size_t length, bytes expected) noexcept:
    if value == NULL:
        return False
    while length > 0 and (value[length - 1] == 0x00 or value[length - 1] == 0x20):
        length -= 1
    return (
        length == <size_t> PyBytes_GET_SIZE(expected)
        and memcmp(value, PyBytes_AS_STRING(expected), length) == 0
    )
