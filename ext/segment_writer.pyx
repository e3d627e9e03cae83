"""Writer of segments: preallocated files, each of which keeps many small instances of one listener.

A file per instance costs two commits of the file system's journal: one for its blocks, one for its name.
Overwriting the blocks of an existing file costs neither. One fdatasync therefore serves a whole group.
`ingest.spool.segment` reads segments and describes their layout.

Two mutexes guard a `Segments` object, and the GIL is a third lock that any thread may hold. A thread that
holds a mutex and waits for the GIL would deadlock with a thread that holds the GIL and waits for the mutex.
Two rules prevent this. A mutex is held only within one `nogil` block. While it is held, the thread waits for
no lock whose holder may need the GIL, so file locks are tried without waiting. The order of the mutexes is
`appending` before `sparing`, never the reverse.
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

from ingest.ext.checksum cimport compute_crc32c
from ingest.ext.byte_order cimport put_little
from ingest.ext.system cimport (
    LOCK_EX, LOCK_NB, LOCK_SH, O_CLOEXEC, O_NOFOLLOW, flock, openat, pthread_cond_destroy, pthread_cond_init,
    pthread_cond_signal, pthread_cond_wait, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock,
    pthread_mutex_unlock, renameat, sync_folder, unlinkat,
)

__all__ = ["SEGMENT_BYTES", "Segments"]

cdef extern from *:
    """
    static inline uint64_t increment_counter(uint64_t *counter) {
        return __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
    }
    """
    uint64_t increment_counter(uint64_t *counter) nogil

cdef enum:
    RUN = 64                    # records that one pwritev writes at most
    ALIGNMENT = 64
    FLAGS = 3                   # 1: readers of the first layout skip the data CRC; 2: this layout
    # Offsets in a record header. The names are those of the table in `ingest.spool.segment`.
    MAGIC_AT = 0
    SEGMENT_NUMBER_AT = 8
    LENGTH_AT = 16
    DATA_CRC_AT = 24
    FLAGS_AT = 28
    RECEIVED_AT = 32
    FIRST_CRC_AT = 40           # CRC-32 of all preceding bytes, as in the first layout
    RECORD_NUMBER_AT = 44
    HEADER_OFFSET_AT = 48
    COMMITTED_AT = 52
    SECOND_CRC_AT = 56          # CRC-32C of all preceding bytes
    # Offsets in the trailer.
    TRAILER_SEGMENT_AT = 8
    TRAILER_COUNT_AT = 16
    TRAILER_FLAGS_AT = 20
    TRAILER_CRC_AT = 24         # CRC-32C of all preceding bytes
    TRAILER_BYTES = 28
    CLOSED = 1                  # flag of a trailer: no committed record follows

cdef int FILE_MODE = 0o640
cdef uint8_t ZEROS[65536]
cdef uint32_t CRC_TABLE[256]

globals().update(SEGMENT_BYTES=SEGMENT_BYTES)


cdef void make_crc_table() noexcept:
    """Fill the table of CRC-32 for the reflected polynomial of RFC 1952 section 8."""
    cdef uint32_t value
    cdef int byte, _bit
    for byte in range(256):
        value = <uint32_t> byte
        for _bit in range(8):
            value = (value >> 1) ^ (0xEDB88320 if value & 1 else 0)
        CRC_TABLE[byte] = value


make_crc_table()


cdef uint32_t compute_short_crc(const uint8_t *data, size_t length) noexcept nogil:
    """Compute the CRC-32 of a few bytes."""
    cdef uint32_t value = ~(<uint32_t> 0)
    cdef size_t at
    for at in range(length):
        value = CRC_TABLE[(value ^ data[at]) & 0xFF] ^ (value >> 8)
    return ~value


cdef char *append_hex(char *at, uint64_t value, int least) noexcept nogil:
    """Write a number with at least `least` hexadecimal digits. Return the position after them."""
    cdef int digits = least, place
    while digits < 16 and value >> (4 * digits):
        digits += 1
    for place in range(digits):
        at[place] = b"0123456789abcdef"[(value >> (4 * (digits - 1 - place))) & 15]
    return at + digits


cdef inline uint64_t align_up(uint64_t offset, uint64_t to) noexcept nogil:
    return (offset + to - 1) & ~(to - 1)


cdef void write_header(uint8_t *at, Piece *piece, uint64_t segment, uint32_t committed_count) noexcept nogil:
    memset(at, 0, HEADER_BYTES)
    memcpy(at + MAGIC_AT, b"DIRECORD", 8)
    put_little(at + SEGMENT_NUMBER_AT, segment, 8)
    put_little(at + LENGTH_AT, piece.length, 8)
    put_little(at + DATA_CRC_AT, compute_crc32c(piece.data, piece.length), 4)
    put_little(at + FLAGS_AT, FLAGS, 4)
    put_little(at + RECEIVED_AT, piece.received, 8)
    put_little(at + FIRST_CRC_AT, compute_short_crc(at, FIRST_CRC_AT), 4)
    put_little(at + RECORD_NUMBER_AT, piece.number, 4)
    put_little(at + HEADER_OFFSET_AT, piece.offset - HEADER_BYTES, 4)
    put_little(at + COMMITTED_AT, committed_count, 4)
    put_little(at + SECOND_CRC_AT, compute_crc32c(at, SECOND_CRC_AT), 4)


cdef int write_at(int fd, const uint8_t *data, size_t length, uint64_t offset) noexcept nogil:
    """Write all bytes at this offset. Return 0 or an errno."""
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
    """Write all parts one after the other. Return 0 or an errno."""
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
    # A signal or a nearly full disk may have shortened the write. Write the rest part by part, so that the
    # next call reports the reason.
    while count:
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
    """The segments of one spool slot.

    Args:
        folder: Descriptor of the folder of the segments. The caller owns it and keeps it open until `close`
            has returned.
        durable: Whether `append` waits until the records are on stable storage.
    """

    def __cinit__(self, int folder, *, bint durable):
        self.folder = folder
        self.durable = durable
        self.fd = -1
        pthread_mutex_init(&self.appending, NULL)
        pthread_mutex_init(&self.sparing, NULL)
        pthread_cond_init(&self.wanted, NULL)
        self.is_initialized = True

    def __dealloc__(self):
        if not self.is_initialized:
            return
        if self.fd >= 0:
            close(self.fd)
        pthread_cond_destroy(&self.wanted)
        pthread_mutex_destroy(&self.sparing)
        pthread_mutex_destroy(&self.appending)

    @property
    def current(self):
        """Name of the current segment, or an empty string."""
        cdef char name[SEGMENT_NAME]
        with nogil:
            pthread_mutex_lock(&self.sparing)
            memcpy(name, self.name, SEGMENT_NAME)
            pthread_mutex_unlock(&self.sparing)
        return (<bytes> name).decode()

    def run(self):
        """Thread body: keep spare segments preallocated, because allocating one takes long."""
        with nogil:
            self.keep_spares()

    def retire(self, str name not None):
        """Turn a segment into a spare, or remove it if there are enough spares.

        No record of the segment may be needed any more.

        Returns:
            False if a reader or the writer has the segment locked. The segment is then unchanged.
        """
        cdef bytes old = name.encode("ascii")
        cdef const char *old_name = old
        cdef bint retired
        with nogil:
            retired = self.recycle_segment(old_name)
        return retired

    def close(self):
        """End `run` and close the current segment with a final trailer."""
        with nogil:
            pthread_mutex_lock(&self.sparing)
            self.closed = True
            pthread_cond_signal(&self.wanted)
            pthread_mutex_unlock(&self.sparing)
            pthread_mutex_lock(&self.appending)
            self.close_segment()
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
            error = self.create_segment(name)
            if error == 0:
                self.add_spare(name)
                continue
            # The disk is full or failing. Wait for the next request instead of trying in a loop. The thread
            # that needs a segment creates one itself and reports the error.
            pthread_mutex_lock(&self.sparing)
            if not self.closed:
                pthread_cond_wait(&self.wanted, &self.sparing)
            pthread_mutex_unlock(&self.sparing)

    cdef void add_spare(self, const char *name) noexcept nogil:
        """Register a spare segment, or remove the file if there are enough spares."""
        cdef bint kept
        pthread_mutex_lock(&self.sparing)
        kept = self.spare_count < SPARES
        if kept:
            strcpy(self.spares[self.spare_count], name)
            self.spare_count += 1
        pthread_mutex_unlock(&self.sparing)
        if not kept:
            unlinkat(self.folder, name, 0)

    cdef bint recycle_segment(self, const char *name) noexcept nogil:
        """Implement `retire` without the GIL."""
        cdef char new[SEGMENT_NAME]
        cdef struct_stat facts
        cdef bint retired = False
        cdef int fd = openat(self.folder, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW)
        if fd < 0:
            return False
        # INVARIANT 3: a held lock proves a live owner. Readers and the writer hold a shared lock. The
        # exclusive lock shows that no process writes records or marks to this file.
        if flock(fd, LOCK_EX | LOCK_NB) == 0 and fstat(fd, &facts) == 0:
            self.make_unique_name(new, b".tmp")
            if facts.st_size != SEGMENT_BYTES or facts.st_nlink != 1:
                retired = unlinkat(self.folder, name, 0) == 0
            elif renameat(self.folder, name, self.folder, new) == 0:
                retired = True
                # Close first, which releases the lock. A thread that opens the spare only tries to lock it.
                close(fd)
                self.add_spare(new)
                return retired
        close(fd)
        return retired

    cdef bint has_room(self, size_t length) noexcept nogil:
        """Whether `append_record` can use the current segment. Only the thread that appends may ask."""
        return self.fd >= 0 and self.fits_segment(self.at, length)

    cdef bint fits_segment(self, uint64_t at, size_t length) noexcept nogil:
        return at + HEADER_BYTES + length <= RECORDS_END and self.count < RECORDS_MAX

    cdef void append(self, Piece **pieces, size_t count) noexcept nogil:
        """Append instances, wait for stable storage and set the `error` of each piece."""
        cdef size_t at, first = 0, run
        cdef uint64_t room
        cdef int error
        pthread_mutex_lock(&self.appending)
        while first < count:
            # Each group begins a new page. Committed records share no page with later writes, so a torn
            # write cannot damage them.
            self.at = align_up(self.at, PAGE_BYTES)
            error = 0
            if self.fd < 0 or not self.fits_segment(self.at, pieces[first].length):
                error = self.open_next_segment()
            run = 0
            room = self.at
            while error == 0 and first + run < count and run < RUN and self.count + run < RECORDS_MAX:
                room = align_up(room + HEADER_BYTES + pieces[first + run].length, ALIGNMENT)
                if room > RECORDS_END:
                    break
                run += 1
            if error:
                run = count - first
            elif run == 0:
                run, error = 1, EFBIG       # the instance is larger than a segment
            else:
                error = self.append_run(pieces + first, run)
            for at in range(run):
                pieces[first + at].error = error
            first += run
        pthread_mutex_unlock(&self.appending)

    cdef int append_run(self, Piece **pieces, size_t count) noexcept nogil:
        """Append pieces that fit in the current segment, as one write. Return 0 or an errno."""
        cdef uint8_t headers[RUN][HEADER_BYTES]
        cdef iovec parts[3 * RUN]
        cdef size_t each, padding
        cdef int used = 0, error
        cdef uint64_t start = self.at
        for each in range(count):
            pieces[each].offset = self.at + HEADER_BYTES
            pieces[each].number = self.count + <uint32_t> each
            # All earlier records are committed: after a failed group the segment is closed.
            write_header(headers[each], pieces[each], self.number, self.count)
            memcpy(pieces[each].segment, self.name, SEGMENT_NAME)
            self.at = align_up(pieces[each].offset + pieces[each].length, ALIGNMENT)
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
        # INVARIANT 1: durable before Success. `Committer.commit_group` reports the records after this wait.
        if error == 0 and fdatasync(self.fd) != 0:
            error = errno
        if error:
            # It is unknown which bytes reached the disk, so append nothing more to this segment. The trailer,
            # if it can be written, shows that no record of this group was committed.
            self.at = start
            self.close_segment()
            return error
        self.count += <uint32_t> count
        self.write_trailer(0)
        return 0

    cdef int append_record(self, Piece *piece) noexcept nogil:
        """Append one instance without waiting for stable storage. Return 0 or an errno.

        The header is written last, so a killed process leaves no torn record.
        """
        cdef uint8_t header[HEADER_BYTES]
        cdef int error = 0
        pthread_mutex_lock(&self.appending)
        if self.fd < 0 or not self.fits_segment(self.at, piece.length):
            error = self.open_next_segment()
            if error == 0 and not self.fits_segment(self.at, piece.length):
                error = EFBIG
        if error == 0:
            piece.offset = self.at + HEADER_BYTES
            piece.number = self.count
            memcpy(piece.segment, self.name, SEGMENT_NAME)
            # The header counts its own record as committed, because the response follows at once.
            write_header(header, piece, self.number, self.count + 1)
            error = write_at(self.fd, piece.data, piece.length, piece.offset)
            if error == 0:
                error = write_at(self.fd, header, HEADER_BYTES, self.at)
            if error:
                self.close_segment()
            else:
                self.count += 1
                self.at = align_up(piece.offset + piece.length, ALIGNMENT)
        piece.error = error
        pthread_mutex_unlock(&self.appending)
        return error

    cdef void write_trailer(self, uint32_t flags) noexcept nogil:
        """Write the number of committed records to the offset at which the next group will begin.

        Nothing waits for this write, and it may fail. After a crash the trailer distinguishes a damaged
        record from a record that was never committed. The next group overwrites the trailer, and its
        headers carry the same number.
        """
        cdef uint8_t trailer[TRAILER_BYTES]
        memcpy(trailer, b"DICOMMIT", 8)
        put_little(trailer + TRAILER_SEGMENT_AT, self.number, 8)
        put_little(trailer + TRAILER_COUNT_AT, self.count, 4)
        put_little(trailer + TRAILER_FLAGS_AT, flags, 4)
        put_little(trailer + TRAILER_CRC_AT, compute_crc32c(trailer, TRAILER_CRC_AT), 4)
        write_at(self.fd, trailer, TRAILER_BYTES, align_up(self.at, PAGE_BYTES))

    cdef void close_segment(self) noexcept nogil:
        """Close the current segment with a final trailer."""
        if self.fd < 0:
            return
        self.write_trailer(CLOSED)
        close(self.fd)
        self.fd = -1
        pthread_mutex_lock(&self.sparing)
        self.name[0] = 0
        pthread_mutex_unlock(&self.sparing)

    cdef int open_next_segment(self) noexcept nogil:
        """Close the current segment and open another one. Return 0 or an errno."""
        cdef char spare[SEGMENT_NAME]
        cdef char name[SEGMENT_NAME]
        cdef uint64_t number
        cdef int error, fd = -1
        self.close_segment()
        error = self.open_spare(spare, &fd)
        if error:
            return error
        # INVARIANT 14: a spool reference never names a second instance. A reused file gets a new name.
        number = self.make_unique_name(name, b".seg")
        if renameat(self.folder, spare, self.folder, name) != 0:
            error = errno
            unlinkat(self.folder, spare, 0)
        elif self.durable and sync_folder(self.folder) != 0:
            error = errno               # the segment stays empty, and its reader retires it
        if error:
            close(fd)
            return error
        pthread_mutex_lock(&self.sparing)
        memcpy(self.name, name, SEGMENT_NAME)
        pthread_mutex_unlock(&self.sparing)
        self.fd, self.number, self.count, self.at = fd, number, 0, 0
        return 0

    cdef int open_spare(self, char *name, int *fd) noexcept nogil:
        """Open and lock a spare segment, or a new one if there is no spare. Return 0 or an errno.

        The lock is taken before the file gets a name that readers look for.
        """
        cdef bint made = False
        cdef int error
        while True:
            if not self.pop_spare(name):
                made = True
                error = self.create_segment(name)
                if error:
                    return error
            fd[0] = openat(self.folder, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW)
            error = errno if fd[0] < 0 else 0
            # While this lock is held, no other process renames or removes the file.
            if error == 0 and flock(fd[0], LOCK_SH | LOCK_NB) == 0:
                return 0
            if error == 0:
                error = errno
                close(fd[0])
            unlinkat(self.folder, name, 0)
            if made:
                return error            # a new file failed as well: trying again would not help

    cdef bint pop_spare(self, char *name) noexcept nogil:
        cdef bint found
        pthread_mutex_lock(&self.sparing)
        found = self.spare_count > 0
        if found:
            self.spare_count -= 1
            strcpy(name, self.spares[self.spare_count])
        pthread_cond_signal(&self.wanted)
        pthread_mutex_unlock(&self.sparing)
        return found

    cdef int create_segment(self, char *name) noexcept nogil:
        """Create a file and write all its blocks. Return 0 or an errno."""
        cdef uint64_t done = 0
        cdef int error = 0, fd
        self.make_unique_name(name, b".tmp")
        fd = openat(self.folder, name, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, FILE_MODE)
        if fd < 0:
            return errno
        while error == 0 and done < SEGMENT_BYTES:
            # Write zeros instead of calling fallocate: the first write to a reserved block changes metadata,
            # and the next fdatasync would have to commit the journal.
            error = write_at(fd, ZEROS, sizeof(ZEROS), done)
            done += sizeof(ZEROS)
        if error == 0 and self.durable and fsync(fd) != 0:
            error = errno
        close(fd)
        if error:
            unlinkat(self.folder, name, 0)
        return error

    cdef uint64_t make_unique_name(self, char *name, const char *ending) noexcept nogil:
        """Make a name that was never used. Return the number with which the name begins."""
        cdef timespec now
        cdef uint64_t number
        cdef char *at
        clock_gettime(CLOCK_REALTIME, &now)
        number = <uint64_t> now.tv_sec * 1000000000 + <uint64_t> now.tv_nsec
        at = append_hex(name, number, 16)
        at[0] = c"-"
        at = append_hex(at + 1, increment_counter(&self.sequence), 1)
        strcpy(at, ending)
        return number
