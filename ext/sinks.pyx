"""Where the fragments of a data set go: a descriptor, memory, or nowhere. Used by the parser, from C only."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.errno cimport EIO, EINTR, ENOSPC, errno
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy
from posix.uio cimport iovec, writev

cdef extern from "<sys/statvfs.h>" nogil:
    ctypedef unsigned long fsblkcnt_t
    struct statvfs:
        unsigned long f_frsize
        fsblkcnt_t f_bavail
    int fstatvfs(int fd, statvfs *facts)

from ingest.ext.system cimport SYNC_FILE_RANGE_WRITE, sync_file_range

__all__ = ["Sink", "keep_free"]

cdef size_t SHORT_WRITE = 65536     # to let other threads run would take longer than to write so little
cdef int64_t EARLY_STEP = 4194304   # what is written before the disk is told to begin with it
cdef size_t KEPT_AT_REST = 4096     # a usual command set fits, and an idle association holds no more


# What must stay free on the file system of the spool, also while data sets are under way. Free space is
# looked at again after `allowance` bytes: few where little is left, which other listeners share.
cdef int64_t ALLOWANCE_MAX = 67108864
cdef int64_t reserve = 0
cdef int64_t writers = 1
cdef int64_t allowance = 0


def keep_free(int64_t reserve_bytes, int64_t listeners):
    """Have data sets that are being written fail as on a full disk before free space falls below a reserve.

    Args:
        reserve_bytes: What must stay free; 0 is no reserve.
        listeners: How many processes write to that file system, this one included.
    """
    global reserve, writers, allowance
    reserve, writers, allowance = max(reserve_bytes, 0), max(listeners, 1), 0


cdef int spend(int fd, int64_t length) noexcept nogil:
    """Count what is about to be written; 0, or ENOSPC where that would take of the reserve."""
    global allowance
    cdef statvfs facts
    cdef int64_t left
    if reserve == 0:
        return 0
    allowance -= length
    if allowance >= 0:
        return 0
    allowance = 0
    if fstatvfs(fd, &facts) != 0:
        return 0                    # the write itself says what is wrong
    left = <int64_t> facts.f_bavail * <int64_t> facts.f_frsize - reserve
    if left < length:
        return ENOSPC
    allowance = max(min((left - length) // (2 * writers), ALLOWANCE_MAX), <int64_t> 0)
    return 0


cdef int keep(Kept *kept, const uint8_t *data, size_t length) except -1:
    """Append; the capacity at most doubles, so it stays within twice of what has arrived."""
    cdef size_t needed = kept.length + length
    cdef size_t capacity
    cdef void *grown
    if needed > kept.capacity:
        capacity = max(needed, 2 * kept.capacity, <size_t> 256)
        grown = PyMem_Realloc(kept.data, capacity)
        if grown == NULL:
            raise MemoryError
        kept.data = <uint8_t *> grown
        kept.capacity = capacity
    if length:
        memcpy(kept.data + kept.length, data, length)
    kept.length = needed
    return 0


cdef bytes kept_bytes(Kept *kept):
    if kept.length == 0:
        return b""
    return PyBytes_FromStringAndSize(<char *> kept.data, <Py_ssize_t> kept.length)


cdef void forget(Kept *kept) noexcept:
    kept.length = 0
    if kept.capacity > KEPT_AT_REST:
        release(kept)


cdef void release(Kept *kept) noexcept:
    PyMem_Free(kept.data)
    kept.data = NULL
    kept.length = 0
    kept.capacity = 0


cdef int write_all(int fd, iovec *parts, int count) noexcept nogil:
    """Write every part, none of them empty. Returns 0, or the errno of the write that failed."""
    cdef ssize_t written
    while count > 0:
        written = writev(fd, parts, count)
        if written < 0:
            if errno == EINTR:
                continue
            return errno
        if written == 0:
            return EIO              # no file does this; without it, one that did would be an endless loop
        while count > 0 and <size_t> written >= parts.iov_len:
            written -= <ssize_t> parts.iov_len
            parts += 1
            count -= 1
        if count > 0:
            parts.iov_base = <char *> parts.iov_base + written
            parts.iov_len -= <size_t> written
    return 0


cdef class Overflow:
    """Who keeps small data sets in memory, and gives a file to others."""

    def __dealloc__(self):
        release(&self.small)

    cdef int descriptor(self) noexcept:
        return -EIO


@cython.final
cdef class Sink:
    """Takes the fragments of one data set after another; what it cannot take any more is dropped."""

    def __cinit__(self):
        self.fd = -1

    def __dealloc__(self):
        release(&self.memory)

    cdef int open(self, int fd, bytes head, bint in_memory) except -1:
        self.discard()
        self.fd = fd if fd >= 0 else -1
        self.head = head if fd >= 0 and head else None
        self.in_memory = in_memory
        self.write_errno = 0
        self.first = NULL
        self.first_length = 0
        self.written = self.started = 0
        return 0

    cdef int open_small(self, bytes head, size_t limit, Overflow overflow) except -1:
        """Keep head and data set in memory up to `limit`; what is larger goes where `overflow` says."""
        self.open(-1, None, False)
        # First of all: a data set behind a head that there was no memory for would be no Part 10 file.
        keep(&self.memory, <const uint8_t *> PyBytes_AS_STRING(head), <size_t> PyBytes_GET_SIZE(head))
        self.in_memory = True
        self.overflow = overflow
        self.small_limit = limit
        return 0

    cdef int spill(self) except -1:
        """Go over from memory to a descriptor; where that fails nothing more is taken."""
        cdef iovec part
        cdef int fd = self.overflow.descriptor()
        cdef int error = -fd if fd < 0 else 0
        if not error:
            part.iov_base = self.memory.data
            part.iov_len = self.memory.length
            self.written = <int64_t> self.memory.length
            error = spend(fd, self.written) or write_all(fd, &part, 1)
        self.discard()
        release(&self.memory)
        if error:
            self.write_errno = error
        else:
            self.fd = fd
        return 0

    cdef int put(self, Gather *gather, const uint8_t *data, size_t length) except -1:
        """Keep a fragment, or note it for the next writev; write first when the array is full."""
        if self.first_length == 0:
            self.first = data
            self.first_length = length
        if self.in_memory:
            if self.overflow is None or self.memory.length + length <= self.small_limit:
                return keep(&self.memory, data, length)
            self.spill()
        if gather.count == GATHER_MAX:
            self.flush(gather)
        if self.fd < 0:
            return 0
        self.put_head(gather)
        gather.parts[gather.count].iov_base = <void *> data
        gather.parts[gather.count].iov_len = length
        gather.count += 1
        gather.length += length
        return 0

    cdef int put_head(self, Gather *gather) except -1:
        """Note the head if it is still to be written; it then is the first part."""
        if self.head is not None and gather.count == 0:
            gather.parts[0].iov_base = PyBytes_AS_STRING(self.head)
            gather.parts[0].iov_len = <size_t> PyBytes_GET_SIZE(self.head)
            gather.count = 1
            gather.length = <size_t> PyBytes_GET_SIZE(self.head)
        return 0

    cdef int flush(self, Gather *gather) except -1:
        """Write what is noted. A failure is kept in `write_errno`, and the sink takes no more."""
        cdef int error
        if gather.count == 0:
            return 0
        error = spend(self.fd, <int64_t> gather.length)
        if error:
            pass
        elif gather.length < SHORT_WRITE:
            error = write_all(self.fd, gather.parts, gather.count)
        else:
            self.writing = True
            with nogil:
                error = write_all(self.fd, gather.parts, gather.count)
            self.writing = False
        self.written += <int64_t> gather.length
        gather.count = 0
        gather.length = 0
        if self.early and self.written - self.started >= EARLY_STEP:
            sync_file_range(self.fd, self.started, self.written - self.started, SYNC_FILE_RANGE_WRITE)
            self.started = self.written
        self.head = None
        if error:
            self.write_errno = error
            self.discard()
        return 0

    cdef int discard(self) except -1:
        """Take no more; parts noted before point at the head and must be gone first."""
        self.fd = -1
        self.head = None
        self.in_memory = False
        self.overflow = None
        forget(&self.memory)
        return 0
