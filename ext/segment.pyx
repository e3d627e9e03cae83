"""Segments: preallocated files that keep many small instances each, written by one listener.

A file of its own costs an instance two commits of the file system's journal, its blocks and its name. To
write over the blocks of a file that is there already costs neither, so that one fdatasync serves a whole
group. The layout is described in `ingest.spool.segment`, which reads them.
"""

cimport cython
from libc.errno cimport EINTR, EIO, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset, strcpy
from posix.fcntl cimport O_CREAT, O_EXCL, O_RDWR
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec
from posix.uio cimport iovec, pwritev
from posix.unistd cimport close, fdatasync, fsync, pwrite

from ext.octets cimport put_little
from ext.system cimport (
    O_CLOEXEC, openat, pthread_cond_destroy, pthread_cond_init, pthread_cond_signal, pthread_cond_wait,
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock, renameat, unlinkat,
)

__all__ = ["SEGMENT_BYTES", "Segments"]

cdef extern from *:
    """
    static inline uint64_t next_of(uint64_t *counter) {
        return __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
    }
    """
    uint64_t next_of(uint64_t *counter) nogil

cdef enum:
    RUN = 64                    # records of one pwritev
    ALIGNMENT = 64
    IN_ORDER = 1                # flag: written after its data, which has no CRC
    CRC_COVERS = 40             # bytes of a header

cdef int FILE_MODE = 0o640
cdef uint8_t ZEROS[65536]
cdef uint32_t CRC_TABLE[256]

globals().update(SEGMENT_BYTES=SEGMENT_BYTES)


cdef void make_crc_table() noexcept:
    """For the polynomial of RFC 1952 8, reflected."""
    cdef uint32_t value
    cdef int byte, _bit
    for byte in range(256):
        value = <uint32_t> byte
        for _bit in range(8):
            value = (value >> 1) ^ (0xEDB88320 if value & 1 else 0)
        CRC_TABLE[byte] = value


make_crc_table()


cdef uint32_t short_crc(const uint8_t *data, size_t length) noexcept nogil:
    """CRC-32 of a few bytes; those of data sets are the caller's, who has zlib's."""
    cdef uint32_t value = ~(<uint32_t> 0)
    cdef size_t at
    for at in range(length):
        value = CRC_TABLE[(value ^ data[at]) & 0xFF] ^ (value >> 8)
    return ~value


cdef char *put_hex(char *at, uint64_t value, int least) noexcept nogil:
    """A number in at least so many hexadecimal digits; returns the end."""
    cdef int digits = least, place
    while digits < 16 and value >> (4 * digits):
        digits += 1
    for place in range(digits):
        at[place] = b"0123456789abcdef"[(value >> (4 * (digits - 1 - place))) & 15]
    return at + digits


cdef inline uint64_t aligned(uint64_t offset, uint64_t to) noexcept nogil:
    return (offset + to - 1) & ~(to - 1)


cdef void write_header(uint8_t *at, Piece *piece, uint64_t segment, uint32_t flags) noexcept nogil:
    memset(at, 0, HEADER_BYTES)
    memcpy(at, b"DIRECORD", 8)
    put_little(at + 8, segment, 8)
    put_little(at + 16, piece.length, 8)
    put_little(at + 24, 0 if flags & IN_ORDER else piece.crc, 4)
    put_little(at + 28, flags, 4)
    put_little(at + 32, piece.received, 8)
    put_little(at + 40, short_crc(at, CRC_COVERS), 4)


cdef int write_at(int fd, const uint8_t *data, size_t length, uint64_t offset) noexcept nogil:
    """Write it all; 0 or an errno."""
    cdef ssize_t count
    while length:
        count = pwrite(fd, data, length, <long> offset)
        if count <= 0:
            if count < 0 and errno == EINTR:
                continue
            return errno if count < 0 else EIO
        data += count
        length -= <size_t> count
        offset += <uint64_t> count
    return 0


cdef int write_parts(int fd, iovec *parts, int count, uint64_t offset) noexcept nogil:
    """Write all parts, one behind the other; 0 or an errno."""
    cdef ssize_t done
    cdef int error
    while True:
        done = pwritev(fd, parts, count, <long> offset)
        if done >= 0 or errno != EINTR:
            break
    if done < 0:
        return errno
    offset += <uint64_t> done
    while count and <size_t> done >= parts.iov_len:
        done -= <ssize_t> parts.iov_len
        parts += 1
        count -= 1
    while count:                # cut short, by a signal or a disk that is nearly full
        error = write_at(fd, <uint8_t *> parts.iov_base + done, parts.iov_len - <size_t> done, offset)
        if error:
            return error
        offset += parts.iov_len - <size_t> done
        done = 0
        parts += 1
        count -= 1
    return 0


