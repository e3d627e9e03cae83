"""Remotes for the tests: programs that are not ours, pynetdicom as SCP, and peers that misbehave to order."""

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import AE, evt

from ingest.config.model import TLS
from ingest.dicom import wire
from ingest.ext.command import decode_command, encode_command
from ingest.ext.encode import encode_p_data
from ingest.ext.tls_context import Context
from ingest.tls.contexts import build_client_context
from ingest.tls.keys import pairs
from tests.support.ports import free_port
from tests.support.tls_peers import ssl_server_context

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
VERIFICATION = "1.2.840.10008.1.1"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
JPEG = "1.2.840.10008.1.2.4.50"

AE_TITLE = "REMOTE"


def require_program(name: str) -> str:
    """The path of a program that is not ours; skips where it is not installed, fails in CI."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if path is None:
        reason = f"{name} is not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def wait_for(condition: Callable[[], Any], seconds: float = 10.0, what: str = "the condition") -> Any:
    """Poll until `condition` gives something true, and give that."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"{what} did not come within {seconds} s")


def make_tls(folder: Path, name: str = "node") -> TLS:
    """A self-signed pair that trusts itself, as both ends may use it."""
    pairs.write_pair(pairs.issue_self_signed("localhost", names=["localhost", "127.0.0.1"]), folder / name)
    certificate, key = pairs.pair_paths(folder / name)
    return TLS(certificate=certificate, private_key=key, trusted=(certificate,))


@dataclass
class Stored:
    """What a remote got by C-STORE."""

    sop_class: str
    sop_instance: str
    transfer_syntax: str
    data_set: bytes
    priority: int = 0


@dataclass
class PynetdicomRemote:
    """A pynetdicom SCP; `answer` decides the status of each C-STORE."""

    contexts: Sequence[tuple[str, Sequence[str]]]
    tls: TLS | None = None
    answer: Callable[[Stored], int] = lambda _: 0x0000
    max_pdu_length: int = 16382
    port: int = 0
    keep_data: bool = True
    stored: list[Stored] = field(default_factory=list)
    associations: int = 0
    most_at_once: int = 0
    now: int = 0

    def __enter__(self) -> "PynetdicomRemote":
        ae = AE(AE_TITLE)
        ae.maximum_pdu_size = self.max_pdu_length
        ae.add_supported_context(VERIFICATION)
        for sop_class, syntaxes in self.contexts:
            ae.add_supported_context(sop_class, list(syntaxes))
        self._lock = threading.Lock()
        self._server = ae.start_server(
            ("127.0.0.1", self.port),
            block=False,
            ssl_context=ssl_server_context(self.tls) if self.tls else None,
            evt_handlers=[
                (evt.EVT_C_STORE, self._store),
                (evt.EVT_ESTABLISHED, self._began),
                (evt.EVT_CONN_CLOSE, self._ended),
            ],
        )
        self.port = self._server.socket.getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()

    def _store(self, event: Any) -> int:
        request = event.request
        stored = Stored(
            str(request.AffectedSOPClassUID),
            str(request.AffectedSOPInstanceUID),
            str(event.context.transfer_syntax),
            request.DataSet.getvalue() if self.keep_data else b"",
            int(request.Priority),
        )
        status = self.answer(stored)
        with self._lock:
            if status == 0:
                self.stored.append(stored)
        return status

    def _began(self, _: Any) -> None:
        with self._lock:
            self.associations += 1
            self.now += 1
            self.most_at_once = max(self.most_at_once, self.now)

    def _ended(self, _: Any) -> None:
        with self._lock:
            self.now -= 1


