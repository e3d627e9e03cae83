"""Sinks for the fragments of a data set: a descriptor, memory, or nowhere. Only C code uses them."""

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

__all__ = ["Sink", "set_free_space_reserve"]

cdef size_t SHORT_WRITE = 65536     # below this size, releasing the GIL costs more than the write
cdef int64_t EARLY_STEP = 4194304   # bytes after which the kernel is asked to start writing to the disk
cdef size_t KEPT_AT_REST = 4096     # an idle association keeps no larger buffer; a usual command set fits


# INVARIANT 6: a full disk is a DICOM status. The reserve on the file system of the spool also holds while
# data sets are being received. Free space is measured again after `allowance` bytes. The allowance is small
# when little space is left, because other listeners use the same space.
cdef int64_t ALLOWANCE_MAX = 67108864
cdef int64_t reserve = 0
cdef int64_t writers = 1
cdef int64_t allowance = 0


def set_free_space_reserve(int64_t reserve_bytes, int64_t listeners):
    """Set the free space that must remain. Writes that would use it fail with ENOSPC, as on a full disk.

    Args:
        reserve_bytes: Free space to keep, in bytes. 0 means no reserve.
        listeners: Number of processes that write to the file system, including this one.
    """
    global reserve, writers, allowance
    reserve, writers, allowance = max(reserve_bytes, 0), max(listeners, 1), 0


cdef int check_free_space(int fd, int64_t length) noexcept nogil:
    """Count bytes before they are written. Return 0, or ENOSPC if they would use the reserve."""
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
        return 0                    # the write reports the error
    left = <int64_t> facts.f_bavail * <int64_t> facts.f_frsize - reserve
    if left < length:
        return ENOSPC
    allowance = max(min((left - length) // (2 * writers), ALLOWANCE_MAX), <int64_t> 0)
    return 0


# INVARIANT 4: memory does not grow with the image. Only bytes that arrived are buffered, and callers set a
# limit.
cdef int append_bytes(ByteBuffer *kept, const uint8_t *data, size_t length) except -1:
    """Append bytes. The capacity at most doubles, so it stays below twice the bytes that arrived."""
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


cdef bytes buffer_to_bytes(ByteBuffer *kept):
    if kept.length == 0:
        return b""
    return PyBytes_FromStringAndSize(<char *> kept.data, <Py_ssize_t> kept.length)


cdef void forget_buffer(ByteBuffer *kept) noexcept:
    kept.length = 0
    if kept.capacity > KEPT_AT_REST:
        release_buffer(kept)


cdef void release_buffer(ByteBuffer *kept) noexcept:
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
            return EIO              # no file system does this; the check prevents an endless loop
        while count > 0 and <size_t> written >= parts.iov_len:
            written -= <ssize_t> parts.iov_len
            parts += 1
            count -= 1
        if count > 0:
            parts.iov_base = <char *> parts.iov_base + written
            parts.iov_len -= <size_t> written
    return 0


cdef class SpillTarget:
    """Holds a small data set in memory, and provides a descriptor if the data set becomes too large."""

    def __dealloc__(self):
        release_buffer(&self.small)

    cdef int descriptor(self) noexcept:
        return -EIO


@cython.final
cdef class Sink:
    """Takes the fragments of one data set after another. After an error it drops fragments."""

    def __cinit__(self):
        self.fd = -1

    def __dealloc__(self):
        release_buffer(&self.memory)

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

    cdef int open_small(self, bytes head, size_t limit, SpillTarget overflow) except -1:
        """Hold head and data set in memory up to `limit` bytes. Larger ones go to the spill target."""
        self.open(-1, None, False)
        # Append the head first. If memory runs out for it, the data set alone would not be a Part 10 file.
        append_bytes(&self.memory, <const uint8_t *> PyBytes_AS_STRING(head), <size_t> PyBytes_GET_SIZE(head))
        self.in_memory = True
        self.overflow = overflow
        self.small_limit = limit
        return 0

    cdef int spill_to_descriptor(self) except -1:
        """Move the content from memory to a descriptor. If that fails, drop all further fragments."""
        cdef iovec part
        cdef int fd = self.overflow.descriptor()
        cdef int error = -fd if fd < 0 else 0
        if not error:
            part.iov_base = self.memory.data
            part.iov_len = self.memory.length
            self.written = <int64_t> self.memory.length
            error = check_free_space(fd, self.written) or write_all(fd, &part, 1)
        self.discard()
        release_buffer(&self.memory)
        if error:
            self.write_errno = error
        else:
            self.fd = fd
        return 0

    cdef int add_fragment(self, Gather *gather, const uint8_t *data, size_t length) except -1:
        """Append a fragment to memory, or to the batch of the next writev. Write a full batch first."""
        if self.first_length == 0:
            self.first = data
            self.first_length = length
        if self.in_memory:
            if self.overflow is None or self.memory.length + length <= self.small_limit:
                return append_bytes(&self.memory, data, length)
            self.spill_to_descriptor()
        if gather.count == GATHER_MAX:
            self.flush(gather)
        if self.fd < 0:
            return 0
        self.add_head(gather)
        gather.parts[gather.count].iov_base = <void *> data
        gather.parts[gather.count].iov_len = length
        gather.count += 1
        gather.length += length
        return 0

    cdef int add_head(self, Gather *gather) except -1:
        """Make the head the first part of the batch if it has not been written yet."""
        if self.head is not None and gather.count == 0:
            gather.parts[0].iov_base = PyBytes_AS_STRING(self.head)
            gather.parts[0].iov_len = <size_t> PyBytes_GET_SIZE(self.head)
            gather.count = 1
            gather.length = <size_t> PyBytes_GET_SIZE(self.head)
        return 0

    cdef int flush(self, Gather *gather) except -1:
        """Write the batch. On failure set `write_errno`, and drop all further fragments."""
        cdef int error
        if gather.count == 0:
            return 0
        error = check_free_space(self.fd, <int64_t> gather.length)
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
        """Drop all further fragments. The batch must be empty, because it may point at the head."""
        self.fd = -1
        self.head = None
        self.in_memory = False
        self.overflow = None
        forget_buffer(&self.memory)
        return 0
