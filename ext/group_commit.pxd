from libc.stdint cimport uint64_t

from ingest.ext.segment_writer cimport Piece, Segments
from ingest.ext.sinks cimport SpillTarget
from ingest.ext.system cimport pthread_cond_t, pthread_mutex_t

cdef enum:
    PARTIAL_SIZE = 40       # bytes of the file name of an entry, with its NUL
    READY_SIZE = 56         # the same with a status in the name

# The part of an entry that the threads use. Threads touch no Python object.
cdef struct Job:
    Job *next
    void *entry             # reference to the Entry, held while the job is queued
    int fd
    int error
    char partial[PARTIAL_SIZE]
    char ready[READY_SIZE]
    Piece piece             # if it has data: the segment record instead of a file

cdef struct JobQueue:
    Job *first
    Job *last
    size_t length


cdef class Entry(SpillTarget):
    cdef Job job
    cdef object done        # Python's callback, or None

    cdef int finished(self, int error) except -1
    cdef int write_out(self, Committer committer) noexcept


cdef class Committer:
    cdef readonly int wakeup
    cdef int partial_dir
    cdef int ready_dir
    cdef readonly Segments segments
    cdef bint durable
    cdef bint appending         # a thread writes segment_jobs
    cdef bint closed
    cdef bint made              # __cinit__ ran: mutex and condition exist
    cdef uint64_t sequence
    cdef pthread_mutex_t mutex
    cdef pthread_cond_t work
    cdef JobQueue file_jobs           # files
    cdef JobQueue segment_jobs            # for segments
    cdef JobQueue finished

    cdef int open(self, Entry entry) noexcept
    cdef int submit(self, Entry entry) except -1
    cdef int commit_without_wait(self, Job *job) noexcept
    cdef int return_unreported(self, Job *job) noexcept
    cdef size_t wait_for_group(self, Job **group) noexcept nogil
    cdef void commit_files(self, Job **group, size_t count) noexcept nogil
    cdef void commit_group(self, Job **group, size_t count) noexcept nogil
    cdef void report_finished(self, Job **group, size_t count) noexcept nogil
    cdef int close_and_rename(self, Job *job) noexcept nogil
