from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    MAX_TAGS = 64           # asked for at once
    NAMED = 2               # attributes of which `names` asks
    MAX_DEPTH = 64          # sequences within sequences; real ones stay below ten
    UNDEFINED = 0xFFFFFFFF  # PS3.5 7.1.1: value length of what ends with a delimitation item

# What a tolerant scan came across; `ingest.dicom.instance_header` has the words.
cdef enum Damage:
    UNKNOWN_VR = 1          # PS3.5 6.2: neither letters nor known
    TWICE = 2               # an attribute asked for, with another value than before
    DISORDER = 4            # PS3.5 7.1: tags do not increase
    CUT = 8                 # the data set ends within an element
    BROKEN_SEQUENCE = 16    # items or delimiters out of place, or nested too deeply
    LONG_VALUE = 32         # of an attribute asked for; its beginning counts
    NOT_INFLATED = 64       # the deflated stream is damaged or cut

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
    bint unknown_vr

# The scan stands between two elements, so that it goes on when more data comes; nothing points into the data.
cdef struct Scan:
    Coding coding
    int depth
    Level levels[MAX_DEPTH]
    uint64_t skip           # bytes still to come of a value that is passed over
    uint32_t cut            # the tag asked for whose value is not all there; 0: none
    int asked
    uint32_t tags[MAX_TAGS]
    # A tolerant scan notes damage and goes on, until all that is asked for is found.
    bint tolerant
    int damage              # of `Damage`, all that was seen
    int missing             # how many tags asked for are not found yet
    uint32_t last           # the tag before
    size_t value_max        # longer values are cut
    # Where the values asked for lie, while the data does; kept where `found` is None.
    const uint8_t *values[NAMED]
    size_t lengths[NAMED]

cdef Step run(Scan *state, const uint8_t *data, size_t *at, size_t end, dict found) except? DONE
cdef Step step_outside(Scan *state, const uint8_t *data, size_t *at, size_t end, dict found) except? DONE
cdef Step step_inside(Scan *state, const uint8_t *data, size_t *at, size_t end) except? DONE
cdef Step read_header(
    Coding coding, const uint8_t *data, size_t left, bint nested, bint tolerant, Element *e
) except? DONE
cdef Step take_value(
    Scan *state, const uint8_t *data, size_t *at, size_t end, dict found, const Element *element
) except? DONE
cdef int enter(Scan *state, Element *element) except -1
cdef int coding_of(transfer_syntax_uid) except -2
cdef bint names(int coding, const uint8_t *data, size_t length, bytes sop_class, bytes sop_instance) except -1
