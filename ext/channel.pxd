from libc.stdint cimport uint8_t, uint64_t

from ingest.ext.pdu cimport PDUParser
from ingest.ext.event_loop cimport EventSource
from ingest.ext.sinks cimport ByteBuffer
from ingest.ext.tls_connection cimport BufferedConnection

# Why the owner of a channel has to look at it.
cdef enum Notice:
    ENDED = 1               # the network has ended, or failed
    CLOSED = 2              # the peer's close_notify
    BLOCKED = 4             # the kernel takes no more for now
    PAUSED = 8              # too many operations are outstanding
    UNREAD = 16             # more has come than one turn may cost; `receive` is to be called in the next


cdef class FastPath:
    cdef bint take(self, object event) except -1
    cdef int window_goes(self) except -1


cdef class Channel(EventSource):
    cdef int fd
    cdef public object owner        # None once it is gone
    cdef bint open                  # what comes is PDUs, perhaps within TLS
    cdef readonly int notices
    cdef readonly int first         # the first byte of all; -1 before it
    cdef readonly int error         # errno of the network, 0 for its orderly end
    cdef readonly double progressed     # when the peer came on last, seconds of the monotonic clock
    cdef double heard               # when bytes came last
    cdef uint64_t completed         # the parser's count of PDUs at `progressed`
    cdef size_t unfinished          # bytes since `progressed`
    cdef int spent                  # of this turn's budget
    cdef ByteBuffer rest                  # what this turn's budget did not reach
    cdef size_t rest_at             # how much of it was looked at since
    cdef public bint deaf           # nothing that comes is looked at any more
    cdef public bint mute           # nothing is said any more
    cdef PDUParser parser
    cdef object ciphertext
    # Of `ciphertext`. Behind a pointer, for Cython would clear a member of the struct's own: the collector
    # could then take `ciphertext` apart while it still is exported, and CPython crashes.
    cdef Py_buffer *window
    cdef BufferedConnection connection  # None without TLS
    cdef public FastPath taker
    cdef bint received              # this turn's bytes are here
    cdef ByteBuffer pending               # to be encrypted
    cdef ByteBuffer outgoing              # to be sent

    cdef object next(self)
    cdef int answer_before_error(self) except -1
    cdef int drain(self) except -1
    cdef int get(self) except -1
    cdef bint ending(self) except -1
    cdef int fill(self) except -1
    cdef int note_progress(self) noexcept
    cdef int put_off(self) except -1
    cdef bint take_rest(self) except -1
    cdef Py_ssize_t decrypt(self, Py_ssize_t length) except -2
    cdef int say(self, const uint8_t *data, size_t length) except -1
    cdef int out(self) except -1
    cdef int transmit(self) except -1
    cdef int acknowledge(self) noexcept
