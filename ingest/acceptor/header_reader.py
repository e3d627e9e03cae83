"""Reads the header of the PROXY protocol from a socket, and leaves all other bytes in the socket."""

import socket

from ingest.network.proxy_header import HEADER_MAX_BYTES, HeaderFault, ProxyHeader, parse_proxy_header


class HeaderReader:
    """The header of one connection.

    The first bytes of the sender may arrive together with the header. TLS, or the parser of PDUs, must get
    them. The reader therefore looks at the bytes first (MSG_PEEK), and takes only those of the header from
    the socket. Bytes of an incomplete header are taken at once: they would keep the socket readable, and the
    event loop would turn without pause.
    """

    def __init__(self) -> None:
        """Start without a byte."""
        self._taken = b""

    @property
    def has_begun(self) -> bool:
        """Whether a part of the header has arrived."""
        return bool(self._taken)

    def read(self, source: socket.socket, buffer: memoryview) -> ProxyHeader | HeaderFault | None:
        """Read what has arrived; return None if the header is not complete yet.

        Args:
            source: A non-blocking socket.
            buffer: At least `HEADER_MAX_BYTES` that may be overwritten.

        Raises:
            BlockingIOError: Nothing has arrived.
            ConnectionError: The peer has closed the connection.
            OSError: The network failed.
        """
        count = source.recv_into(buffer, HEADER_MAX_BYTES, socket.MSG_PEEK)
        if not count:
            raise ConnectionError("closed before the end of the PROXY header")
        header = parse_proxy_header(self._taken + bytes(buffer[:count]))
        if isinstance(header, HeaderFault):
            return header
        if isinstance(header, ProxyHeader):
            count = header.size - len(self._taken)
        taken = source.recv_into(buffer, count)
        self._taken += bytes(buffer[:taken])
        return header
