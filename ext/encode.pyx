"""Encoder of P-DATA-TF PDUs (PS3.8 9.3.5) from a command set in memory or a data set in a file.

Each PDU carries one PDV. Fragments have an even length (PS3.8 Annex E) if the peer's maximum PDU length
leaves room for two bytes. One preadv(2) reads the bytes of a data set into the gaps between the headers, so
they are not copied again in user space.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy
from posix.uio cimport iovec, preadv

from ingest.ext.byte_order cimport put_big_32

import os

__all__ = ["DataSetEncoder", "encode_p_data"]

cdef int SHORT_FILE = -1            # differs from every errno, because those are positive


cdef void write_headers(uint8_t *at, int context_id, uint64_t length, bint command, bint last) noexcept nogil:
    """Write the PDU header and the PDV header, 12 bytes, for a fragment of `length` bytes."""
    at[0] = 0x04                                # PS3.8 Table 9-22, byte 1: PDU-type
    at[1] = 0x00                                # byte 2: reserved
    put_big_32(at + 2, length + PDV_OVERHEAD)       # bytes 3-6: PDU-length
    put_big_32(at + 6, length + 2)                  # Table 9-23, bytes 1-4: item-length
    at[10] = <uint8_t> context_id               # byte 5: presentation-context-ID
    at[11] = (1 if command else 0) | (2 if last else 0)     # byte 6, PS3.8 E.2: message control header


cdef uint64_t compute_fragment_limit(long long max_pdu_length) except 0:
    """Compute the longest fragment that fits a maximum PDU length (PS3.8 D.1; 0 means no limit).

    The result is even, except that a limit of 7 bytes leaves fragments of one byte.
    """
    cdef uint64_t limit
    if max_pdu_length == 0:
        max_pdu_length = 0xFFFFFFFE             # the largest even value of the 32-bit PDU-length field
    if max_pdu_length <= PDV_OVERHEAD or max_pdu_length > 0xFFFFFFFF:
        raise ValueError(f"a maximum PDU length of {max_pdu_length} bytes is neither 0 nor 7 to 2^32 - 1")
    limit = <uint64_t> max_pdu_length - PDV_OVERHEAD
    return limit if limit < 2 else limit & ~<uint64_t> 1


cdef int check_context_id(int context_id) except -1:
    if context_id < 1 or context_id > 255 or not context_id & 1:
        raise ValueError(f"{context_id} is no presentation context ID (odd, 1 to 255)")
    return 0


def encode_p_data(int context_id, bytes command not None, long long max_pdu_length):
    """Encode a command set as P-DATA-TF PDUs of one PDV each.

    Args:
        context_id: Presentation context ID, odd, 1 to 255.
        command: The command set, Implicit VR Little Endian.
        max_pdu_length: The peer's maximum length (PS3.8 D.1), at least 7 bytes. 0: no limit.

    Raises:
        ValueError: The context ID or the maximum length is out of range.
    """
    cdef uint64_t limit = compute_fragment_limit(max_pdu_length)
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


# The garbage collector does not track this class (no_gc). Otherwise it could clear `view`, and `buffer` would
# point into freed memory. No field refers back to the encoder, so no reference cycle goes uncollected.
@cython.final
@cython.no_gc
cdef class DataSetEncoder:
    """Encodes the data set of a file as P-DATA-TF PDUs, one buffer of whole PDUs at a time.

    Args:
        max_pdu_length: The peer's maximum length (PS3.8 D.1), at least 7 bytes. 0: no limit.
        buffer_size: Size of the buffer in bytes, at least 14. It also limits the length of a PDU.

    Raises:
        ValueError: An argument is out of range.
    """

    def __cinit__(self, long long max_pdu_length, long long buffer_size=131072):
        cdef unsigned char[::1] memory
        if buffer_size < HEADERS_LENGTH + 2 or buffer_size > 0x40000000:
            raise ValueError(f"a buffer of {buffer_size} bytes is not between 14 bytes and 1 GiB")
        self.fragment = (<uint64_t> buffer_size - HEADERS_LENGTH) & ~<uint64_t> 1
        self.fragment = min(self.fragment, compute_fragment_limit(max_pdu_length))
        self.capacity = <uint64_t> buffer_size
        self.view = memoryview(bytearray(buffer_size))
        memory = self.view
        self.buffer = &memory[0]     # stays valid: a bytearray cannot be resized while `view` exports it
        self.fd = -1
        self.is_last_sent = True

    def start(
        self, int context_id, int fd, long long offset, long long length, bint pad=False, bint is_last=True
    ):
        """Start to encode the `length` bytes at `offset` of `fd`. This ends a data set that is not finished.

        The caller owns `fd` and keeps it open until `fill` has returned the last PDU. With `pad`, a byte 00H
        follows an odd `length`, as PS3.5 A.5 requires after a deflated stream. Without `is_last`, these bytes
        are a part of the data set that others follow: none of their fragments is marked as the last one, and
        `length` must not be 0.

        Raises:
            ValueError: An argument is out of range.
        """
        check_context_id(context_id)
        if fd < 0 or offset < 0 or length < 0 or length > 0x7FFFFFFFFFFFFFFF - offset:
            raise ValueError(f"{length} bytes at {offset} of descriptor {fd} is no part of a file")
        if length == 0 and not is_last:
            raise ValueError("a part without bytes needs no fragment")
        self.context_id = context_id
        self.fd = fd
        self.offset = offset
        self.left = <uint64_t> length
        # The padding byte goes into the last fragment. An odd data set leaves room there, because fragments
        # are even. Fragments of one byte leave none, so they are not padded; no real peer asks for them.
        self.padding = 1 if pad and length & 1 and self.fragment > 1 else 0
        self.is_last = is_last
        self.is_last_sent = False

    def fill(self):
        """Return the next whole P-DATA-TF PDUs. The view is empty after the last fragment.

        The view shows the encoder's only buffer, so the next call of `fill` overwrites its bytes. After an
        error the next call reads the same bytes again.

        Raises:
            OSError: The file cannot be read, or it ends before the data set.
        """
        cdef uint64_t count, length
        cdef int error
        if self.is_last_sent:
            return self.view[:0]
        count = (self.left + self.fragment - 1) // self.fragment if self.left else 1
        count = min(count, self.capacity // (self.fragment + HEADERS_LENGTH))
        length = min(self.left, count * self.fragment)
        with nogil:
            error = self.read_between_headers(length)
        if error == SHORT_FILE:
            raise OSError(f"the file ends before its data set: {self.left} bytes expected at {self.offset}")
        if error:
            raise OSError(error, os.strerror(error))
        self.offset += <int64_t> length
        self.left -= length
        self.is_last_sent = self.left == 0
        if self.is_last_sent:
            length += self.padding
        return self.view[:<Py_ssize_t> (length + count * HEADERS_LENGTH)]

    cdef int read_between_headers(self, uint64_t length) noexcept nogil:
        """Write the headers and read `length` bytes into the gaps. Return 0, an errno or SHORT_FILE.

        Each round covers up to PARTS_MAX fragments with one preadv.
        """
        # INVARIANT 4: memory does not grow with the image. The file is read into one buffer of fixed size.
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
                write_headers(at, self.context_id, step + padding, False, last and self.is_last)
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
        if length == 0:             # PS3.8 E.1: an empty data set is one empty last fragment
            write_headers(at, self.context_id, 0, False, True)
        return 0


cdef int read_all(int fd, iovec *parts, int count, int64_t offset) noexcept nogil:
    """Fill all parts from `offset`. No part may be empty. Return 0, an errno or SHORT_FILE."""
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
