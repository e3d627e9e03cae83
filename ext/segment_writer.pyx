"""Segments: preallocated files that keep many small instances each, written by one listener.

A file of its own costs an instance two commits of the file system's journal, its blocks and its name. To
write over the blocks of a file that is there already costs neither, so that one fdatasync serves a whole
group. The layout is described in `ingest.spool.segment`, which reads them.

Two mutexes guard a `Segments`, and the interpreter's lock is a third that any thread may hold. A thread that
holds a mutex and waits for the interpreter's lock deadlocks with one that holds the interpreter's lock and
waits for the mutex. Therefore a mutex is only held within one stretch that needs no interpreter (`nogil`) and
waits for no lock whose holder may need it: file locks are only tried. `appending` may be held while `sparing`
is taken, never the other way round.
"""

cimport cython
from libc.errno cimport EFBIG, EINTR, EIO, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset, strcpy
from posix.fcntl cimport O_CREAT, O_EXCL, O_RDWR
from posix.stat cimport fstat, struct_stat
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec
from posix.uio cimport iovec, pwritev
from posix.unistd cimport close, fdatasync, fsync, pwrite

from ingest.ext.checksum cimport crc_of
from ingest.ext.octets cimport put_little
from ingest.ext.system cimport (
    LOCK_EX, LOCK_NB, LOCK_SH, O_CLOEXEC, O_NOFOLLOW, flock, openat, pthread_cond_destroy, pthread_cond_init,
    pthread_cond_signal, pthread_cond_wait, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock,
    pthread_mutex_unlock, renameat, sync_folder, unlinkat,
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
    FLAGS = 3                   # 1: a reader of the first layout looks at no CRC; 2: this layout
    # Offsets in the header of a record, by the names of the table in `ingest.spool.segment`.
    MAGIC_AT = 0
    SEGMENT_NUMBER_AT = 8
    LENGTH_AT = 16
    DATA_CRC_AT = 24
    FLAGS_AT = 28
    RECEIVED_AT = 32
    FIRST_CRC_AT = 40           # CRC-32 of all bytes before, as in the first layout
    RECORD_NUMBER_AT = 44
    HEADER_OFFSET_AT = 48
    COMMITTED_AT = 52
    SECOND_CRC_AT = 56          # CRC-32C of all bytes before
    # Offsets in the trailer.
    TRAILER_SEGMENT_AT = 8
    TRAILER_COUNT_AT = 16
    TRAILER_FLAGS_AT = 20
    TRAILER_CRC_AT = 24         # CRC-32C of all bytes before
    TRAILER_BYTES = 28
    CLOSED = 1                  # flag of a trailer: nothing was promised behind it

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
    """CRC-32 of a few bytes."""
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


cdef void write_header(uint8_t *at, Piece *piece, uint64_t segment, uint32_t promised) noexcept nogil:
    memset(at, 0, HEADER_BYTES)
    memcpy(at + MAGIC_AT, b"DIRECORD", 8)
    put_little(at + SEGMENT_NUMBER_AT, segment, 8)
    put_little(at + LENGTH_AT, piece.length, 8)
    put_little(at + DATA_CRC_AT, crc_of(piece.data, piece.length), 4)
    put_little(at + FLAGS_AT, FLAGS, 4)
    put_little(at + RECEIVED_AT, piece.received, 8)
    put_little(at + FIRST_CRC_AT, short_crc(at, FIRST_CRC_AT), 4)
    put_little(at + RECORD_NUMBER_AT, piece.number, 4)
    put_little(at + HEADER_OFFSET_AT, piece.offset - HEADER_BYTES, 4)
    put_little(at + COMMITTED_AT, promised, 4)
    put_little(at + SECOND_CRC_AT, crc_of(at, SECOND_CRC_AT), 4)


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
        folder: Descriptor of the folder that they lie in; it stays the caller's, until after `close`.
        durable: Whether what is appended shall be on stable storage before `append` returns.
    """

    def __cinit__(self, int folder, *, bint durable):
        self.folder = folder
        self.durable = durable
        self.fd = -1
        pthread_mutex_init(&self.appending, NULL)
        pthread_mutex_init(&self.sparing, NULL)
        pthread_cond_init(&self.wanted, NULL)
        self.made = True

    def __dealloc__(self):
        if not self.made:
            return
        if self.fd >= 0:
            close(self.fd)
        pthread_cond_destroy(&self.wanted)
        pthread_mutex_destroy(&self.sparing)
        pthread_mutex_destroy(&self.appending)

    @property
    def current(self):
        """Name of the segment that is written to, or an empty string."""
        cdef char name[SEGMENT_NAME]
        with nogil:
            pthread_mutex_lock(&self.sparing)
            memcpy(name, self.name, SEGMENT_NAME)
            pthread_mutex_unlock(&self.sparing)
        return (<bytes> name).decode()

    def run(self):
        """Keep a spare segment ready until `close`, for to make one takes long; the body of a thread."""
        with nogil:
            self.keep_spares()

    def retire(self, str name not None):
        """Keep a segment for use again, or remove it if there are enough; its records must all be done.

        Returns:
            False if a reader or the writer holds it; it stays as it is.
        """
        cdef bytes old = name.encode("ascii")
        cdef const char *old_name = old
        cdef bint retired
        with nogil:
            retired = self.take_back(old_name)
        return retired

    def close(self):
        """End `run`, and say in the current segment that nothing comes after what it holds."""
        with nogil:
            pthread_mutex_lock(&self.sparing)
            self.closed = True
            pthread_cond_signal(&self.wanted)
            pthread_mutex_unlock(&self.sparing)
            pthread_mutex_lock(&self.appending)
            self.leave()
            pthread_mutex_unlock(&self.appending)

    cdef void keep_spares(self) noexcept nogil:
        cdef char name[SEGMENT_NAME]
        cdef int error
        while True:
            pthread_mutex_lock(&self.sparing)
            while self.spare_count > SPARES // 2 - 1 and not self.closed:
                pthread_cond_wait(&self.wanted, &self.sparing)
            if self.closed:
                pthread_mutex_unlock(&self.sparing)
                break
            pthread_mutex_unlock(&self.sparing)
            error = self.make(name)
            if error == 0:
                self.add_spare(name)
                continue
            # The disk is full or failing: a thread that needs a segment tries, and fails, by itself.
            pthread_mutex_lock(&self.sparing)
            if not self.closed:
                pthread_cond_wait(&self.wanted, &self.sparing)
            pthread_mutex_unlock(&self.sparing)

    cdef void add_spare(self, const char *name) noexcept nogil:
        """Keep a file that is ready to be used; remove it if there are enough."""
        cdef bint kept
        pthread_mutex_lock(&self.sparing)
        kept = self.spare_count < SPARES
        if kept:
            strcpy(self.spares[self.spare_count], name)
            self.spare_count += 1
        pthread_mutex_unlock(&self.sparing)
        if not kept:
            unlinkat(self.folder, name, 0)

    cdef bint take_back(self, const char *name) noexcept nogil:
        """As `retire`."""
        cdef char new[SEGMENT_NAME]
        cdef struct_stat facts
        cdef bint retired = False
        cdef int fd = openat(self.folder, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW)
        if fd < 0:
            return False
        # Readers and the writer hold a shared lock: with the exclusive one nobody marks or writes there.
        if flock(fd, LOCK_EX | LOCK_NB) == 0 and fstat(fd, &facts) == 0:
            self.new_name(new, b".tmp")
            if facts.st_size != SEGMENT_BYTES or facts.st_nlink != 1:
                retired = unlinkat(self.folder, name, 0) == 0
            elif renameat(self.folder, name, self.folder, new) == 0:
                retired = True
                # Before others may take it up: they try for a lock and do not wait.
                close(fd)
                self.add_spare(new)
                return retired
        close(fd)
        return retired

    cdef bint has_room(self, size_t length) noexcept nogil:
        """Whether `append_one` needs no other segment; for the one thread that calls that."""
        return self.fd >= 0 and self.fits(self.at, length)

    cdef bint fits(self, uint64_t at, size_t length) noexcept nogil:
        return at + HEADER_BYTES + length <= RECORDS_END and self.count < RECORDS_MAX

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
            if self.fd < 0 or not self.fits(self.at, pieces[first].length):
                error = self.rotate()
            run = 0
            room = self.at
            while error == 0 and first + run < count and run < RUN and self.count + run < RECORDS_MAX:
                room = aligned(room + HEADER_BYTES + pieces[first + run].length, ALIGNMENT)
                if room > RECORDS_END:
                    break
                run += 1
            if error:
                run = count - first
            elif run == 0:
                run, error = 1, EFBIG       # an instance that no segment has room for
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
            pieces[each].offset = self.at + HEADER_BYTES
            pieces[each].number = self.count + <uint32_t> each
            # All groups before this one are durable, for else none would come after them.
            write_header(headers[each], pieces[each], self.number, self.count)
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
            # What of it reached the disk is not known: nothing more is put behind it, and the trailer says,
            # if it can be written, that nothing of it was promised.
            self.at = start
            self.leave()
            return error
        self.count += <uint32_t> count
        self.write_trailer(0)
        return 0

    cdef int append_one(self, Piece *piece) noexcept nogil:
        """Without durability: the header comes last, so that a killed process leaves no torn record."""
        cdef uint8_t header[HEADER_BYTES]
        cdef int error = 0
        pthread_mutex_lock(&self.appending)
        if self.fd < 0 or not self.fits(self.at, piece.length):
            error = self.rotate()
            if error == 0 and not self.fits(self.at, piece.length):
                error = EFBIG
        if error == 0:
            piece.offset = self.at + HEADER_BYTES
            piece.number = self.count
            memcpy(piece.segment, self.name, SEGMENT_NAME)
            # Whoever reads this header, the record was promised: the answer follows at once.
            write_header(header, piece, self.number, self.count + 1)
            error = write_at(self.fd, piece.data, piece.length, piece.offset)
            if error == 0:
                error = write_at(self.fd, header, HEADER_BYTES, self.at)
            if error:
                self.leave()
            else:
                self.count += 1
                self.at = aligned(piece.offset + piece.length, ALIGNMENT)
        piece.error = error
        pthread_mutex_unlock(&self.appending)
        return error

    cdef void write_trailer(self, uint32_t flags) noexcept nogil:
        """Say where the next group will begin how many records are promised.

        It is not waited for and may fail: it only tells, after a crash, what is damaged from what was never
        promised. The next group is written over it, and says the same.
        """
        cdef uint8_t trailer[TRAILER_BYTES]
        memcpy(trailer, b"DICOMMIT", 8)
        put_little(trailer + TRAILER_SEGMENT_AT, self.number, 8)
        put_little(trailer + TRAILER_COUNT_AT, self.count, 4)
        put_little(trailer + TRAILER_FLAGS_AT, flags, 4)
        put_little(trailer + TRAILER_CRC_AT, crc_of(trailer, TRAILER_CRC_AT), 4)
        write_at(self.fd, trailer, TRAILER_BYTES, aligned(self.at, PAGE_BYTES))

    cdef void leave(self) noexcept nogil:
        """Write no more to the current segment."""
        if self.fd < 0:
            return
        self.write_trailer(CLOSED)
        close(self.fd)
        self.fd = -1
        pthread_mutex_lock(&self.sparing)
        self.name[0] = 0
        pthread_mutex_unlock(&self.sparing)

    cdef int rotate(self) noexcept nogil:
        """Go on in another segment; 0 or an errno."""
        cdef char spare[SEGMENT_NAME]
        cdef char name[SEGMENT_NAME]
        cdef uint64_t number
        cdef int error, fd = -1
        self.leave()
        error = self.open_spare(spare, &fd)
        if error:
            return error
        number = self.new_name(name, b".seg")
        if renameat(self.folder, spare, self.folder, name) != 0:
            error = errno
            unlinkat(self.folder, spare, 0)
        elif self.durable and sync_folder(self.folder) != 0:
            error = errno               # it holds nothing, and is retired as one whose records are all done
        if error:
            close(fd)
            return error
        pthread_mutex_lock(&self.sparing)
        memcpy(self.name, name, SEGMENT_NAME)
        pthread_mutex_unlock(&self.sparing)
        self.fd, self.number, self.count, self.at = fd, number, 0, 0
        return 0

    cdef int open_spare(self, char *name, int *fd) noexcept nogil:
        """A spare segment, open and locked before it has a name that others look for; 0 or an errno."""
        cdef bint made = False
        cdef int error
        while True:
            if not self.take_spare(name):
                made = True
                error = self.make(name)
                if error:
                    return error
            fd[0] = openat(self.folder, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW)
            error = errno if fd[0] < 0 else 0
            # As long as the lock is held, nobody gives the file another name or removes it.
            if error == 0 and flock(fd[0], LOCK_SH | LOCK_NB) == 0:
                return 0
            if error == 0:
                error = errno
                close(fd[0])
            unlinkat(self.folder, name, 0)
            if made:
                return error            # a new file, and not even that can be used

    cdef bint take_spare(self, char *name) noexcept nogil:
        cdef bint found
        pthread_mutex_lock(&self.sparing)
        found = self.spare_count > 0
        if found:
            self.spare_count -= 1
            strcpy(name, self.spares[self.spare_count])
        pthread_cond_signal(&self.wanted)
        pthread_mutex_unlock(&self.sparing)
        return found

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
