"""Entries of a spool: begun as files in one folder, made durable in groups and renamed into another.

Threads that run `Committer.run` take whatever waits and never need the interpreter: fdatasync of each file,
rename, one fsync of the folder for all. While they wait for the disk more arrives, so groups grow with the
load. Small entries need no file of their own where there are segments.
"""

from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EINTR, errno
from libc.stdint cimport uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy, memset
from posix.fcntl cimport O_CREAT, O_EXCL, O_RDWR
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec
from posix.uio cimport iovec
from posix.unistd cimport close, fdatasync

from ingest.ext.segment_writer cimport Piece, Segments, put_hex
from ingest.ext.sinks cimport Overflow, release, write_all
from ingest.ext.system cimport (
    O_CLOEXEC, SYNC_FILE_RANGE_WRITE, openat, pthread_cond_broadcast, pthread_cond_destroy, pthread_cond_init,
    pthread_cond_signal, pthread_cond_wait, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock,
    pthread_mutex_unlock, renameat, sync_file_range, sync_folder, unlinkat,
)

import os

__all__ = ["Committer", "Entry"]

cdef extern from "sys/eventfd.h" nogil:
    int eventfd(unsigned int, int)
    int eventfd_write(int, uint64_t)
    int eventfd_read(int, uint64_t *)
    enum: EFD_NONBLOCK
    enum: EFD_CLOEXEC

cdef enum:
    GROUP = 64
    SHARES = 2              # what waits is divided by so many: one group waits for the disk beside another

cdef int FILE_MODE = 0o640


cdef void append(Line *line, Job *job) noexcept nogil:
    job.next = NULL
    if line.last == NULL:
        line.first = job
    else:
        line.last.next = job
    line.last = job
    line.length += 1


cdef size_t cut(Line *line, size_t count, Job **group) noexcept nogil:
    """Take the first `count` off a line that has so many."""
    cdef size_t at
    for at in range(count):
        group[at] = line.first
        line.first = line.first.next
    line.length -= count
    if line.first == NULL:
        line.last = NULL
    return count


cdef class Entry(Overflow):
    """An instance being received: open for reading and writing until committed or discarded.

    Attributes:
        fd: The open file; -1 while it is small enough to need none.
        name: Of the file in the partial folder.
        ready_name: Of the file in the ready folder, known once it is committed.
    """

    def __cinit__(self):
        self.job.fd = -1

    @property
    def fd(self):
        return self.job.fd

    @property
    def name(self):
        return (<bytes> self.job.partial).decode()

    @property
    def ready_name(self):
        return (<bytes> self.job.ready).decode()

    cdef int write_out(self, Committer committer) noexcept:
        """Give a small entry a file after all; 0 or an errno."""
        cdef iovec part
        cdef int error
        part.iov_base = self.small.data
        part.iov_len = self.small.length
        error = committer.open(self)
        if not error:
            error = write_all(self.job.fd, &part, 1)
            if error:
                close(self.job.fd)
                self.job.fd = -1
                unlinkat(committer.partial_dir, self.job.partial, 0)
        release(&self.small)
        return error

    cdef int finished(self, int error) except -1:
        """Called on the owner's thread when it is durable, or cannot be."""
        done, self.done = self.done, None
        done(OSError(error, os.strerror(error)) if error else None)
        return 0