@cython.final
cdef class Segments:
    """The segments of one slot.

    Args:
        folder: Descriptor of the folder that they lie in; it stays the caller's.
        durable: Whether what is appended shall be on stable storage before `append` returns.
    """

    def __cinit__(self, int folder, *, bint durable):
        self.folder = folder
        self.durable = durable
        self.fd = -1
        pthread_mutex_init(&self.appending, NULL)
        pthread_mutex_init(&self.sparing, NULL)
        pthread_cond_init(&self.wanted, NULL)

    def __dealloc__(self):
        if self.fd >= 0:
            close(self.fd)
        pthread_cond_destroy(&self.wanted)
        pthread_mutex_destroy(&self.sparing)
        pthread_mutex_destroy(&self.appending)

    @property
    def current(self):
        """Name of the segment that is written to, or an empty string."""
        with nogil:
            pthread_mutex_lock(&self.appending)
        try:
            return (<bytes> self.name).decode() if self.fd >= 0 else ""
        finally:
            pthread_mutex_unlock(&self.appending)

    def run(self):
        """Keep a spare segment ready until `close`, for to make one takes long; the body of a thread."""
        cdef char name[SEGMENT_NAME]
        cdef int error
        with nogil:
            while True:
                pthread_mutex_lock(&self.sparing)
                while self.spare_count > SPARES // 2 - 1 and not self.closed:
                    pthread_cond_wait(&self.wanted, &self.sparing)
                if self.closed:
                    pthread_mutex_unlock(&self.sparing)
                    break
                pthread_mutex_unlock(&self.sparing)
                error = self.make(name)
                pthread_mutex_lock(&self.sparing)
                if error == 0 and self.spare_count < SPARES:
                    strcpy(self.spares[self.spare_count], name)
                    self.spare_count += 1
                elif error == 0:
                    unlinkat(self.folder, name, 0)
                else:
                    # A full disk: whoever needs a segment tries, and fails, by itself.
                    pthread_cond_wait(&self.wanted, &self.sparing)
                pthread_mutex_unlock(&self.sparing)

    def recycle(self, str name not None):
        """Use a segment again of whose records none is waited for; False: there are enough, and it stays."""
        cdef bytes old = name.encode("ascii")
        cdef char new[SEGMENT_NAME]
        cdef bint taken = False
        with nogil:
            pthread_mutex_lock(&self.sparing)
        if self.spare_count < SPARES:
            self.new_name(new, b".tmp")
            if renameat(self.folder, old, self.folder, new) == 0:
                strcpy(self.spares[self.spare_count], new)
                self.spare_count += 1
                taken = True
        pthread_mutex_unlock(&self.sparing)
        return taken

    def close(self):
        """End `run`."""
        pthread_mutex_lock(&self.sparing)
        self.closed = True
        pthread_cond_signal(&self.wanted)
        pthread_mutex_unlock(&self.sparing)

    cdef void append(self, Piece **pieces, size_t count) noexcept nogil:
        """Write instances behind each other and wait for stable storage; each piece says how it went."""
        cdef size_t at, first = 0, run
        cdef uint64_t room
        cdef int error
        pthread_mutex_lock(&self.appending)
        while first < count:
            # A group begins a page: what is promised already is not written again.
            self.at = aligned(self.at, PAGE_BYTES)
            error = 0
            if self.fd < 0 or self.at + HEADER_BYTES + pieces[first].length > SEGMENT_BYTES:
                error = self.rotate()
            run = 0
            room = self.at
            while error == 0 and first + run < count and run < RUN:
                room = aligned(room + HEADER_BYTES + pieces[first + run].length, ALIGNMENT)
                if room > SEGMENT_BYTES:
                    break
                run += 1
            if error:
                run = count - first
            else:
                error = self.append_run(pieces + first, run)
            for at in range(run):
                pieces[first + at].error = error
            first += run
        pthread_mutex_unlock(&self.appending)

    cdef int append_run(self, Piece **pieces, size_t count) noexcept nogil:
        """What fits in the current segment; 0 or an errno."""
        cdef uint8_t headers[RUN][HEADER_BYTES]
        cdef iovec parts[3 * RUN]
        cdef size_t each, padding
        cdef int used = 0, error
        cdef uint64_t start = self.at
        for each in range(count):
            write_header(headers[each], pieces[each], self.number, 0)
            pieces[each].offset = self.at + HEADER_BYTES
            memcpy(pieces[each].segment, self.name, SEGMENT_NAME)
            self.at = aligned(pieces[each].offset + pieces[each].length, ALIGNMENT)
            parts[used].iov_base = headers[each]
            parts[used].iov_len = HEADER_BYTES
            parts[used + 1].iov_base = pieces[each].data
            parts[used + 1].iov_len = pieces[each].length
            used += 2
            padding = <size_t> (self.at - pieces[each].offset - pieces[each].length)
            if padding:
                parts[used].iov_base = ZEROS
                parts[used].iov_len = padding
                used += 1
        error = write_parts(self.fd, parts, used, start)
        if error == 0 and fdatasync(self.fd) != 0:
            error = errno
        if error:
            close(self.fd)      # what of it reached the disk is not known: nothing more is put behind it
            self.fd = -1
        return error

    cdef int append_one(self, Piece *piece) noexcept nogil:
        """Without durability: the header comes last, so that a killed process leaves no torn record."""
        cdef uint8_t header[HEADER_BYTES]
        cdef int error = 0
        pthread_mutex_lock(&self.appending)
        if self.fd < 0 or self.at + HEADER_BYTES + piece.length > SEGMENT_BYTES:
            error = self.rotate()
        if error == 0:
            piece.offset = self.at + HEADER_BYTES
            memcpy(piece.segment, self.name, SEGMENT_NAME)
            write_header(header, piece, self.number, IN_ORDER)
            error = write_at(self.fd, piece.data, piece.length, piece.offset)
            if error == 0:
                error = write_at(self.fd, header, HEADER_BYTES, self.at)
            self.at = aligned(piece.offset + piece.length, ALIGNMENT)
        piece.error = error
        pthread_mutex_unlock(&self.appending)
        return error

    cdef int rotate(self) noexcept nogil:
        """Go on in another segment; 0 or an errno."""
        cdef char spare[SEGMENT_NAME]
        cdef int error
        if self.fd >= 0:
            close(self.fd)
            self.fd = -1
        error = self.take_spare(spare)
        if error:
            return error
        self.number = self.new_name(self.name, b".seg")
        if renameat(self.folder, spare, self.folder, self.name) != 0:
            return errno
        if self.durable and fsync(self.folder) != 0:
            return errno
        self.fd = openat(self.folder, self.name, O_RDWR | O_CLOEXEC)
        self.at = 0
        return 0 if self.fd >= 0 else errno

    cdef int take_spare(self, char *name) noexcept nogil:
        cdef bint found
        pthread_mutex_lock(&self.sparing)
        found = self.spare_count > 0
        if found:
            self.spare_count -= 1
            strcpy(name, self.spares[self.spare_count])
        pthread_cond_signal(&self.wanted)
        pthread_mutex_unlock(&self.sparing)
        return 0 if found else self.make(name)

    cdef int make(self, char *name) noexcept nogil:
        """A new file with all its blocks; 0 or an errno."""
        cdef uint64_t done = 0
        cdef int error = 0, fd
        self.new_name(name, b".tmp")
        fd = openat(self.folder, name, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, FILE_MODE)
        if fd < 0:
            return errno
        while error == 0 and done < SEGMENT_BYTES:
            # Written, not reserved: a block's first write changes metadata, which makes its fdatasync dear.
            error = write_at(fd, ZEROS, sizeof(ZEROS), done)
            done += sizeof(ZEROS)
        if error == 0 and self.durable and fsync(fd) != 0:
            error = errno
        close(fd)
        if error:
            unlinkat(self.folder, name, 0)
        return error

    cdef uint64_t new_name(self, char *name, const char *ending) noexcept nogil:
        """A name that was never used, which begins with the number that is returned."""
        cdef timespec now
        cdef uint64_t number
        cdef char *at
        clock_gettime(CLOCK_REALTIME, &now)
        number = <uint64_t> now.tv_sec * 1000000000 + <uint64_t> now.tv_nsec
        at = put_hex(name, number, 16)
        at[0] = c"-"
        at = put_hex(at + 1, next_of(&self.sequence), 1)
        strcpy(at, ending)
        return number
