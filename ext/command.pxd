from libc.stdint cimport uint8_t, uint32_t

cdef enum:
    ELEMENT_HEADER = 8      # PS3.7 6.3.1: group 2, element 2, length 4, all little endian

# Value representation of a command element (PS3.5 Table 6.2-1).
cdef enum Kind:
    UL
    US
    UI
    AE
    LO
    AT

cdef bint is_padding(const uint8_t *data, Py_ssize_t length) noexcept
cdef object decode_value(str keyword, Kind kind, const uint8_t *data, uint32_t length)
cdef object decode_text(str keyword, Kind kind, const uint8_t *data, uint32_t length)
cdef bytes encode_value(str keyword, Kind kind, object value)
cdef bytes encode_number(str keyword, object value, int length)
cdef bytes encode_tags(str keyword, object value)
