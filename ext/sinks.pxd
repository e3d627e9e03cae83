from libc.stdint cimport int64_t, uint8_t
from posix.uio cimport iovec

cdef enum:
    GATHER_MAX = 256        # parts of one writev; 4 KiB of stack, below every system's IOV_MAX

# Bytes kept from one window to the next. Grows by what has arrived, never by what a length field claims.
cdef struct Kept:
    uint8_t *data
    size_t length
    size_t capacity

# Fragments of one window that wait for one writev. On the stack of next_event: nothing outlasts the window.
cdef struct Gather:
    int count
    size_t length           # bytes of all parts
    iovec parts[GATHER_MAX]

cdef int keep(Kept *kept, const uint8_t *data, size_t length) except -1
cdef bytes kept_bytes(Kept *kept)
cdef void forget(Kept *kept) noexcept
cdef void release(Kept *kept) noexcept
cdef int write_all(int fd, iovec *parts, int count) noexcept nogil


# A data set that is kept in memory as long as it is small.
cdef class Overflow:
    cdef Kept small         # all of it, and its head, once its end has come

    cdef int descriptor(self) noexcept      # where it goes when it is larger; or less than 0: -errno


cdef class Sink:
    cdef int fd             # -1: no descriptor
    cdef bytes head         # what is still to be written ahead of the first fragment
    cdef bint in_memory
    cdef Overflow overflow  # None: what is larger is the parser's to refuse
    cdef size_t small_limit
    cdef Kept memory
    cdef int write_errno    # 0, or why the descriptor was given up
    cdef bint writing       # the GIL is away and C reads the window
    cdef const uint8_t *first   # the first piece of the data set, while its window lasts; NULL: none or gone
    cdef size_t first_length
    cdef bint early         # start writing to the disk while more comes, so that the last fsync is short
    cdef int64_t written    # bytes given to the descriptor, as far as they matter for `early`
    cdef int64_t started    # bytes of them that are on their way to the disk

    cdef int open(self, int fd, bytes head, bint in_memory) except -1
    cdef int open_small(self, bytes head, size_t limit, Overflow overflow) except -1
    cdef int spill(self) except -1
    cdef int put(self, Gather *gather, const uint8_t *data, size_t length) except -1
    cdef int put_head(self, Gather *gather) except -1
    cdef int flush(self, Gather *gather) except -1
    cdef int discard(self) except -1
