"""Channel of one acceptor connection: one call handles socket, TLS records and PDUs of all received bytes.

A `FastPath` handles the usual events in C. Only the other events return to Python. The responses of one turn
are encrypted together and sent with one call. With two calls, the second part would wait for the peer's
delayed ACK of the first.
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
cdef size_t PROGRESS_BYTES = 16384  # bytes of an incomplete PDU that count as progress of its sender

# All other connections wait while one connection is served, and one window may hold thousands of C-ECHO
# requests. A budget therefore limits the events of a turn. An event that Python handles costs more. Input
# beyond the budget is copied out of the window, because the next connection receives into the same window.
cdef int BUDGET = 256
cdef int FAST_EVENT_COST = 1
cdef int PYTHON_EVENT_COST = 8
cdef size_t REST_PIECE_BYTES = 65536    # bytes of `rest` that are parsed at once

globals().update(BLOCKED=BLOCKED, CLOSED=CLOSED, ENDED=ENDED, PAUSED=PAUSED, UNREAD=UNREAD)


cdef class FastPath:
    """Handler that gets the events of a channel before Python does."""

    cdef bint handle_event(self, object event) except -1:
        """Handle an event. Return False to leave it to Python."""
        return False

    cdef int process_window(self) except -1:
        """Process data that still lies in the parser's window, before the window is overwritten."""
        return 0