cdef class Committer:
    """Commits files from one folder into another, durable before they are reported unless `durable` is false.

    Args:
        partial_dir: Descriptor of the folder of what is being received; it stays the caller's.
        ready_dir: Of the folder of what is promised.
        durable: Whether to wait for stable storage. Without, `commit` reports at once and needs no thread.
        segments: Where small entries go; None: each is a file.

    Attributes:
        wakeup: Readable when `collect` has something to report.
    """

    def __cinit__(self, int partial_dir, int ready_dir, *, bint durable, Segments segments=None):
        # Another process that took this slot for its own, at the same nanosecond, would use other names.
        self.sequence = <uint64_t> int.from_bytes(os.urandom(4), "little") << 16
        self.partial_dir = partial_dir
        self.ready_dir = ready_dir
        self.durable = durable
        self.segments = segments
        pthread_mutex_init(&self.mutex, NULL)
        pthread_cond_init(&self.work, NULL)
        self.made = True
        self.wakeup = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        if self.wakeup < 0:
            raise OSError(errno, os.strerror(errno))

    def __dealloc__(self):
        if not self.made:
            return
        if self.wakeup >= 0:
            close(self.wakeup)
        pthread_cond_destroy(&self.work)
        pthread_mutex_destroy(&self.mutex)

    def begin(self):
        """A new entry with a file of its own in the partial folder.

        Raises:
            OSError: The disk is full or failing.
        """
        cdef Entry entry = Entry.__new__(Entry)
        cdef int error = self.open(entry)
        if error:
            raise OSError(error, os.strerror(error))
        return entry

    cdef int open(self, Entry entry) noexcept:
        """Give an entry its file; 0, or an errno where the disk is full or failing."""
        cdef timespec now
        cdef char *at
        cdef Job *job = &entry.job
        clock_gettime(CLOCK_REALTIME, &now)
        at = put_hex(job.partial, <uint64_t> now.tv_sec * 1000000000 + <uint64_t> now.tv_nsec, 16)
        at[0] = c"-"
        at = put_hex(at + 1, self.sequence, 1)
        at[0] = 0
        self.sequence += 1
        job.fd = openat(self.partial_dir, job.partial, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, FILE_MODE)
        memcpy(job.ready, job.partial, <size_t> (at - job.partial))
        memcpy(job.ready + (at - job.partial), b".dcm", 5)
        return 0 if job.fd >= 0 else errno

    def commit(self, Entry entry not None, int status, done not None):
        """Make an entry durable under its name in the ready folder, then call `done(error)` from `collect`.

        A `status` other than 0 becomes part of the name. The file is closed, whatever happens.
        """
        if status:
            snprintf(
                entry.job.ready, READY_SIZE, b"%s.%04X.dcm", entry.job.partial, <unsigned int> status & 0xFFFF
            )
        entry.done = done
        self.submit(entry)

    cdef int submit(self, Entry entry) except -1:
        cdef Piece *piece = &entry.job.piece
        cdef timespec now
        if entry.job.entry != NULL:
            raise RuntimeError("the entry is being committed already")
        if entry.small.length:
            clock_gettime(CLOCK_REALTIME, &now)
            piece.data, piece.length = entry.small.data, entry.small.length
            piece.received = <uint64_t> now.tv_sec * 1000 + <uint64_t> now.tv_nsec // 1000000
        if not self.durable:
            entry.finished(self.commit_now(&entry.job))
            return 0
        entry.job.entry = <void *> entry
        Py_INCREF(entry)
        with nogil:
            pthread_mutex_lock(&self.mutex)
            append(&self.pieces if piece.data != NULL else &self.waiting, &entry.job)
            pthread_cond_signal(&self.work)
            pthread_mutex_unlock(&self.mutex)
        return 0

    cdef int commit_now(self, Job *job) noexcept:
        """Without durability; 0 or an errno."""
        cdef int error
        if job.piece.data == NULL:
            return self.move(job)
        if self.segments.has_room(job.piece.length):
            return self.segments.append_one(&job.piece)     # to let others run would take longer
        with nogil:
            error = self.segments.append_one(&job.piece)
        return error

    def discard(self, Entry entry not None):
        """Remove an entry's file; its descriptor stays open: the last close of a large one takes long."""
        if entry.job.fd >= 0:
            unlinkat(self.partial_dir, entry.job.partial, 0)

    def run(self):
        """Commit what is submitted until `close`; the body of a thread."""
        cdef Job *group[GROUP]
        cdef size_t count
        with nogil:
            while True:
                count = self.take(group)
                if count == 0:
                    break
                self.commit_group(group, count)
                self.report(group, count)

    def collect(self):
        """Report what has become durable or failed; the owner's thread calls it when `wakeup` is readable.

        Returns:
            Exceptions that callbacks raised; none keeps the others from being called.
        """
        cdef uint64_t ignored
        cdef Job *job
        cdef Entry entry
        cdef list raised = []
        eventfd_read(self.wakeup, &ignored)
        with nogil:
            pthread_mutex_lock(&self.mutex)
            job = self.finished.first
            memset(&self.finished, 0, sizeof(Line))
            pthread_mutex_unlock(&self.mutex)
        try:
            while job != NULL:
                entry = <Entry> job.entry
                job = job.next
                entry.job.entry = NULL
                Py_DECREF(entry)            # `entry` holds another reference
                try:
                    entry.finished(entry.job.error)
                except Exception as error:
                    raised.append(error)
        finally:
            # After a signal's exception, or without memory for the list, the next call reports the others.
            if job != NULL:
                self.put_back(job)
        return raised

    cdef int put_back(self, Job *job) noexcept:
        """Put jobs in front of what is finished."""
        cdef Job *last = job
        cdef size_t count = 1
        while last.next != NULL:
            last = last.next
            count += 1
        with nogil:
            pthread_mutex_lock(&self.mutex)
            last.next = self.finished.first
            if last.next == NULL:
                self.finished.last = last
            self.finished.first = job
            self.finished.length += count
            pthread_mutex_unlock(&self.mutex)
        eventfd_write(self.wakeup, 1)
        return 0

    def close(self):
        """Let the threads end once nothing waits any more."""
        with nogil:
            pthread_mutex_lock(&self.mutex)
            self.closed = True
            pthread_cond_broadcast(&self.work)
            pthread_mutex_unlock(&self.mutex)

    cdef size_t take(self, Job **group) noexcept nogil:
        """What one thread commits next, either files or pieces; nothing once closed and done."""
        cdef size_t count = 0
        pthread_mutex_lock(&self.mutex)
        while True:
            if self.pieces.length and not self.appending:
                # By one thread: while it waits for the disk, the next group grows.
                self.appending = True
                count = cut(&self.pieces, min(<size_t> GROUP, self.pieces.length), group)
                break
            if self.waiting.length:
                count = (self.waiting.length + SHARES - 1) // SHARES
                count = cut(&self.waiting, min(<size_t> GROUP, count), group)
                break
            if self.closed and not self.pieces.length:
                break
            pthread_cond_wait(&self.work, &self.mutex)
        pthread_mutex_unlock(&self.mutex)
        return count

    cdef void commit_group(self, Job **group, size_t count) noexcept nogil:
        cdef Piece *pieces[GROUP]
        cdef size_t at
        if group[0].piece.data == NULL:
            self.commit_files(group, count)
            return
        for at in range(count):
            pieces[at] = &group[at].piece
        self.segments.append(pieces, count)
        for at in range(count):
            group[at].error = pieces[at].error
        pthread_mutex_lock(&self.mutex)
        self.appending = False
        if self.pieces.length or self.closed:
            pthread_cond_broadcast(&self.work)
        pthread_mutex_unlock(&self.mutex)

    cdef void commit_files(self, Job **group, size_t count) noexcept nogil:
        # INVARIANT 1: durable before Success. The order below is the promise: fdatasync of each file, rename,
        # fsync of the folder. Only then `report` passes the jobs to `collect`, and the senders are answered.
        cdef size_t at
        cdef bint any_moved = False
        cdef int error
        if count > 1:
            # Blocks are allocated as writing starts: one commit of the journal then serves the whole group.
            for at in range(count):
                sync_file_range(group[at].fd, 0, 0, SYNC_FILE_RANGE_WRITE)
        for at in range(count):
            group[at].error = 0
            if fdatasync(group[at].fd) != 0:
                group[at].error = errno
                close(group[at].fd)
                group[at].fd = -1
                unlinkat(self.partial_dir, group[at].partial, 0)
        for at in range(count):
            if group[at].error == 0:
                group[at].error = self.move(group[at])
                any_moved = any_moved or group[at].error == 0
        if any_moved and sync_folder(self.ready_dir) != 0:
            # The names are not safe. The files stay: they are whole, and the sweep hands them off; the
            # sender, which is told of a failure, sends them again, and the store finds them identical.
            error = errno
            for at in range(count):
                if group[at].error == 0:
                    group[at].error = error

    cdef int move(self, Job *job) noexcept nogil:
        """Close and rename; 0 or an errno, and then the file is gone."""
        cdef int error = 0
        if close(job.fd) != 0 and errno != EINTR:
            error = errno
        job.fd = -1
        if error == 0 and renameat(self.partial_dir, job.partial, self.ready_dir, job.ready) != 0:
            error = errno
        if error:
            unlinkat(self.partial_dir, job.partial, 0)
        return error

    cdef void report(self, Job **group, size_t count) noexcept nogil:
        cdef size_t at
        pthread_mutex_lock(&self.mutex)
        for at in range(count):
            append(&self.finished, group[at])
        pthread_mutex_unlock(&self.mutex)
        eventfd_write(self.wakeup, 1)
