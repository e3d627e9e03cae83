"""Conversion of integers: little endian in command sets (PS3.7 6.3.1), big endian in PDUs (PS3.8 9.3.1)."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef inline uint32_t little_16(const uint8_t *at) noexcept nogil:
    return at[0] | (<uint32_t> at[1] << 8)


cdef inline uint32_t little_32(const uint8_t *at) noexcept nogil:
    return little_16(at) | (little_16(at + 2) << 16)


cdef inline uint32_t big_32(const uint8_t *at) noexcept nogil:
    return (<uint32_t> at[0] << 24) | (<uint32_t> at[1] << 16) | (<uint32_t> at[2] << 8) | at[3]


cdef inline uint8_t *put_little(uint8_t *at, uint64_t value, int length) noexcept nogil:
    """Write the low `length` bytes of a value. Return the address behind them."""
    cdef int byte
    for byte in range(length):
        at[byte] = <uint8_t> (value >> (8 * byte))
    return at + length


cdef inline void put_big_32(uint8_t *at, uint64_t value) noexcept nogil:
    at[0] = <uint8_t> (value >> 24)
    at[1] = <uint8_t> (value >> 16)
    at[2] = <uint8_t> (value >> 8)
    at[3] = <uint8_t> value
