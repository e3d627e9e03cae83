"""Peers with the TLS of Python's `ssl` module, which shares no code with ours."""

import contextlib
import ssl
from typing import cast

from ingest.config.model import TLS

_VERIFY = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}


def ssl_server_context(tls: TLS) -> ssl.SSLContext:
    """The context of an SCP of these settings; keys are PEM and not encrypted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0
    return _set_up(context, tls)


def ssl_client_context(tls: TLS) -> ssl.SSLContext:
    """The context of an SCU of these settings; keys are PEM and not encrypted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = tls.check_server_name
    return _set_up(context, tls)


def _set_up(context: ssl.SSLContext, tls: TLS) -> ssl.SSLContext:
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if tls.certificate is not None:
        context.load_cert_chain(tls.certificate, tls.private_key)
    for path in tls.trusted:
        context.load_verify_locations(path)
    context.verify_mode = _VERIFY[tls.peer_certificate]
    return context


class SSLConnection:
    """One side of one connection over buffers, as `ingest.ext.tls_connection.BufferedConnection`."""

    def __init__(
        self, context: ssl.SSLContext, *, server_side: bool = False, server_hostname: str | None = None
    ) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname
        )
        self.established = self.is_ending = False
        self._failure: ssl.SSLError | None = None

    def feed(self, ciphertext: bytes | memoryview) -> None:
        self._incoming.write(ciphertext)

    def shake_hands(self) -> bool:
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        self.established = True
        return True

    def read_into(self, window: memoryview) -> int:
        filled = 0
        try:
            while not self.is_ending and filled < len(window):
                count = cast("int", self.tls.read(len(window) - filled, window[filled:]))  # type: ignore[arg-type]
                self.is_ending = not count
                filled += count
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.is_ending = True
        except ssl.SSLError as error:
            self.is_ending, self._failure = True, error
        if filled or not self.is_ending:
            return filled
        if self._failure is not None:
            raise self._failure
        return -1

    def write(self, plaintext: bytes) -> None:
        self.tls.write(plaintext)

    def output(self) -> bytes:
        return self._outgoing.read() if self._outgoing.pending else b""

    def close_notify(self) -> None:
        with contextlib.suppress(ssl.SSLError, OSError):
            self.tls.unwrap()

    def version(self) -> str:
        return self.tls.version() or ""

    def peer_certificate(self) -> bytes | None:
        return self.tls.getpeercert(binary_form=True)
