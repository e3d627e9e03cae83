"""One connection of a receiver: socket, TLS records and PDUs, in one call for all that has arrived.

What the protocol's happy path brings is taken by a `FastPath` in C; only events that it leaves come back to
Python. Responses that arise meanwhile are encrypted together and sent in one piece: two would make the second
wait for the peer's delayed ACK of the first.
"""

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t
from libc.string cimport memcpy, memmove
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from ingest.ext.pdu cimport PDUParser
from ingest.ext.sinks cimport forget_buffer, append_bytes, release_buffer
from ingest.ext.system cimport EPOLLOUT
from ingest.ext.tls_connection cimport BufferedConnection

__all__ = ["BLOCKED", "CLOSED", "ENDED", "PAUSED", "UNREAD", "Channel", "FastPath"]

cdef extern from "sys/socket.h" nogil:
    Py_ssize_t recv(int, void *, size_t, int)
    Py_ssize_t send(int, const void *, size_t, int)
    int setsockopt(int, int, int, const void *, unsigned int)
    enum: MSG_DONTWAIT
    enum: MSG_NOSIGNAL

cdef extern from "netinet/in.h" nogil:
    enum: IPPROTO_TCP

cdef extern from "netinet/tcp.h" nogil:
    enum: TCP_QUICKACK

cdef Py_ssize_t RECORD = 16384      # plaintext of the largest TLS record (RFC 8446 5.1)
cdef size_t PROGRESS = 16384        # bytes within a PDU that show that its sender goes on

# All other connections wait while one is served, so what one turn may cost is bounded: by events, of which
# those that Python handles count more. One window may hold thousands of C-ECHOs. What is beyond the budget
# has to leave the window, which the next connection receives into.
cdef int BUDGET = 256
cdef int COST_OF_TAKEN = 1
cdef int COST_OF_LEFT = 8
cdef size_t PIECE = 65536           # of what was put off, to be looked at together

globals().update(BLOCKED=BLOCKED, CLOSED=CLOSED, ENDED=ENDED, PAUSED=PAUSED, UNREAD=UNREAD)


cdef class FastPath:
    """Who takes events from a channel before Python sees them."""

    cdef bint take(self, object event) except -1:
        """Whether the event needs nobody else."""
        return False

    cdef int window_goes(self) except -1:
        """The bytes of this window will be overwritten."""
        return 0


