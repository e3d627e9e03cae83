"""Group commit: make many spool entries durable with one wait for the disk.

An entry begins as a file in the folder `partial/`. Committer threads take all waiting entries as one group:
fdatasync of each file, rename into `ready/`, and one fsync of the folder for the whole group. The threads
never need the Python interpreter. More entries arrive while a thread waits for the disk, so groups grow with
the load. Small entries go into a segment instead of separate files, if segments are enabled.
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

from ingest.ext.segment_writer cimport Piece, Segments, append_hex
from ingest.ext.sinks cimport SpillTarget, release_buffer, write_all
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
    GROUP_MAX = 64
    SHARES = 2              # a group takes this share of the queue: two groups can wait for the disk

cdef int FILE_MODE = 0o640


cdef void append_job(JobQueue *line, Job *job) noexcept nogil:
    job.next = NULL
    if line.last == NULL:
        line.first = job
    else:
        line.last.next = job
    line.last = job
    line.length += 1


cdef size_t detach_first(JobQueue *line, size_t count, Job **group) noexcept nogil:
    """Detach the first `count` jobs of a queue. The queue must hold that many."""
    cdef size_t at
    for at in range(count):
        group[at] = line.first
        line.first = line.first.next
    line.length -= count
    if line.first == NULL:
        line.last = NULL
    return count


cdef class Entry(SpillTarget):
    """A spool entry: an instance that is being received or committed.

    Attributes:
        fd: Descriptor of its file, open for reading and writing. -1 while the entry is held in memory.
        name: Name of the file in the partial folder.
        ready_name: Name of the file in the ready folder, known once the entry is committed.
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
        """Write an entry that is held in memory to a file. Return 0 or an errno."""
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
        release_buffer(&self.small)
        return error

    cdef int finished(self, int error) except -1:
        """Report that the entry is durable, or the error. Called on the thread of `Committer.collect`."""
        done, self.done = self.done, None
        done(OSError(error, os.strerror(error)) if error else None)
        return 0


