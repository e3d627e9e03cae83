from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    MAX_TAGS = 80           # tags of one scan
    SOP_UIDS = 2            # attributes that `has_sop_uids` compares
    MAX_DEPTH = 64          # nested sequences; real data sets stay below ten
    UNDEFINED = 0xFFFFFFFF  # PS3.5 7.1.1: value length of a value that ends with a delimitation item

# Damage that a tolerant scan found. `ingest.dicom.instance_header` describes each number to users.
cdef enum Damage:
    UNKNOWN_VR = 1          # PS3.5 6.2: not a VR of the standard
    DIFFERING_DUPLICATE = 2     # a requested attribute is repeated with another value
    OUT_OF_ORDER = 4            # PS3.5 7.1: tags do not increase
    TRUNCATED = 8                 # the data set ends within an element
    BROKEN_SEQUENCE = 16    # items or delimiters are misplaced, or sequences nest too deeply
    LONG_VALUE = 32         # the value of a requested attribute is too long; only its beginning is kept
    NOT_INFLATED = 64       # the deflated stream is damaged or incomplete

# Byte order and structure of data elements (PS3.5 7.1, Annex A).
cdef enum Coding:
    IMPLICIT_LITTLE
    EXPLICIT_LITTLE
    EXPLICIT_BIG

# Result of one step of the scan.
cdef enum Step:
    CONTINUES
    NEEDS_DATA
    COMPLETE

# One open sequence of undefined length, and whether an item of undefined length is open in it. Sequences and
# items of defined length need no level, because the scan skips them as a whole.
cdef struct Level:
    Coding coding           # encoding of the elements in its items
    bint in_item

cdef struct Element:
    uint32_t tag            # 0xGGGGEEEE
    uint32_t length
    uint32_t header         # bytes before the value
    Coding inner            # encoding of the items, if this is a sequence
    bint unknown_vr

# The scan always stops between two elements, so it can continue when more data arrives. Except `values`,
# nothing in this struct points into the data.
cdef struct Scan:
    Coding coding
    int depth
    Level levels[MAX_DEPTH]
    uint64_t bytes_to_skip           # bytes of a skipped value that have not arrived
    uint32_t truncated_tag  # the requested tag whose value is incomplete; 0: none
    int requested
    uint32_t tags[MAX_TAGS]
    # A tolerant scan records damage and continues until all requested tags are found.
    bint tolerant
    int damage              # bit set of `Damage`
    int missing             # number of required tags that are not found yet
    bint is_optional[MAX_TAGS]      # whether the scan may end without the tag
    uint32_t last_optional  # the greatest optional tag; 0: none
    uint32_t previous_tag           # the tag of the preceding element
    size_t value_max        # longer values are truncated
    # Addresses of the requested values, used if `found` is None. They are valid as long as the data.
    const uint8_t *values[SOP_UIDS]
    size_t lengths[SOP_UIDS]

cdef Step scan_elements(
    Scan *state, const uint8_t *data, size_t *at, size_t end, dict found
) except? COMPLETE
cdef Step scan_top_element(
    Scan *state, const uint8_t *data, size_t *at, size_t end, dict found
) except? COMPLETE
cdef Step scan_nested_element(Scan *state, const uint8_t *data, size_t *at, size_t end) except? COMPLETE
cdef Step read_header(
    Coding coding, const uint8_t *data, size_t left, bint nested, bint tolerant, Element *e
) except? COMPLETE
cdef Step copy_value(
    Scan *state, const uint8_t *data, size_t *at, size_t end, dict found, const Element *element, int index
) except? COMPLETE
cdef int enter_sequence(Scan *state, Element *element) except -1
cdef int get_coding(transfer_syntax_uid) except -2
cdef bint has_sop_uids(
    int coding, const uint8_t *data, size_t length, bytes sop_class, bytes sop_instance
) except -1