@cython.final
cdef class Channel:
    """One connection.

    Args:
        fd: The socket, non-blocking; it stays the caller's.
        parser: Frames what comes; its window holds two TLS records more than `ciphertext`.
        ciphertext: Where the network's bytes go; shared by all channels of a thread.
        owner: Told by an EventLoop of the rest: `arrived(event)` with the first event to be handled
            or None when there are only notices, `failed(exception)`, `writable()`, and `readable()` as long
            as neither `plain` nor `secure` was called.

    Attributes:
        notices: ENDED, CLOSED, BLOCKED, PAUSED and UNREAD, or'ed: what the owner has to act upon.
        first: The first byte that came after `plain` or `secure`; -1 before it.
        error: The errno with which the network failed, 0 for its orderly end.
        progressed: When the peer came on last, seconds of the monotonic clock: it finished a PDU, or sent
            another PROGRESS bytes of one. Bytes alone are none: who sends one a minute would stay for ever.
        deaf: Set to look at nothing that comes any more.
        mute: Set to say nothing any more; what was said before still goes out.
        taker: Takes events first.
    """

    def __cinit__(self, int fd, PDUParser parser not None, ciphertext not None, owner):
        self.fd = fd
        self.owner = owner
        self.first = -1
        self.parser = parser
        self.ciphertext = ciphertext
        self.window = <Py_buffer *> PyMem_Calloc(1, sizeof(Py_buffer))
        if self.window == NULL:
            raise MemoryError
        PyObject_GetBuffer(ciphertext, self.window, PyBUF_WRITABLE)

    def __dealloc__(self):
        if self.window != NULL:
            PyBuffer_Release(self.window)
            PyMem_Free(self.window)
        release_buffer(&self.pending)
        release_buffer(&self.outgoing)
        release_buffer(&self.rest)

    cdef int ready(self, unsigned int events) except -1:
        if events & EPOLLOUT:
            self.owner.writable()
        if not events & ~EPOLLOUT:
            return 0
        if not self.open or self.notices & PAUSED:
            self.owner.readable()
            return 0
        try:
            event = self.next()
        except Exception as error:
            self.owner.failed(error)
            return 0
        if event is not None or self.notices:
            self.owner.arrived(event)
        return 0

    def plain(self):
        """From now on everything is PDUs."""
        self.open = True

    def secure(self, BufferedConnection connection not None):
        """From now on everything is in TLS.

        Args:
            connection: Its handshake is complete.

        Raises:
            ValueError: A window is too short for what it is to hold.
        """
        cdef size_t length = connection.incoming.length - connection.incoming_at
        if self.parser.window.len < self.window.len + 2 * RECORD:
            raise ValueError("the parser's window must hold two TLS records more than that of the ciphertext")
        if length > <size_t> self.window.len:
            raise ValueError(f"{length} bytes of ciphertext are more than the window holds")
        self.open = True
        self.connection = connection
        if length:                      # it came with the last bytes of the handshake
            memcpy(self.window.buf, connection.incoming.data + connection.incoming_at, length)
            connection.forget_incoming(length)
        self.parser.start_window(max(self.decrypt(<Py_ssize_t> length), 0))

    def receive(self):
        """Take what has arrived; the next event that is Python's, or None when there is no more now.

        After an event, call it again until None. If `notices` then has UNREAD, the turn was long enough: call
        it in the next one.

        Raises:
            PeerError: The peer broke the protocol.
            ssl.SSLError: It broke TLS; the alert is sent.
        """
        return self.next()

    cdef object next(self):
        self.notices &= ~UNREAD
        if self.deaf:
            self.drain()
            return None
        try:
            while True:
                event = self.parser.parse_next_event() if self.spent < BUDGET else None
                while event is not None:
                    if self.taker is None or not self.taker.take(event):
                        self.spent += COST_OF_LEFT
                        return event
                    self.spent += COST_OF_TAKEN
                    if self.spent >= BUDGET:
                        break
                    event = self.parser.parse_next_event()
                if self.taker is not None:
                    self.taker.window_goes()
                if self.spent >= BUDGET:
                    self.put_off()
                    break
                if self.deaf or not self.get():
                    break
        except BaseException:
            self.received = False
            self.spent = 0
            self.answer_before_error()
            raise
        self.received = False
        self.spent = 0
        if self.rest.length:
            self.notices |= UNREAD
        self.note_progress()
        self.out()
        if self.parser.is_within_message():
            self.acknowledge()
        return None

    def send(self, bytes data not None):
        """Encrypt and send, in one record where it fits in one."""
        self.say(<const uint8_t *> PyBytes_AS_STRING(data), <size_t> PyBytes_GET_SIZE(data))
        self.out()

    def send_raw(self, bytes data not None):
        """Send as it is: what the handshake says."""
        append_bytes(
            &self.outgoing, <const uint8_t *> PyBytes_AS_STRING(data), <size_t> PyBytes_GET_SIZE(data)
        )
        self.transmit()

    def flush(self):
        """Send what is unsent, as far as the kernel takes it."""
        self.notices &= ~BLOCKED
        self.out()

    def close_notify(self):
        """Say in TLS that nothing more is sent."""
        self.out()
        if self.connection is not None:
            self.connection.notify_close(&self.outgoing)
        self.out()

    def detach(self):
        """The socket is closed, and its number perhaps another's: nothing is received or sent any more."""
        self.fd = -1
        self.deaf = self.mute = True
        self.notices |= ENDED
        forget_buffer(&self.pending)
        forget_buffer(&self.outgoing)
        forget_buffer(&self.rest)

    @property
    def unsent(self):
        """Bytes that the peer has not taken."""
        return self.outgoing.length

    cdef int answer_before_error(self) except -1:
        try:
            self.out()
        except Exception:
            self.transmit()             # TLS is broken; its alert is among what is to be sent
        return 0

    cdef int drain(self) except -1:
        """Look at nothing but the network's end."""
        cdef Py_ssize_t count = recv(self.fd, self.window.buf, <size_t> self.window.len, MSG_DONTWAIT)
        if count == 0 or (count < 0 and errno != EAGAIN and errno != EINTR):
            self.error = errno if count < 0 else 0
            self.notices |= ENDED
        return 0

    cdef int get(self) except -1:
        """Fill the parser's window; 0 when there is nothing more to be had now."""
        cdef Py_ssize_t count = 0
        if self.notices & (PAUSED | ENDED | CLOSED):
            return 0
        if self.rest.length:
            return self.take_rest()
        if self.ending():
            count = self.decrypt(0)
        elif self.received or not self.fill():
            return 0
        else:
            self.received = True
            return 1
        if count > 0:
            self.parser.start_window(count)
            return 1
        return 0

    cdef bint ending(self) except -1:
        """Whether TLS has ended, and how is still to be told."""
        return self.connection is not None and self.connection.end_code != 0

    cdef int fill(self) except -1:
        """One read from the network; 0 when nothing has come, or it has ended."""
        cdef bint plain = self.connection is None
        cdef Py_buffer *window = &self.parser.window if plain else self.window
        cdef Py_ssize_t count
        cdef timespec now
        while True:
            count = recv(self.fd, window.buf, <size_t> window.len, MSG_DONTWAIT)
            if count >= 0 or errno != EINTR:
                break
        if count <= 0:
            if count == 0 or errno != EAGAIN:
                self.error = errno if count < 0 else 0
                self.notices |= ENDED
            return 0
        if self.first < 0:
            self.first = (<uint8_t *> window.buf)[0]
        clock_gettime(CLOCK_MONOTONIC, &now)
        self.heard = <double> now.tv_sec + <double> now.tv_nsec * 1e-9
        if not plain:
            count = self.decrypt(count)
        count = max(count, 0)
        self.unfinished += <size_t> count       # not what TLS says to itself
        self.parser.start_window(count)
        return 1

    cdef int note_progress(self) noexcept:
        """Note whether what came in this turn brought the peer on."""
        if self.parser.completed_pdus != self.completed or self.unfinished >= PROGRESS:
            self.completed = self.parser.completed_pdus
            self.unfinished = 0
            self.progressed = self.heard
        return 0

    cdef int put_off(self) except -1:
        """Keep what is left of the window for the next turn."""
        cdef size_t left = self.parser.end - self.parser.position
        if self.rest.length:
            self.rest_at -= left                # it came from there
        elif left:
            append_bytes(&self.rest, <const uint8_t *> self.parser.window.buf + self.parser.position, left)
        self.parser.position = self.parser.end
        return 0

    cdef bint take_rest(self) except -1:
        """Fill the parser's window with a piece of what was put off."""
        cdef size_t length = min(self.rest.length - self.rest_at, <size_t> self.parser.window.len, PIECE)
        if length == 0:
            forget_buffer(&self.rest)
            self.rest_at = 0
            return False
        memcpy(self.parser.window.buf, self.rest.data + self.rest_at, length)
        self.rest_at += length
        self.parser.start_window(<Py_ssize_t> length)
        return True

    cdef Py_ssize_t decrypt(self, Py_ssize_t length) except -2:
        cdef Py_ssize_t count = self.connection.decrypt(
            <const uint8_t *> self.window.buf, <size_t> length,
            <uint8_t *> self.parser.window.buf, <size_t> self.parser.window.len,
            &self.outgoing,
        )
        if count < 0:
            self.notices |= CLOSED
        return count

    cdef int say(self, const uint8_t *data, size_t length) except -1:
        """Have something encrypted and sent when this turn ends."""
        if self.mute:
            return 0
        return append_bytes(&self.pending, data, length)

    cdef int out(self) except -1:
        """Encrypt what is said and send it."""
        if self.notices & ENDED:
            forget_buffer(&self.pending)
            forget_buffer(&self.outgoing)
            return 0
        if self.pending.length:
            if self.connection is not None:
                self.connection.encrypt(self.pending.data, self.pending.length, &self.outgoing)
            else:
                append_bytes(&self.outgoing, self.pending.data, self.pending.length)
            forget_buffer(&self.pending)
        if self.outgoing.length:
            self.transmit()
        return 0

    cdef int transmit(self) except -1:
        cdef Py_ssize_t count
        cdef size_t done = 0
        if self.notices & (BLOCKED | ENDED):
            return 0
        while done < self.outgoing.length:
            count = send(
                self.fd, self.outgoing.data + done, self.outgoing.length - done, MSG_DONTWAIT | MSG_NOSIGNAL
            )
            if count >= 0:
                done += <size_t> count
            elif errno == EAGAIN:
                self.notices |= BLOCKED
                break
            elif errno != EINTR:
                self.error = errno
                self.notices |= ENDED
                break
        if done == self.outgoing.length or self.notices & ENDED:
            forget_buffer(&self.outgoing)
        elif done:
            self.outgoing.length -= done
            memmove(self.outgoing.data, self.outgoing.data + done, self.outgoing.length)
        return 0

    cdef int acknowledge(self) noexcept:
        """Have the kernel acknowledge at once what came, when the peer's message is not complete.

        DCMTK, and so Orthanc and many modalities, write command and data set apart and leave Nagle's
        algorithm on: the second write waits for the acknowledgement of the first, which Linux holds back for
        40 ms. The kernel forgets the option by itself, so it is set each time.
        """
        cdef int on = 1
        setsockopt(self.fd, IPPROTO_TCP, TCP_QUICKACK, &on, sizeof(on))
        return 0
