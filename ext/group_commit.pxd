from libc.stdint cimport uint64_t

from ingest.ext.segment_writer cimport Piece, Segments
from ingest.ext.sinks cimport Overflow
from ingest.ext.system cimport pthread_cond_t, pthread_mutex_t

cdef enum:
    PARTIAL_SIZE = 40       # bytes of the name of an entry's file, with its NUL
    READY_SIZE = 56         # the same with a status

# What the threads need of an entry; they touch no Python object.
cdef struct Job:
    Job *next
    void *entry             # a reference to the Entry, held while the job is in the line
    int fd
    int error
    char partial[PARTIAL_SIZE]
    char ready[READY_SIZE]
    Piece piece             # instead of a file, where it has data

cdef struct Line:
    Job *first
    Job *last
    size_t length


cdef class Entry(Overflow):
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
    cdef bint appending         # a thread writes pieces
    cdef bint closed
    cdef bint made              # there is something to be taken down
    cdef uint64_t sequence
    cdef pthread_mutex_t mutex
    cdef pthread_cond_t work
    cdef Line waiting           # files
    cdef Line pieces            # for segments
    cdef Line finished

    cdef int open(self, Entry entry) noexcept
    cdef int submit(self, Entry entry) except -1
    cdef int commit_now(self, Job *job) noexcept
    cdef int put_back(self, Job *job) noexcept
    cdef size_t take(self, Job **group) noexcept nogil
    cdef void commit_files(self, Job **group, size_t count) noexcept nogil
    cdef void commit_group(self, Job **group, size_t count) noexcept nogil
    cdef void report(self, Job **group, size_t count) noexcept nogil
    cdef int move(self, Job *job) noexcept nogil
