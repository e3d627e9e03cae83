from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ingest.ext.system cimport pthread_cond_t, pthread_mutex_t

cdef enum:
    SEGMENT_BYTES = 8388608
    HEADER_BYTES = 64
    PAGE_BYTES = 4096
    SEGMENT_NAME = 48       # bytes of a file name, with its suffix and NUL
    SPARES = 4              # upper bound of the files kept ready
    RECORDS_MAX = 16384     # per segment; each record has a mark of 8 bytes
    RECORDS_END = SEGMENT_BYTES - 8 * RECORDS_MAX - PAGE_BYTES  # the trailer's page and the marks follow

# One instance to append to a segment, and the position of its record afterwards.
cdef struct Piece:
    uint8_t *data           # a Part 10 file
    size_t length
    uint64_t received       # Unix milliseconds
    uint32_t number         # of the record within its segment
    uint64_t offset         # of the first byte of data
    int error               # 0, or the errno of the failed append
    char segment[SEGMENT_NAME]


cdef class Segments:
    cdef int folder
    cdef bint durable
    cdef bint closed
    cdef bint is_initialized                  # the mutexes exist and must be destroyed
    cdef uint64_t sequence
    cdef pthread_mutex_t appending  # held by the thread that writes to the current segment
    cdef pthread_mutex_t sparing    # guards `spares`, and changes of `name`
    cdef pthread_cond_t wanted
    cdef char spares[SPARES][SEGMENT_NAME]
    cdef int spare_count
    cdef int fd                     # of the current segment, with a shared lock; -1: none
    cdef char name[SEGMENT_NAME]    # of the current segment; empty: none
    cdef uint64_t number
    cdef uint32_t count             # records in the current segment
    cdef uint64_t at                # offset at which the next record may begin

    cdef void keep_spares(self) noexcept nogil
    cdef void add_spare(self, const char *name) noexcept nogil
    cdef bint recycle_segment(self, const char *name) noexcept nogil
    cdef bint has_room(self, size_t length) noexcept nogil
    cdef bint fits_segment(self, uint64_t at, size_t length) noexcept nogil
    cdef void append(self, Piece **pieces, size_t count) noexcept nogil
    cdef int append_run(self, Piece **pieces, size_t count) noexcept nogil
    cdef int append_record(self, Piece *piece) noexcept nogil
    cdef void write_trailer(self, uint32_t flags) noexcept nogil
    cdef void close_segment(self) noexcept nogil
    cdef int open_next_segment(self) noexcept nogil
    cdef int open_spare(self, char *name, int *fd) noexcept nogil
    cdef bint pop_spare(self, char *name) noexcept nogil
    cdef int create_segment(self, char *name) noexcept nogil
    cdef uint64_t make_unique_name(self, char *name, const char *ending) noexcept nogil

cdef char *append_hex(char *at, uint64_t value, int least) noexcept nogil
