from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    MAX_TAGS = 64           # asked for at once
    NAMED = 2               # attributes of which `names` asks
    MAX_DEPTH = 64          # sequences within sequences; real ones stay below ten
    UNDEFINED = 0xFFFFFFFF  # PS3.5 7.1.1: value length of what ends with a delimitation item

# Byte order and structure of data elements (PS3.5 7.1, Annex A).
cdef enum Coding:
    IMPLICIT_LITTLE
    EXPLICIT_LITTLE
    EXPLICIT_BIG

# What one step of the scan came to.
cdef enum Step:
    GOES_ON
    NEEDS_MORE
    DONE

# Position in the nesting: an open sequence of undefined length, and perhaps an open item of undefined length
# in it.
cdef struct Level:
    Coding coding           # of the elements in its items
    bint in_item

cdef struct Element:
    uint32_t tag            # 0xGGGGEEEE
    uint32_t length
    uint32_t header         # bytes ahead of the value
    Coding inner            # of the items, should it be a sequence

# The scan stands between two elements, so that it goes on when more data comes; nothing points into the data.
cdef struct Scan:
    Coding coding
    int depth
    Level levels[MAX_DEPTH]
    uint64_t skip           # bytes still to come of a value that is passed over
    uint32_t cut            # the tag asked for whose value is not all there; 0: none
    int asked
    uint32_t tags[MAX_TAGS]
    # Where the values asked for lie, while the data does; kept where `found` is None.
    const uint8_t *values[NAMED]
    size_t lengths[NAMED]

cdef Step run(Scan *state, const uint8_t *data, size_t *at, size_t end, dict found) except? DONE
cdef Step step_outside(Scan *state, const uint8_t *data, size_t *at, size_t end, dict found) except? DONE
cdef Step step_inside(Scan *state, const uint8_t *data, size_t *at, size_t end) except? DONE
cdef Step read_header(Coding coding, const uint8_t *data, size_t left, bint nested, Element *e) except? DONE
cdef int enter(Scan *state, Element *element) except -1
cdef int coding_of(transfer_syntax_uid) except -2
cdef bint names(int coding, const uint8_t *data, size_t length, bytes sop_class, bytes sop_instance) except -1
