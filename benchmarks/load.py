"""The load generator: pre-encoded C-STORE messages replayed over TLS, one process an association.

Each message is encoded once, with a SOP instance UID of fixed length; for every instance only the digits of
that UID are written in place, in the command and in the data set. So sending costs little more than TLS, and
never less instances are counted than were answered: every status is read and checked.
"""

import multiprocessing
import os
import socket
import ssl
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from ext.command import decode_command
from ext.encode import encode_p_data
from ext.pdu import Command, ControlPDU, PDUParser
from ingest.dicom import wire
from ingest.dicom.dimse import store_request
from ingest.dicom.pdus import AssociateRequest, ProposedContext
from ingest.dicom.uids import EXPLICIT_LITTLE_ENDIAN

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
DIGITS = 12
TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Load:
    """What to send.

    Attributes:
        size: Bytes of a data set.
        instances: For each association.
        associations: At the same time, each in a process of its own.
        pdu: Bytes of the largest P-DATA-TF that is sent (PS3.8 9.3.5), if the receiver takes it.
        tls_version: "TLSv1.3" or "TLSv1.2".
    """

    size: int
    instances: int
    associations: int = 4
    pdu: int = 131072
    tls_version: str = "TLSv1.3"


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to send it to; `certificate` is None for plain DICOM."""

    host: str
    port: int
    certificate: Path | None
    key: Path | None
    trusted: Path | None


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it.

    Attributes:
        seconds: From the first byte of the first data set to the last answer.
        latencies: Of every instance, seconds from its first byte to its answer.
        failed: Instances that were not answered with 0000H.
    """

    seconds: float
    instances: int
    bytes: int
    latencies: tuple[float, ...]
    failed: int


class Message:
    """One C-STORE message whose instance UID can be replaced in place."""

    def __init__(self, size: int, pdu: int, root: str) -> None:
        uid = f"{root}.{'1' * DIGITS}"
        command = encode_p_data(1, store_request(1, CT_IMAGE, uid), pdu)
        self.bytes = bytearray(command + _fragments(_data_set(uid, root, size), pdu))
        needle = ("." + "1" * DIGITS).encode()
        self._places = []
        at = self.bytes.find(needle)
        while at >= 0:
            self._places.append(at + 1)
            at = self.bytes.find(needle, at + 1)

    def number(self, value: int) -> None:
        """Make it the instance number `value`; 10**11 and up keep UID components free of leading zeros."""
        digits = str(10 ** (DIGITS - 1) + value).encode()
        for place in self._places:
            self.bytes[place : place + DIGITS] = digits


def run(target: Target, load: Load) -> Result:
    """Send it all; returns when everything is answered.

    Raises:
        RuntimeError: A sender could not associate or lost its association.
    """
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(load.associations + 1)
    pipes, processes = [], []
    seed = f"2.25.{time.time_ns()}"
    for number in range(load.associations):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_send, args=(target, load, f"{seed}.{number}", gate, theirs))
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    gate.wait(TIMEOUT_SECONDS)
    started = time.perf_counter()
    try:
        results = [pipe.recv() for pipe in pipes]
    except EOFError as error:
        raise RuntimeError("a sender ended early") from error
    finally:
        for process in processes:
            process.join()
    ended = max(end for end, _, _ in results)
    latencies = tuple(latency for _, own, _ in results for latency in own)
    failed = sum(count for _, _, count in results)
    return Result(ended - started, len(latencies), len(latencies) * load.size, latencies, failed)


def _send(target: Target, load: Load, root: str, gate: object, pipe: Connection) -> None:
    with _connect(target, load) as connection:
        parser = PDUParser(max_pdu_length=0)
        limit = _associate(connection, parser)
        message = Message(load.size, min(load.pdu, limit) if limit else load.pdu, root)
        gate.wait(TIMEOUT_SECONDS)  # type: ignore[attr-defined]
        latencies, failed = [], 0
        for number in range(load.instances):
            message.number(number)
            begun = time.perf_counter()
            connection.sendall(message.bytes)
            failed += _answer(connection, parser) != 0
            latencies.append(time.perf_counter() - begun)
        ended = time.perf_counter()
        connection.sendall(wire.RELEASE_RQ)
        _event(connection, parser)
    pipe.send((ended, latencies, failed))
    pipe.close()
    os._exit(0)


