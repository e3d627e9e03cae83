from libc.stdint cimport uint8_t, uint64_t

from ingest.ext.pdu cimport PDUParser
from ingest.ext.event_loop cimport EventSource
from ingest.ext.sinks cimport ByteBuffer
from ingest.ext.tls_connection cimport BufferedConnection

# Why the owner of a channel has to act.
cdef enum Notice:
    ENDED = 1               # the network connection has ended or failed
    CLOSED = 2              # the peer has sent close_notify
    BLOCKED = 4             # the kernel's send buffer is full
    PAUSED = 8              # too many operations are outstanding: receive nothing
    UNREAD = 16             # the budget is spent and input is left: call `receive` in the next turn


cdef class FastPath:
    cdef bint handle_event(self, object event) except -1
    cdef int process_window(self) except -1


cdef class Channel(EventSource):
    cdef int fd
    cdef public object owner        # None once the association has ended
    cdef bint open                  # input is PDUs, perhaps within TLS
    cdef readonly int notices
    cdef readonly int first         # the first byte received; -1 before it
    cdef readonly int error         # errno of the network, 0 for its orderly end
    cdef readonly double progressed     # time of the peer's last progress, monotonic seconds
    cdef double received_at               # time of the last bytes, monotonic seconds
    cdef uint64_t completed         # the parser's count of PDUs at `progressed`
    cdef size_t unfinished          # bytes since `progressed`
    cdef int spent                  # part of this turn's budget that is used up
    cdef ByteBuffer rest                  # plaintext that this turn's budget did not reach
    cdef size_t rest_at             # bytes of `rest` that were parsed since
    cdef public bint ignores_input    # ignore all input
    cdef public bint discards_output  # queue no more output
    cdef PDUParser parser
    cdef object ciphertext
    # The exported buffer of `ciphertext`. It is behind a pointer, because Cython would clear a plain member
    # during garbage collection. `ciphertext` could then be destroyed while its buffer is still exported,
    # which crashes CPython.
    cdef Py_buffer *window
    cdef BufferedConnection connection  # None without TLS
    cdef public FastPath taker
    cdef bint has_received              # this turn has already read from the network
    cdef ByteBuffer pending               # plaintext to encrypt
    cdef ByteBuffer outgoing              # bytes to send

    cdef object take_next_event(self)
    cdef int send_before_error(self) except -1
    cdef int discard_input(self) except -1
    cdef int fill_window(self) except -1
    cdef bint has_tls_ended(self) except -1
    cdef int receive_bytes(self) except -1
    cdef int note_progress(self) noexcept
    cdef int save_rest(self) except -1
    cdef bint load_rest(self) except -1
    cdef Py_ssize_t decrypt(self, Py_ssize_t length) except -2
    cdef int queue_output(self, const uint8_t *data, size_t length) except -1
    cdef int send_queued(self) except -1
    cdef int send_outgoing(self) except -1
    cdef int request_quick_ack(self) noexcept