cdef class Committer:
    """Commits spool entries. With `durable` an entry is reported only once it is on stable storage.

    Args:
        partial_dir: Descriptor of the folder of entries being received. The caller keeps it open.
        ready_dir: Descriptor of the folder of committed entries.
        durable: Wait for stable storage. Otherwise `commit` reports at once and needs no thread.
        segments: Segments for small entries. None: every entry has a file.

    Attributes:
        wakeup: Descriptor that is readable when `collect` has entries to report.
    """

    def __cinit__(self, int partial_dir, int ready_dir, *, bint durable, Segments segments=None):
        # INVARIANT 14: a spool reference never names a second instance. File names hold the time and this
        # number. A random start keeps names apart from those of an earlier owner of this slot in the same
        # nanosecond.
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
        """Create an entry with a file in the partial folder.

        Raises:
            OSError: The disk is full or failing.
        """
        cdef Entry entry = Entry.__new__(Entry)
        cdef int error = self.open(entry)
        if error:
            raise OSError(error, os.strerror(error))
        return entry

    cdef int open(self, Entry entry) noexcept:
        """Create the file of an entry. Return 0, or an errno if the disk is full or failing."""
        cdef timespec now
        cdef char *at
        cdef Job *job = &entry.job
        clock_gettime(CLOCK_REALTIME, &now)
        at = append_hex(job.partial, <uint64_t> now.tv_sec * 1000000000 + <uint64_t> now.tv_nsec, 16)
        at[0] = c"-"
        at = append_hex(at + 1, self.sequence, 1)
        at[0] = 0
        self.sequence += 1
        job.fd = openat(self.partial_dir, job.partial, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, FILE_MODE)
        memcpy(job.ready, job.partial, <size_t> (at - job.partial))
        memcpy(job.ready + (at - job.partial), b".dcm", 5)
        return 0 if job.fd >= 0 else errno

    def commit(self, Entry entry not None, int status, done not None):
        """Make an entry durable under its name in the ready folder, then call `done(error)` from `collect`.

        The file is closed in any case.

        Args:
            entry: The entry.
            status: Status of the C-STORE response. Unless it is 0, it becomes part of the file name.
            done: Called with None, or with the OSError that prevented the commit.
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
            entry.finished(self.commit_without_wait(&entry.job))
            return 0
        entry.job.entry = <void *> entry
        Py_INCREF(entry)
        with nogil:
            pthread_mutex_lock(&self.mutex)
            append_job(&self.segment_jobs if piece.data != NULL else &self.file_jobs, &entry.job)
            pthread_cond_signal(&self.work)
            pthread_mutex_unlock(&self.mutex)
        return 0

    cdef int commit_without_wait(self, Job *job) noexcept:
        """Commit without waiting for the disk. Return 0 or an errno."""
        cdef int error
        if job.piece.data == NULL:
            return self.close_and_rename(job)
        if self.segments.has_room(job.piece.length):
            return self.segments.append_record(&job.piece)     # releasing the GIL would cost more
        with nogil:
            error = self.segments.append_record(&job.piece)
        return error

    def discard(self, Entry entry not None):
        """Remove the file of an entry. Its descriptor stays open, because closing a large file takes long."""
        if entry.job.fd >= 0:
            unlinkat(self.partial_dir, entry.job.partial, 0)

    def run(self):
        """Thread body: commit submitted entries until `close`."""
        cdef Job *group[GROUP_MAX]
        cdef size_t count
        with nogil:
            while True:
                count = self.wait_for_group(group)
                if count == 0:
                    break
                self.commit_group(group, count)
                self.report_finished(group, count)

    def collect(self):
        """Report entries that became durable or failed. Call it when `wakeup` is readable.

        Returns:
            Exceptions that callbacks raised. An exception does not keep other callbacks from being called.
        """
        cdef uint64_t ignored
        cdef Job *job
        cdef Entry entry
        cdef list raised = []
        eventfd_read(self.wakeup, &ignored)
        with nogil:
            pthread_mutex_lock(&self.mutex)
            job = self.finished.first
            memset(&self.finished, 0, sizeof(JobQueue))
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
            # A signal handler may raise here, or memory may run out. The next call reports the other entries.
            if job != NULL:
                self.return_unreported(job)
        return raised

    cdef int return_unreported(self, Job *job) noexcept:
        """Put unreported jobs back to the front of the finished queue."""
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
        """Let the threads end once no entry waits."""
        with nogil:
            pthread_mutex_lock(&self.mutex)
            self.closed = True
            pthread_cond_broadcast(&self.work)
            pthread_mutex_unlock(&self.mutex)

    cdef size_t wait_for_group(self, Job **group) noexcept nogil:
        """Wait for the next group of one thread: files or segment records. 0 once closed and empty."""
        cdef size_t count = 0
        pthread_mutex_lock(&self.mutex)
        while True:
            if self.segment_jobs.length and not self.appending:
                # One thread at a time appends: the next group grows while it waits for the disk.
                self.appending = True
                count = min(<size_t> GROUP_MAX, self.segment_jobs.length)
                count = detach_first(&self.segment_jobs, count, group)
                break
            if self.file_jobs.length:
                count = (self.file_jobs.length + SHARES - 1) // SHARES
                count = detach_first(&self.file_jobs, min(<size_t> GROUP_MAX, count), group)
                break
            if self.closed and not self.segment_jobs.length:
                break
            pthread_cond_wait(&self.work, &self.mutex)
        pthread_mutex_unlock(&self.mutex)
        return count

    cdef void commit_group(self, Job **group, size_t count) noexcept nogil:
        cdef Piece *pieces[GROUP_MAX]
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
        if self.segment_jobs.length or self.closed:
            pthread_cond_broadcast(&self.work)
        pthread_mutex_unlock(&self.mutex)

    cdef void commit_files(self, Job **group, size_t count) noexcept nogil:
        # INVARIANT 1: durable before Success. The order below is the promise: fdatasync of each file, rename,
        # fsync of the folder. Only then `report` passes the jobs to `collect`, and the senders are answered.
        cdef size_t at
        cdef bint any_moved = False
        cdef int error
        if count > 1:
            # Starting all writes first allocates their blocks. One journal commit then serves the group.
            for at in range(count):
                sync_file_range(group[at].fd, 0, 0, SYNC_FILE_RANGE_WRITE)
        for at in range(count):
            group[at].error = 0
            # INVARIANT 6: a failing disk is a DICOM status. The errno reaches the C-STORE response as A700H.
            if fdatasync(group[at].fd) != 0:
                group[at].error = errno
                close(group[at].fd)
                group[at].fd = -1
                unlinkat(self.partial_dir, group[at].partial, 0)
        for at in range(count):
            if group[at].error == 0:
                group[at].error = self.close_and_rename(group[at])
                any_moved = any_moved or group[at].error == 0
        if any_moved and sync_folder(self.ready_dir) != 0:
            # The names may be lost in a power cut, so the entries fail. The files stay: they are complete,
            # and the sweep publishes them. The sender sends them again, and the store finds them identical.
            error = errno
            for at in range(count):
                if group[at].error == 0:
                    group[at].error = error

    cdef int close_and_rename(self, Job *job) noexcept nogil:
        """Close the file and rename it into the ready folder. On an error remove it and return the errno."""
        cdef int error = 0
        if close(job.fd) != 0 and errno != EINTR:
            error = errno
        job.fd = -1
        if error == 0 and renameat(self.partial_dir, job.partial, self.ready_dir, job.ready) != 0:
            error = errno
        if error:
            unlinkat(self.partial_dir, job.partial, 0)
        return error

    cdef void report_finished(self, Job **group, size_t count) noexcept nogil:
        cdef size_t at
        pthread_mutex_lock(&self.mutex)
        for at in range(count):
            append_job(&self.finished, group[at])
        pthread_mutex_unlock(&self.mutex)
        eventfd_write(self.wakeup, 1)