def _connect(target: Target, load: Load) -> socket.socket:
    plain = socket.create_connection((target.host, target.port), TIMEOUT_SECONDS)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if target.certificate is None:
        return plain
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.minimum_version = context.maximum_version = getattr(
        ssl.TLSVersion, load.tls_version.replace(".", "_")
    )
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_cert_chain(target.certificate, target.key)
    context.load_verify_locations(target.trusted)
    return context.wrap_socket(plain, server_hostname=target.host)


def _associate(connection: socket.socket, parser: PDUParser) -> int:
    """Associate; returns the longest P-DATA-TF that the receiver takes."""
    context = ProposedContext(1, CT_IMAGE, (EXPLICIT_LITTLE_ENDIAN,))
    request = AssociateRequest(
        called_ae="ANY-SCP", calling_ae="LOAD", contexts=(context,), max_pdu_length=16384
    )
    connection.sendall(wire.encode_associate_rq(request))
    event = _event(connection, parser)
    if not isinstance(event, ControlPDU) or event.pdu_type != 2:
        raise RuntimeError(f"not associated: {event}")
    answer = wire.decode_associate_ac(event.data)
    if answer.contexts[0].result != 0:
        raise RuntimeError(f"CT Image Storage is not accepted: {answer.contexts}")
    return answer.max_pdu_length


def _answer(connection: socket.socket, parser: PDUParser) -> int:
    event = _event(connection, parser)
    if not isinstance(event, Command):
        raise RuntimeError(f"not a response: {event}")
    return int(decode_command(event.data)["Status"])


def _event(connection: socket.socket, parser: PDUParser) -> object:
    while (event := parser.next_event()) is None:
        count = connection.recv_into(parser.get_buffer())
        if not count:
            raise RuntimeError("the receiver closed the connection")
        parser.buffer_updated(count)
    return event


def _element(group: int, element: int, vr: bytes, value: bytes) -> bytes:
    """One element in Explicit VR Little Endian (PS3.5 7.1.2)."""
    value += b"\0" * (len(value) % 2)
    tag = group.to_bytes(2, "little") + element.to_bytes(2, "little") + vr
    if vr in {b"OB", b"OW"}:
        return tag + b"\0\0" + len(value).to_bytes(4, "little") + value
    return tag + len(value).to_bytes(2, "little") + value


def _data_set(uid: str, root: str, size: int) -> bytes:
    """A data set of exactly `size` bytes (or the little more that its header takes)."""
    head = b"".join(
        (
            _element(0x0008, 0x0016, b"UI", CT_IMAGE.encode()),
            _element(0x0008, 0x0018, b"UI", uid.encode()),
            _element(0x0008, 0x0060, b"CS", b"CT"),
            _element(0x0020, 0x000D, b"UI", root.encode()),
            _element(0x0020, 0x000E, b"UI", f"{root}.1".encode()),
        )
    )
    return head + _element(0x7FE0, 0x0010, b"OW", bytes(max(0, size - len(head) - 12) & ~1))


def _fragments(data: bytes, pdu: int) -> bytes:
    """A data set as P-DATA-TFs of one PDV each (PS3.8 9.3.5)."""
    step = pdu - 6
    parts = []
    for at in range(0, len(data), step):
        piece = data[at : at + step]
        last = at + step >= len(data)
        parts.append(
            b"\x04\0"
            + (len(piece) + 6).to_bytes(4, "big")
            + (len(piece) + 2).to_bytes(4, "big")
            + bytes((1, 2 if last else 0))
            + piece
        )
    return b"".join(parts)
