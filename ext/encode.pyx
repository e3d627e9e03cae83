"""P-DATA-TF PDUs (PS3.8 9.3.5) out of a command set in memory, and out of a data set in a file.

Every PDU made here carries one PDV. Fragments are even (PS3.8 Annex E) wherever the peer's maximum length
leaves room for two bytes; a data set's bytes go from the file to their place between the headers with no copy
of ours.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy
from posix.uio cimport iovec, preadv

from ingest.ext.octets cimport put_big_32

import os

__all__ = ["DataSetEncoder", "encode_p_data"]

cdef int SHORT_FILE = -1            # beside the errnos that read_around returns


cdef void write_headers(uint8_t *at, int context_id, uint64_t length, bint command, bint last) noexcept nogil:
    """The 12 bytes ahead of a fragment of `length` bytes."""
    at[0] = 0x04                                # PS3.8 Table 9-22, byte 1: PDU-type
    at[1] = 0x00                                # byte 2: reserved
    put_big_32(at + 2, length + PDV_OVERHEAD)       # bytes 3-6: PDU-length
    put_big_32(at + 6, length + 2)                  # Table 9-23, bytes 1-4: item-length
    at[10] = <uint8_t> context_id               # byte 5: presentation-context-ID
    at[11] = (1 if command else 0) | (2 if last else 0)     # PS3.8 E.2: message control header


cdef uint64_t fragment_limit(long long max_pdu_length) except 0:
    """Bytes of one fragment, with `max_pdu_length` after a P-DATA-TF's header (PS3.8 D.1; 0: no limit)."""
    cdef uint64_t limit
    if max_pdu_length == 0:
        max_pdu_length = 0xFFFFFFFE             # what PDU-length can say, and even
    if max_pdu_length <= PDV_OVERHEAD or max_pdu_length > 0xFFFFFFFF:
        raise ValueError(f"a maximum PDU length of {max_pdu_length} bytes is neither 0 nor 7 to 2^32 - 1")
    limit = <uint64_t> max_pdu_length - PDV_OVERHEAD
    return limit if limit < 2 else limit & ~<uint64_t> 1


cdef int check_context_id(int context_id) except -1:
    if context_id < 1 or context_id > 255 or not context_id & 1:
        raise ValueError(f"{context_id} is no presentation context ID (odd, 1 to 255)")
    return 0


def encode_p_data(int context_id, bytes command not None, long long max_pdu_length):
    """A command set as P-DATA-TF PDUs of one PDV each, the last one marked as last.

    Args:
        context_id: Presentation context ID, odd, 1 to 255.
        command: The command set, Implicit VR Little Endian.
        max_pdu_length: The peer's maximum length (PS3.8 D.1), 7 bytes or more; 0: no limit.

    Raises:
        ValueError: The context ID or the maximum length cannot be.
    """
    cdef uint64_t limit = fragment_limit(max_pdu_length)
    cdef uint64_t left = <uint64_t> PyBytes_GET_SIZE(command)
    cdef uint64_t count = 1 if left == 0 else (left + limit - 1) // limit
    cdef uint64_t length
    cdef bytes encoded
    cdef uint8_t *target
    cdef const uint8_t *source = <const uint8_t *> PyBytes_AS_STRING(command)
    check_context_id(context_id)
    encoded = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> (left + count * HEADERS_LENGTH))
    target = <uint8_t *> PyBytes_AS_STRING(encoded)
    while count > 0:
        length = min(left, limit)
        write_headers(target, context_id, length, True, count == 1)
        memcpy(target + HEADERS_LENGTH, source, <size_t> length)
        target += HEADERS_LENGTH + length
        source += length
        left -= length
        count -= 1
    return encoded


