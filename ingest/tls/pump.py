"""TLS over buffers: ciphertext in, plaintext out, without a socket.

Why not the TLS of asyncio or uvloop: neither sends the alert that tells a peer why its handshake failed, and
both hold buffers of their own for every connection. Here all connections of a process read into the same two
buffers.
"""

import contextlib
import ssl
from typing import Final, cast

from ingest.tls.peer_identity import require_proof, verified_chain

RECORD: Final = 16384
"""Plaintext bytes of the largest TLS record (RFC 8446 5.1)."""


class Pump:
    """One side of one TLS connection.

    Attributes:
        established: Whether the handshake is complete.
        ending: Whether nothing more comes; `read_into` says how it ended once all before is read.
    """

    __slots__ = ("_failure", "_incoming", "_outgoing", "_tls", "ending", "established")

    def __init__(
        self, context: ssl.SSLContext, *, server_side: bool = True, server_hostname: str | None = None
    ) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname
        )
        self.established = self.ending = False
        self._failure: ssl.SSLError | None = None

    def feed(self, ciphertext: memoryview) -> None:
        """Take bytes from the network."""
        self._incoming.write(ciphertext)

    def feed_eof(self) -> None:
        """The network has ended."""
        self._incoming.write_eof()

    def handshake(self) -> bool:
        """Go as far as the bytes allow; whether the handshake is complete.

        Raises:
            ssl.SSLError: It failed; `output` then holds the alert for the peer (RFC 8446 6.2). Or it is
                complete without the certificate that is required.
        """
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        require_proof(self._tls)
        self.established = True
        return True

    def read_into(self, window: memoryview) -> int:
        """Fill `window` with plaintext, several records where they are there.

        Returns:
            Bytes written to the front of `window`; 0 when more ciphertext is needed, -1 at the peer's
            close_notify.

        Raises:
            ssl.SSLError: The peer broke TLS, or the network ended without close_notify.
        """
        filled, size = 0, len(window)
        read = self._tls.read
        try:
            while not self.ending and size - filled >= RECORD:
                count = cast("int", read(size - filled, window[filled:]))
                self.ending = not count
                filled += count
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ending = True
        except ssl.SSLError as error:
            self.ending, self._failure = True, error
        if filled or not self.ending:
            return filled
        if self._failure is not None:
            raise self._failure
        return -1

    def write(self, plaintext: bytes) -> None:
        """Encrypt; one call makes one record where `plaintext` fits in one."""
        self._tls.write(plaintext)

    def output(self) -> bytes:
        """What is to be sent to the network now."""
        return self._outgoing.read() if self._outgoing.pending else b""

    def close_notify(self) -> None:
        """Say that we send nothing more (RFC 8446 6.1); the answer is not waited for."""
        # WANT_READ: the peer's own close_notify has not come yet. Anything else: there is nobody to tell.
        with contextlib.suppress(ssl.SSLError, OSError):
            self._tls.unwrap()

    @property
    def connection(self) -> ssl.SSLObject:
        """What does the work."""
        return self._tls

    def hand_over(self) -> tuple[ssl.SSLObject, bytes]:
        """The connection, for who does its records from now on, and ciphertext not yet looked at."""
        return self._tls, self._incoming.read()

    def peer_certificate(self) -> bytes | None:
        """The verified certificate of the peer, DER; None where it gave none or none was asked for."""
        return self._tls.getpeercert(binary_form=True)

    def peer_chain(self) -> list[bytes]:
        """The verified chain of the peer, DER: its certificate, its issuer and so on to the one in `trusted`.

        Empty where there is no certificate, or none was to be verified.
        """
        return verified_chain(self._tls)

    def version(self) -> str:
        """The protocol version for logs, as OpenSSL names it ("TLSv1.3")."""
        return self._tls.version() or ""