class Conversation:
    """One connection of a scripted peer, after the TLS handshake."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.request = b""

    def read(self, count: int) -> bytes:
        got = b""
        while len(got) < count:
            part = self.sock.recv(count - len(got))
            if not part:
                raise EOFError
            got += part
        return got

    def read_pdu(self) -> tuple[int, bytes]:
        header = self.read(6)
        kind, length = struct.unpack(">BxI", header)
        return kind, header + self.read(length)

    def accept(
        self,
        max_pdu_length: int = 16384,
        *,
        refuse: Callable[[str, str], bool] = lambda *_: False,
        window: tuple[int, int] | None = None,
    ) -> wire.AssociateRequest:
        """Read an A-ASSOCIATE-RQ and accept it."""
        kind, data = self.read_pdu()
        assert kind == 1
        self.request = data
        request = wire.decode_associate_rq(data)
        results = tuple(
            wire.ContextResult(c.context_id, 4, c.transfer_syntaxes[0])
            if refuse(c.abstract_syntax, c.transfer_syntaxes[0])
            else wire.ContextResult(c.context_id, 0, c.transfer_syntaxes[0])
            for c in request.contexts
        )
        self.sock.sendall(
            wire.encode_associate_ac(
                wire.AssociateAccept(
                    called_ae=request.called_ae,
                    calling_ae=request.calling_ae,
                    contexts=results,
                    max_pdu_length=max_pdu_length,
                    async_operations=window,
                )
            )
        )
        return request

    def read_command(self) -> tuple[int, dict[str, Any]]:
        """Context ID and elements of a command set; what follows it in the same PDU is none."""
        kind, data = self.read_pdu()
        if kind != 4:
            raise EOFError(f"PDU {kind}")
        assert data[11] == 3
        return data[10], decode_command(data[12:])

    def read_data_set(self) -> tuple[int, int]:
        """(bytes, longest PDU-length) of a data set, read to its last fragment."""
        total = longest = 0
        while True:
            kind, data = self.read_pdu()
            assert kind == 4
            longest = max(longest, len(data) - 6)
            total += len(data) - 12
            if data[11] == 2:
                return total, longest

    def answer(self, context_id: int, command: dict[str, Any], status: int = 0) -> None:
        reply = {
            "AffectedSOPClassUID": command["AffectedSOPClassUID"],
            "CommandField": command["CommandField"] | 0x8000,
            "MessageIDBeingRespondedTo": command["MessageID"],
            "CommandDataSetType": 0x0101,
            "Status": status,
        }
        self.sock.sendall(encode_p_data(context_id, encode_command(reply), 0))

    def serve(self, status: Callable[[dict[str, Any]], int] = lambda _: 0) -> None:
        """Answer every C-STORE and C-ECHO until the association is released."""
        while True:
            kind, data = self.read_pdu()
            if kind == 5:
                self.sock.sendall(wire.RELEASE_RP)
                return
            if kind != 4:
                return
            command = decode_command(data[12:])
            if command["CommandDataSetType"] != 0x0101:
                self.read_data_set()
            self.answer(data[10], command, status(command))


class ScriptedPeer:
    """Listens, and plays a script on each connection in a thread of its own."""

    def __init__(
        self,
        script: Callable[[Conversation], None],
        tls: TLS | None = None,
        port: int = 0,
        receive_buffer: int = 0,
    ) -> None:
        self._script = script
        self._context = ssl_server_context(tls) if tls else None
        self._listener = socket.create_server(("127.0.0.1", port))
        if receive_buffer:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.port = self._listener.getsockname()[1]
        self.connections = 0
        self.errors: list[BaseException] = []
        self._open: list[socket.socket] = []
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> "ScriptedPeer":
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(1)  # a script may still be reading what was said last
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        if self.errors:
            raise self.errors[0]

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(sock)
            thread = threading.Thread(target=self._play, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _play(self, sock: socket.socket) -> None:
        try:
            if self._context is not None:
                tls = self._context.wrap_socket(sock, server_side=True)
                self._open.append(tls)
                sock = tls
            self._script(Conversation(sock))
        except (OSError, EOFError):
            pass
        except BaseException as error:
            self.errors.append(error)
        finally:
            sock.close()


def client_tls(tls: TLS) -> Context:
    return build_client_context(tls)


@contextlib.contextmanager
def storescp(folder: Path, tls: TLS | None, *options: str, port: int = 0) -> Iterator[int]:
    """DCMTK's storescp that keeps data sets as they come (+B); gives its port."""
    program = require_program("storescp")
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    security: list[str] = []
    if tls is not None:
        security = ["+tls", str(tls.private_key), str(tls.certificate)]
        for certificate in tls.trusted:
            security += ["+cf", str(certificate)]
    command = [program, "-od", str(folder), "-aet", AE_TITLE, "+B", "+xa", *security, *options, str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        wait_for(lambda: _listens(port) or process.poll() is not None, what="storescp")
        if process.poll() is not None:
            raise AssertionError(process.stderr.read().decode())  # type: ignore[union-attr]
        yield port
    finally:
        process.kill()
        process.communicate()


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0