# Hidden from the collector, so that `view` outlives `buffer`; nothing that an encoder holds leads back to it.
@cython.final
@cython.no_gc
cdef class DataSetEncoder:
    """Turns the data set of a file into P-DATA-TF PDUs, a buffer of whole PDUs at a time.

    Args:
        max_pdu_length: The peer's maximum length (PS3.8 D.1), 7 bytes or more; 0: no limit.
        buffer_size: Bytes of the buffer, 14 or more; no PDU is longer than it.

    Raises:
        ValueError: One of them is out of range.
    """

    def __cinit__(self, long long max_pdu_length, long long buffer_size=131072):
        cdef unsigned char[::1] place
        if buffer_size < HEADERS_LENGTH + 2 or buffer_size > 0x40000000:
            raise ValueError(f"a buffer of {buffer_size} bytes is not between 14 bytes and 1 GiB")
        self.fragment = (<uint64_t> buffer_size - HEADERS_LENGTH) & ~<uint64_t> 1
        self.fragment = min(self.fragment, fragment_limit(max_pdu_length))
        self.capacity = <uint64_t> buffer_size
        self.view = memoryview(bytearray(buffer_size))
        place = self.view
        self.buffer = &place[0]     # stays there: a bytearray that `view` exports cannot be resized
        self.fd = -1
        self.last_sent = True

    def start(self, int context_id, int fd, long long offset, long long length, bint pad=False):
        """Begin with the data set that is `length` bytes from `offset` of `fd`; what was under way is
        forgotten.

        `fd` stays the caller's and must stay open until `fill` is done. With `pad`, a 00H follows an odd
        `length`, as PS3.5 A.5 wants it after a deflate stream.

        Raises:
            ValueError: An argument is out of range.
        """
        check_context_id(context_id)
        if fd < 0 or offset < 0 or length < 0 or length > 0x7FFFFFFFFFFFFFFF - offset:
            raise ValueError(f"{length} bytes at {offset} of descriptor {fd} is no part of a file")
        self.context_id = context_id
        self.fd = fd
        self.offset = offset
        self.left = <uint64_t> length
        # Even fragments leave room for it in the last one; 1-byte fragments, which nobody asks for, do not.
        self.padding = 1 if pad and length & 1 and self.fragment > 1 else 0
        self.last_sent = False

    def fill(self):
        """The next whole P-DATA-TF PDUs, empty when the last fragment was given before.

        The view is of the encoder's one buffer and holds until `fill` is called again. After an error the
        same bytes are tried again.

        Raises:
            OSError: The file cannot be read, or ends before the data set does.
        """
        cdef uint64_t count, length
        cdef int error
        if self.last_sent:
            return self.view[:0]
        count = (self.left + self.fragment - 1) // self.fragment if self.left else 1
        count = min(count, self.capacity // (self.fragment + HEADERS_LENGTH))
        length = min(self.left, count * self.fragment)
        with nogil:
            error = self.read_around(length)
        if error == SHORT_FILE:
            raise OSError(f"the file ends before its data set: {self.left} bytes expected at {self.offset}")
        if error:
            raise OSError(error, os.strerror(error))
        self.offset += <int64_t> length
        self.left -= length
        self.last_sent = self.left == 0
        if self.last_sent:
            length += self.padding
        return self.view[:<Py_ssize_t> (length + count * HEADERS_LENGTH)]

    cdef int read_around(self, uint64_t length) noexcept nogil:
        """Write the headers and read `length` bytes between them; 0, an errno or SHORT_FILE."""
        cdef iovec parts[PARTS_MAX]
        cdef uint8_t *at = self.buffer
        cdef uint64_t done = 0, step, filled, padding
        cdef bint last
        cdef int count, error
        while True:
            count = 0
            filled = 0
            while count < PARTS_MAX and done + filled < length:
                step = min(self.fragment, length - done - filled)
                last = done + filled + step == self.left
                padding = self.padding if last else 0
                write_headers(at, self.context_id, step + padding, False, last)
                parts[count].iov_base = at + HEADERS_LENGTH
                parts[count].iov_len = <size_t> step
                at += HEADERS_LENGTH + step
                if padding:
                    at[0] = 0x00
                filled += step
                count += 1
            error = read_all(self.fd, parts, count, self.offset + <int64_t> done)
            if error:
                return error
            done += filled
            if done == length:
                break
        if length == 0:             # PS3.8 E.1: a data set without bytes is one empty last fragment
            write_headers(at, self.context_id, 0, False, True)
        return 0


cdef int read_all(int fd, iovec *parts, int count, int64_t offset) noexcept nogil:
    """Fill every part, none of them empty, from `offset` on; 0, an errno or SHORT_FILE."""
    cdef ssize_t got
    while count > 0:
        got = preadv(fd, parts, count, offset)
        if got < 0:
            if errno == EINTR:
                continue
            return errno
        if got == 0:
            return SHORT_FILE
        offset += got
        while count > 0 and <size_t> got >= parts.iov_len:
            got -= <ssize_t> parts.iov_len
            parts += 1
            count -= 1
        if count > 0:
            parts.iov_base = <char *> parts.iov_base + got
            parts.iov_len -= <size_t> got
    return 0