@cython.final
cdef class Channel:
    """One connection of a listener.

    Args:
        fd: The non-blocking socket. The caller owns it.
        parser: Parser of the input. Its window is two TLS records larger than `ciphertext`.
        ciphertext: Buffer for bytes from the network, shared by all channels of a thread.
        owner: Object whose methods the EventLoop calls: `handle_event(event)` with the first event that
            Python must handle, or with None if there are only notices; `handle_exception(exception)`;
            `handle_writable()`; and `handle_readable()` until `plain` or `secure` is called.

    Attributes:
        notices: Bitwise OR of ENDED, CLOSED, BLOCKED, PAUSED and UNREAD: why the owner has to act.
        first: The first byte received after `plain` or `secure`; -1 before it.
        error: The errno with which the network failed, 0 for an orderly end.
        progressed: Time of the peer's last progress, in seconds of the monotonic clock. Progress is a
            complete PDU or another PROGRESS_BYTES of one. Fewer bytes do not count: otherwise a peer that
            sends one byte a minute would keep the connection for ever.
        ignores_input: Set this attribute to ignore all further input.
        discards_output: Set this attribute to queue no more output. Output that is queued already is still
            sent.
        taker: The FastPath that gets events first.
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
            self.owner.handle_writable()
        if not events & ~EPOLLOUT:
            return 0
        if not self.open or self.notices & PAUSED:
            self.owner.handle_readable()
            return 0
        try:
            event = self.take_next_event()
        except Exception as error:
            self.owner.handle_exception(error)
            return 0
        if event is not None or self.notices:
            self.owner.handle_event(event)
        return 0

    def plain(self):
        """Start to receive PDUs without TLS."""
        self.open = True

    def secure(self, BufferedConnection connection not None):
        """Start to receive PDUs within TLS.

        Args:
            connection: The TLS connection, with a complete handshake.

        Raises:
            ValueError: A window is too small.
        """
        cdef size_t length = connection.incoming.length - connection.incoming_at
        if self.parser.window.len < self.window.len + 2 * RECORD:
            raise ValueError("the parser's window must hold two TLS records more than that of the ciphertext")
        if length > <size_t> self.window.len:
            raise ValueError(f"{length} bytes of ciphertext are more than the window holds")
        self.open = True
        self.connection = connection
        if length:                      # these bytes came together with the end of the handshake
            memcpy(self.window.buf, connection.incoming.data + connection.incoming_at, length)
            connection.forget_incoming(length)
        self.parser.start_window(max(self.decrypt(<Py_ssize_t> length), 0))

    def receive(self):
        """Process the received bytes. Return the next event for Python, or None if there is none now.

        After an event, call this method again until it returns None. If `notices` then contains UNREAD, the
        budget of this turn is spent: call it again in the next turn.

        Raises:
            PeerError: The peer violated the upper layer protocol.
            ssl.SSLError: The peer violated TLS. The alert is sent.
        """
        return self.take_next_event()

    cdef object take_next_event(self):
        self.notices &= ~UNREAD
        if self.ignores_input:
            self.discard_input()
            return None
        try:
            while True:
                event = self.parser.parse_next_event() if self.spent < BUDGET else None
                while event is not None:
                    if self.taker is None or not self.taker.handle_event(event):
                        self.spent += PYTHON_EVENT_COST
                        return event
                    self.spent += FAST_EVENT_COST
                    if self.spent >= BUDGET:
                        break
                    event = self.parser.parse_next_event()
                if self.taker is not None:
                    self.taker.process_window()
                if self.spent >= BUDGET:
                    self.save_rest()
                    break
                if self.ignores_input or not self.fill_window():
                    break
        except BaseException:
            self.has_received = False
            self.spent = 0
            self.send_before_error()
            raise
        self.has_received = False
        self.spent = 0
        if self.rest.length:
            self.notices |= UNREAD
        self.note_progress()
        self.send_queued()
        if self.parser.is_within_message():
            self.request_quick_ack()
        return None

    def send(self, bytes data not None):
        """Encrypt and send data, in one TLS record if it fits."""
        self.queue_output(<const uint8_t *> PyBytes_AS_STRING(data), <size_t> PyBytes_GET_SIZE(data))
        self.send_queued()

    def send_raw(self, bytes data not None):
        """Send handshake bytes without encrypting them."""
        append_bytes(
            &self.outgoing, <const uint8_t *> PyBytes_AS_STRING(data), <size_t> PyBytes_GET_SIZE(data)
        )
        self.send_outgoing()

    def flush(self):
        """Send queued output until the kernel's send buffer is full."""
        self.notices &= ~BLOCKED
        self.send_queued()

    def close_notify(self):
        """Send queued output, then the close_notify alert of TLS."""
        self.send_queued()
        if self.connection is not None:
            self.connection.notify_close(&self.outgoing)
        self.send_queued()

    def detach(self):
        """Stop all input and output, because the socket is closed.

        The descriptor may be reused, and a late C-STORE response would go to the wrong peer.
        """
        self.fd = -1
        self.ignores_input = self.discards_output = True
        self.notices |= ENDED
        forget_buffer(&self.pending)
        forget_buffer(&self.outgoing)
        forget_buffer(&self.rest)

    @property
    def unsent(self):
        """Bytes of output that the kernel has not accepted yet."""
        return self.outgoing.length

    cdef int send_before_error(self) except -1:
        """Send the responses of this turn before an error of the peer is raised."""
        try:
            self.send_queued()
        except Exception:
            self.send_outgoing()             # encryption failed; `outgoing` contains the alert for the peer
        return 0

    cdef int discard_input(self) except -1:
        """Discard input, and notice the end of the network connection."""
        cdef Py_ssize_t count = recv(self.fd, self.window.buf, <size_t> self.window.len, MSG_DONTWAIT)
        if count == 0 or (count < 0 and errno != EAGAIN and errno != EINTR):
            self.error = errno if count < 0 else 0
            self.notices |= ENDED
        return 0

    cdef int fill_window(self) except -1:
        """Fill the parser's window. Return 0 if there is no more input now."""
        cdef Py_ssize_t count = 0
        if self.notices & (PAUSED | ENDED | CLOSED):
            return 0
        if self.rest.length:
            return self.load_rest()
        if self.has_tls_ended():
            count = self.decrypt(0)
        elif self.has_received or not self.receive_bytes():
            return 0
        else:
            self.has_received = True
            return 1
        if count > 0:
            self.parser.start_window(count)
            return 1
        return 0

    cdef bint has_tls_ended(self) except -1:
        """Whether TLS has ended. Another `decrypt` then reports how it ended."""
        return self.connection is not None and self.connection.end_code != 0

    cdef int receive_bytes(self) except -1:
        """Read once from the network. Return 0 if nothing was received or the connection has ended."""
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
        self.received_at = <double> now.tv_sec + <double> now.tv_nsec * 1e-9
        if not plain:
            count = self.decrypt(count)
        count = max(count, 0)
        self.unfinished += <size_t> count       # plaintext only: TLS's own messages are no progress
        self.parser.start_window(count)
        return 1

    cdef int note_progress(self) noexcept:
        """Update `progressed` if the input of this turn was progress."""
        if self.parser.completed_pdus != self.completed or self.unfinished >= PROGRESS_BYTES:
            self.completed = self.parser.completed_pdus
            self.unfinished = 0
            self.progressed = self.received_at
        return 0

    cdef int save_rest(self) except -1:
        """Keep the unparsed part of the window for the next turn."""
        cdef size_t left = self.parser.end - self.parser.position
        if self.rest.length:
            self.rest_at -= left                # the window was filled from `rest`: move back
        elif left:
            append_bytes(&self.rest, <const uint8_t *> self.parser.window.buf + self.parser.position, left)
        self.parser.position = self.parser.end
        return 0

    cdef bint load_rest(self) except -1:
        """Fill the parser's window with a piece of `rest`. Return False if there is none."""
        cdef size_t room = <size_t> self.parser.window.len
        cdef size_t length = min(self.rest.length - self.rest_at, room, REST_PIECE_BYTES)
        if length == 0:
            forget_buffer(&self.rest)
            self.rest_at = 0
            return False
        memcpy(self.parser.window.buf, self.rest.data + self.rest_at, length)
        self.rest_at += length
        self.parser.start_window(<Py_ssize_t> length)
        return True

    cdef Py_ssize_t decrypt(self, Py_ssize_t length) except -2:
        """Decrypt bytes of `ciphertext` into the parser\'s window. Return their number, or -1 at the end."""
        cdef Py_ssize_t count = self.connection.decrypt(
            <const uint8_t *> self.window.buf, <size_t> length,
            <uint8_t *> self.parser.window.buf, <size_t> self.parser.window.len,
            &self.outgoing,
        )
        if count < 0:
            self.notices |= CLOSED
        return count

    cdef int queue_output(self, const uint8_t *data, size_t length) except -1:
        """Queue data that is encrypted and sent at the end of this turn."""
        if self.discards_output:
            return 0
        return append_bytes(&self.pending, data, length)

    cdef int send_queued(self) except -1:
        """Encrypt and send the queued data."""
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
            self.send_outgoing()
        return 0

    cdef int send_outgoing(self) except -1:
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

    cdef int request_quick_ack(self) noexcept:
        """Make the kernel send a TCP ACK at once, while the peer's message is incomplete.

        DCMTK, and so Orthanc and many modalities, write command set and data set separately and leave Nagle's
        algorithm on. The second write then waits for the ACK of the first, which Linux delays by 40 ms. The
        kernel resets this option by itself, so it is set each time.
        """
        cdef int on = 1
        setsockopt(self.fd, IPPROTO_TCP, TCP_QUICKACK, &on, sizeof(on))
        return 0
