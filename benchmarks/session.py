"""One association of the load generator: connect, associate, keep C-STORE operations outstanding, release."""

import contextlib
import socket
import ssl
import time
from collections.abc import Callable
from typing import Final, Self

from benchmarks.messages import CT_IMAGE, P_DATA_TF, Answers, Message
from benchmarks.receivers import Target
from ingest.dicom import wire
from ingest.dicom.pdus import AssociateRequest, ProposedContext
from ingest.dicom.uids import EXPLICIT_LITTLE_ENDIAN
from ingest.errors import PeerError

CONNECT_SECONDS: Final = 60.0
MAX_MESSAGE_ID: Final = 65535


class LoadError(Exception):
    """A sender could not associate, or its association ended before all was answered."""


def tls_context(target: Target, version: str) -> ssl.SSLContext | None:
    """Return the TLS of the sender. None is plain DICOM; `version` is "TLSv1.3" or "TLSv1.2"."""
    if target.certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version.replace(".", "_")]
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_cert_chain(target.certificate, target.key)
    if target.trusted is not None:
        context.load_verify_locations(target.trusted)
    return context


def associate_request(target: Target, operations: int) -> bytes:
    """Encode an A-ASSOCIATE-RQ for CT, with an asynchronous operations window if it is above 1."""
    return wire.encode_associate_rq(
        AssociateRequest(
            called_ae=target.called_ae,
            calling_ae=target.calling_ae,
            contexts=(ProposedContext(1, CT_IMAGE, (EXPLICIT_LITTLE_ENDIAN,)),),
            max_pdu_length=16384,
            async_operations=(operations, 1) if operations > 1 else None,  # PS3.7 D.3.3.3
        )
    )


def accepted(kind: int, pdu: bytes, operations: int) -> tuple[int, int]:
    """Return what an A-ASSOCIATE-AC grants: PDU length (0: unlimited) and outstanding operations.

    Raises:
        LoadError: It is another PDU, or CT is not accepted.
    """
    try:
        if kind == wire.ASSOCIATE_RJ:
            raise LoadError(f"the association was {wire.decode_associate_rj(pdu)}")
        if kind != wire.ASSOCIATE_AC:
            raise LoadError(f"a PDU of type {kind} answers A-ASSOCIATE-RQ")
        answer = wire.decode_associate_ac(pdu)
    except PeerError as error:
        raise LoadError(f"the A-ASSOCIATE-AC cannot be read: {error}") from error
    if not answer.contexts or answer.contexts[0].result != 0:
        raise LoadError(f"CT Image Storage is not accepted: {answer.contexts}")
    if operations == 1 or answer.async_operations is None:
        return answer.max_pdu_length, 1
    return answer.max_pdu_length, min(operations, answer.async_operations[0] or operations)


class Pause:
    """What a sender waits for before it sends."""

    def __init__(self, think_seconds: float, every_seconds: float) -> None:
        """Prepare.

        Args:
            think_seconds: Before each but the first.
            every_seconds: The n-th goes out no earlier than n times so long after the first.
        """
        self._think = think_seconds
        self._every = every_seconds
        self._began = 0.0

    def wait(self, number: int) -> None:
        """Before the instance of this number, from 0."""
        if number == 0:
            self._began = time.perf_counter()
            return
        left = self._began + number * self._every - time.perf_counter() if self._every else 0.0
        if (longest := max(self._think, left)) > 0:
            time.sleep(longest)


class Session:
    """An open association; a context manager that closes the connection.

    Attributes:
        max_pdu: What the receiver takes; 0 is unlimited.
        operations: How many may be outstanding: what was asked, or less where less was granted.
    """

    def __init__(self, target: Target, tls: ssl.SSLContext | None, operations: int = 1) -> None:
        """Connect and associate.

        Raises:
            LoadError: It was refused.
            OSError: There is no connection, or no TLS on it (ssl.SSLError).
        """
        plain = socket.create_connection((target.host, target.port), CONNECT_SECONDS)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = Answers()
        self._space = memoryview(bytearray(16384))
        self._socket = plain
        try:
            if tls is not None:
                self._socket = tls.wrap_socket(plain, server_hostname=target.host)
            self._socket.sendall(associate_request(target, operations))
            self.max_pdu, self.operations = accepted(*self._pdu(), operations)
        except BaseException:
            self._socket.close()
            raise
        # With a timeout, ssl would ask poll(2) before every record. The caller watches the progress instead.
        self._socket.settimeout(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def send(self, message: Message) -> None:
        """Send a message as it is stamped now."""
        for piece in message.pieces:
            self._socket.sendall(piece)

    def store(
        self,
        message: Message,
        numbers: range,
        answered: Callable[[int, int, float], None],
        pause: "Pause | None" = None,
        sent: Callable[[float], None] = lambda _when: None,
    ) -> None:
        """Send the instances of these numbers, as many at a time as were granted.

        Args:
            message: What to stamp and send.
            numbers: One after another, without gaps.
            answered: Called for each answer with the instance's number, its status and its latency, seconds.
            pause: What to wait for before each; None: nothing.
            sent: Called with the time (time.perf_counter()) when the last byte of each went out, in order.

        Raises:
            LoadError: The association ended, or something else than an answer came.
        """
        outstanding: dict[int, tuple[int, float]] = {}
        number = numbers.start
        clock = time.perf_counter
        while number < numbers.stop or outstanding:
            if number < numbers.stop and len(outstanding) < self.operations:
                if pause is not None:
                    pause.wait(number - numbers.start)
                message_id = number % MAX_MESSAGE_ID + 1
                message.stamp(number, message_id)
                outstanding[message_id] = number, clock()
                self.send(message)
                sent(clock())
                number += 1
                continue
            kind, pdu = self._pdu()
            if kind != P_DATA_TF:
                raise LoadError(f"a PDU of type {kind} came where a C-STORE-RSP was due: {pdu.hex()}")
            for answer in self._reader.answers(pdu):
                if answer.message_id not in outstanding:
                    raise LoadError(f"an answer to message {answer.message_id}, which is not outstanding")
                which, begun = outstanding.pop(answer.message_id)
                answered(which, answer.status, clock() - begun)

    def release(self) -> None:
        """A-RELEASE; a receiver that closes without an answer is forgiven."""
        self._socket.sendall(wire.RELEASE_RQ)
        with contextlib.suppress(LoadError, OSError):
            self._pdu()

    def _pdu(self) -> tuple[int, bytes]:
        while (found := self._reader.pdu()) is None:
            count = self._socket.recv_into(self._space)
            if not count:
                raise LoadError("the receiver closed the connection")
            self._reader.feed(self._space[:count])
        return found
