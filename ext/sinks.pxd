from libc.stdint cimport int64_t, uint8_t
from posix.uio cimport iovec

cdef enum:
    GATHER_MAX = 256        # parts of one writev; 4 KiB of stack, below every system's IOV_MAX

# A buffer that outlives a window. It grows with the bytes that arrived, never with a length that a peer
# claims.
cdef struct ByteBuffer:
    uint8_t *data
    size_t length
    size_t capacity

# Fragments of one window that wait for one writev. It lives on the stack of next_event and never outlives
# the window.
cdef struct Gather:
    int count
    size_t length           # bytes of all parts
    iovec parts[GATHER_MAX]

cdef int append_bytes(ByteBuffer *kept, const uint8_t *data, size_t length) except -1
cdef bytes buffer_to_bytes(ByteBuffer *kept)
cdef void forget_buffer(ByteBuffer *kept) noexcept
cdef void release_buffer(ByteBuffer *kept) noexcept
cdef int write_all(int fd, iovec *parts, int count) noexcept nogil


# Holds a small data set in memory, and provides a descriptor for a larger one.
cdef class SpillTarget:
    cdef ByteBuffer small         # head and data set, once the data set has ended

    cdef int descriptor(self) noexcept      # the descriptor for a larger data set, or -errno


cdef class Sink:
    cdef int fd             # -1: no descriptor
    cdef bytes head         # File Meta to be written before the first fragment
    cdef bint in_memory
    cdef SpillTarget overflow  # None: the parser refuses a larger data set
    cdef size_t small_limit
    cdef ByteBuffer memory
    cdef int write_errno    # 0, or the error that ended writing
    cdef bint writing       # C reads the window without the GIL
    cdef const uint8_t *first   # the first piece of the data set while its window lasts, or NULL
    cdef size_t first_length
    cdef bint early         # start writing to the disk early, so that the final fsync is short
    cdef int64_t written    # bytes given to the descriptor
    cdef int64_t started    # bytes that the kernel was asked to write to the disk

    cdef int open(self, int fd, bytes head, bint in_memory) except -1
    cdef int open_small(self, bytes head, size_t limit, SpillTarget overflow) except -1
    cdef int spill_to_descriptor(self) except -1
    cdef int add_fragment(self, Gather *gather, const uint8_t *data, size_t length) except -1
    cdef int add_head(self, Gather *gather) except -1
    cdef int flush(self, Gather *gather) except -1
    cdef int discard(self) except -1
