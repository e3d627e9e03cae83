from libc.stdint cimport uint8_t, uint32_t

cdef uint32_t compute_crc32c(const uint8_t *data, size_t length) noexcept nogil     # CRC-32C
