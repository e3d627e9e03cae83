"""CRC-32C (Castagnoli, RFC 3720 B.4), computed with the processor's instruction if there is one.

For a small instance, zlib's CRC-32 costs about as much as writing the instance. x86 processors since 2008 and
ARM processors since ARMv8.1 have an instruction for CRC-32C. On x86 its presence is checked once, when this
module is imported. Other processors use eight tables, which process eight bytes at a time.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint32_t

__all__ = ["crc32c", "crc32c_portable", "has_instruction"]

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #include <string.h>

    static uint32_t crc_tables[8][256];

    static void make_crc_tables(void) {
        for (uint32_t byte = 0; byte < 256; byte++) {
            uint32_t value = byte;
            for (int bit = 0; bit < 8; bit++)
                value = (value >> 1) ^ (value & 1 ? 0x82F63B78u : 0);    /* the polynomial, reflected */
            crc_tables[0][byte] = value;
        }
        for (uint32_t byte = 0; byte < 256; byte++)
            for (int table = 1; table < 8; table++) {
                uint32_t before = crc_tables[table - 1][byte];
                crc_tables[table][byte] = (before >> 8) ^ crc_tables[0][before & 0xFF];
            }
    }

    static uint32_t crc_by_tables(uint32_t value, const uint8_t *data, size_t length) {
        for (; length >= 8; data += 8, length -= 8) {
            uint32_t low = value ^ ((uint32_t) data[0] | (uint32_t) data[1] << 8
                                    | (uint32_t) data[2] << 16 | (uint32_t) data[3] << 24);
            value = crc_tables[7][low & 0xFF] ^ crc_tables[6][(low >> 8) & 0xFF]
                  ^ crc_tables[5][(low >> 16) & 0xFF] ^ crc_tables[4][low >> 24]
                  ^ crc_tables[3][data[4]] ^ crc_tables[2][data[5]]
                  ^ crc_tables[1][data[6]] ^ crc_tables[0][data[7]];
        }
        for (; length; data++, length--)
            value = (value >> 8) ^ crc_tables[0][(value ^ *data) & 0xFF];
        return value;
    }

    /* The instruction has a latency of three clocks, but a new one can start in each clock. Three independent
       lanes are therefore three times as fast as one. To join two lanes, the CRC of the first is advanced
       over as many zero bytes as a lane is long, and then XORed with the CRC of the second. Advancing is
       linear, so one table of 256 words for each of the four bytes of the CRC is enough. */
    enum { CRC_LANE = 1360 };           /* a multiple of eight; three lanes fill most of a page */
    static uint32_t crc_shift[4][256];

    static void make_crc_shift(void) {
        static const uint8_t zeros[CRC_LANE];
        for (int place = 0; place < 4; place++)
            for (uint32_t byte = 0; byte < 256; byte++)
                crc_shift[place][byte] = crc_by_tables(byte << (8 * place), zeros, CRC_LANE);
    }

    static inline uint32_t crc_shifted(uint32_t value) {
        return crc_shift[0][value & 0xFF] ^ crc_shift[1][(value >> 8) & 0xFF]
             ^ crc_shift[2][(value >> 16) & 0xFF] ^ crc_shift[3][value >> 24];
    }

    static inline uint64_t crc_load(const uint8_t *data) {
        uint64_t word;
        memcpy(&word, data, 8);
        return word;
    }

    #if defined(__x86_64__) && defined(__GNUC__)
    #define CRC_INSTRUCTION
    #define CRC_TARGET __attribute__((target("sse4.2")))
    #define CRC_WORD(value, word) __builtin_ia32_crc32di(value, word)
    #define CRC_BYTE(value, byte) __builtin_ia32_crc32qi((uint32_t) (value), byte)
    static int crc_has_instruction(void) { return __builtin_cpu_supports("sse4.2") != 0; }
    #elif defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
    #include <arm_acle.h>
    #define CRC_INSTRUCTION
    #define CRC_TARGET
    #define CRC_WORD(value, word) __crc32cd((uint32_t) (value), word)
    #define CRC_BYTE(value, byte) __crc32cb((uint32_t) (value), byte)
    static int crc_has_instruction(void) { return 1; }
    #else
    static int crc_has_instruction(void) { return 0; }
    #endif

    #ifdef CRC_INSTRUCTION
    CRC_TARGET static uint32_t crc_by_instruction(uint32_t value, const uint8_t *data, size_t length) {
        uint64_t first = value;
        for (; length >= 3 * CRC_LANE; length -= 3 * CRC_LANE) {
            uint64_t second = 0, third = 0;
            const uint8_t *end = data + CRC_LANE;
            for (; data < end; data += 8) {
                first = CRC_WORD(first, crc_load(data));
                second = CRC_WORD(second, crc_load(data + CRC_LANE));
                third = CRC_WORD(third, crc_load(data + 2 * CRC_LANE));
            }
            first = crc_shifted((uint32_t) first) ^ second;
            first = crc_shifted((uint32_t) first) ^ third;
            data += 2 * CRC_LANE;
        }
        for (; length >= 8; data += 8, length -= 8)
            first = CRC_WORD(first, crc_load(data));
        for (; length; data++, length--)
            first = CRC_BYTE(first, *data);
        return (uint32_t) first;
    }
    #else
    #define crc_by_instruction crc_by_tables
    #endif
    """
    void make_crc_tables()
    void make_crc_shift()
    int crc_has_instruction()
    uint32_t crc_by_tables(uint32_t value, const uint8_t *data, size_t length) nogil
    uint32_t crc_by_instruction(uint32_t value, const uint8_t *data, size_t length) nogil

cdef Py_ssize_t LONG = 65536            # from this size on, releasing the GIL is worth its cost

make_crc_tables()
make_crc_shift()

cdef bint instruction = crc_has_instruction() != 0

has_instruction = bool(instruction)


cdef uint32_t compute_crc32c(const uint8_t *data, size_t length) noexcept nogil:
    if instruction:
        return ~crc_by_instruction(~(<uint32_t> 0), data, length)
    return ~crc_by_tables(~(<uint32_t> 0), data, length)


def crc32c(data):
    """Compute the CRC-32C of a contiguous buffer.

    Raises:
        BufferError: The buffer is not contiguous.
    """
    cdef Py_buffer buffer
    cdef uint32_t value
    PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
    try:
        if buffer.len < LONG:
            value = compute_crc32c(<const uint8_t *> buffer.buf, <size_t> buffer.len)
        else:
            with nogil:
                value = compute_crc32c(<const uint8_t *> buffer.buf, <size_t> buffer.len)
    finally:
        PyBuffer_Release(&buffer)
    return value


def crc32c_portable(bytes data not None):
    """Compute the CRC-32C with the tables, as on processors without the instruction."""
    cdef const uint8_t *start = data
    return <uint32_t> ~crc_by_tables(~(<uint32_t> 0), start, <size_t> len(data))
