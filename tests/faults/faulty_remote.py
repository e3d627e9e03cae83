"""A remote that misbehaves to order and at random, over TLS, in a process of its own that may be killed.

What it answers with depends on the SOP instance UID alone (`plan_of`), so that a test knows how each delivery
has to end. What else goes wrong is left to chance: connections, associations and answers break anywhere. What
it holds is in a file, line by line, before it is answered: a killed remote knows it again.
"""

import contextlib
import json
import os
import random
import socket
import ssl
import struct
import subprocess
import sys
import threading
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ingest.config.model import TLS
from ingest.dicom import dimse, wire
from ingest.ext.encode import encode_p_data
from ingest.ext.events import Command, ControlPDU, DataSet
from ingest.ext.pdu import PDUParser
from tests.support.peers import JPEG, wait_for
from tests.support.ports import free_port
from tests.support.tls_peers import ssl_server_context

HELD: Final = frozenset({0x0000, 0x0107, 0x0111, 0xB000, 0xB006, 0xB007, 0xB00A})
"""Answers that say that the remote has the instance."""

PLANS: Final[tuple[tuple[int, ...], ...]] = (
    # Another time it goes well.
    *((0xA700, 0x0000), (0x0110, 0x0000), (0x0213, 0xA7FF, 0x0000), (0xC211, 0x0000)),
    # It never does.
    *((0x0117,), (0x0122,), (0x0124,), (0x0210,), (0x0211,), (0x0212,)),
    *((0xA900,), (0xA9FF,), (0xC000,), (0xC123,), (0xD00D,), (0x0106,), (0xA700,)),
    # It went well, with a remark.
    *((0x0107,), (0x0111,), (0xB000,), (0xB006,), (0xB007,), (0xB00A,)),
)
"""What is answered to some instances, one after the other; the last one again and again."""

EVERY: Final = 2 * len(PLANS)

CONNECTION_FAULTS: Final = (
    "reset",
    "mute",
    "not TLS",
    "silent",
    "reject",
    "full",
    "abort at once",
    "hang up",
)
STORE_FAULTS: Final = (
    *("abort at command", "abort at data", "stall at command", "stall at answer", "hang up at command"),
    *("half an answer", "kept, no answer", "kept, half an answer", "kept, answered, hang up"),
)
STALLS: Final = frozenset({"mute", "silent", "stall at command", "stall at answer"})


def number_of(uid: str) -> int:
    """The last component of a UID."""
    return int(uid.rpartition(".")[2])


def plan_of(uid: str) -> tuple[int, ...]:
    """What is answered to an instance, if nothing else goes wrong."""
    turn = number_of(uid) % EVERY
    return PLANS[turn] if turn < len(PLANS) else (0x0000,)


@dataclass
class Record:
    """What the remote has seen.

    Attributes:
        held: SOP instance UID to checksum of the data set, of what it holds.
        received: How often each data set came.
        injected: How often each fault was.
        statuses: How often each status was answered.
    """

    held: dict[str, int] = field(default_factory=dict)
    received: Counter[str] = field(default_factory=Counter)
    injected: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)

    @classmethod
    def read(cls, path: Path) -> "Record":
        """Of a file, whose last line may be cut."""
        record = cls()
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        for kind, value, *more in (line.split("\t") for line in lines):
            if kind == "held":
                record.held[value] = int(more[0])
            else:
                {"received": record.received, "fault": record.injected, "status": record.statuses}[kind][
                    value
                ] += 1
        return record


# --- in the process of the remote


class HangUpError(Exception):
    """The connection is to end here."""


class Remote:
    """What all connections share."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.record = Record.read(folder / "record")
        self.chance = random.Random(seed)
        self.lock = threading.Lock()
        self._mode = folder / "mode"
        self._file = os.open(folder / "record", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._answers: Counter[str] = Counter()

    def mode(self, name: str) -> Any:
        """What the test wants for now."""
        return json.loads(self._mode.read_text()).get(name, 0)

    def write(self, kind: str, value: str, *more: object) -> None:
        os.write(self._file, ("\t".join((kind, value, *map(str, more))) + "\n").encode())

    def draw(self, kind: str, faults: tuple[str, ...]) -> str:
        """A fault to come, or none; stalls are rarer, since each costs a deadline."""
        always, rate = self.mode("always"), self.mode(kind)
        with self.lock:
            fault = self.chance.choice(faults) if self.chance.random() < rate else ""
            if fault in STALLS and self.chance.random() < 0.6:
                fault = ""
        if always in faults:
            fault = always
        if fault:
            self.write("fault", fault)
        return fault

    def status(self, uid: str) -> int:
        """What to answer to this instance now."""
        if self.mode("always") == "succeed":
            return 0x0000
        with self.lock:
            if uid in self.record.held:
                return self.chance.choice((0x0000, 0x0111))
            plan = plan_of(uid)
            self._answers[uid] += 1
            return plan[min(self._answers[uid], len(plan)) - 1]

    def hold(self, uid: str, data: bytes) -> None:
        with self.lock:
            self.record.held[uid] = zlib.crc32(data)
        self.write("held", uid, zlib.crc32(data))


class Connection:
    """One connection, in a thread of its own."""

    def __init__(self, remote: Remote, sock: socket.socket, context: ssl.SSLContext) -> None:
        self._remote = remote
        self._sock = sock
        self._context = context
        self._parser = PDUParser()
        self._store: tuple[int, dimse.StoreRequest, str] | None = None

    def run(self) -> None:
        with contextlib.suppress(OSError, EOFError, HangUpError):
            self._sock.settimeout(30)
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            fault = self._remote.draw("connections", CONNECTION_FAULTS)
            self._begin(fault)
            self._serve(fault)
        with contextlib.suppress(OSError):
            self._sock.close()

    def _begin(self, fault: str) -> None:
        if fault == "reset":
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raise HangUpError
        if fault == "mute":
            self._wait_for_the_end()
        if fault == "not TLS":
            self._sock.sendall(wire.encode_abort(2, 0))
            raise HangUpError
        self._sock = self._context.wrap_socket(self._sock, server_side=True)

    def _wait_for_the_end(self) -> None:
        while self._sock.recv(1 << 16):
            pass
        raise HangUpError

    def _serve(self, fault: str) -> None:
        while True:
            event = self._parser.next_event()
            if event is None:
                count = self._sock.recv_into(self._parser.get_buffer())
                if count == 0:
                    raise HangUpError
                self._parser.buffer_updated(count)
            elif isinstance(event, ControlPDU):
                self._control(event, fault)
            elif isinstance(event, Command):
                self._command(event)
            else:
                self._data_set(event)

    def _control(self, event: ControlPDU, fault: str) -> None:
        if event.pdu_type == wire.ASSOCIATE_RQ:
            if self._remote.mode("permanent"):
                self._remote.write("fault", "reject for good")
                self._say(wire.encode_associate_rj(wire.AssociateReject(1, 1, 3)), end=True)
            if fault == "silent":
                self._wait_for_the_end()
            if fault == "hang up":
                raise HangUpError
            if fault == "abort at once":
                self._say(wire.encode_abort(0), end=True)
            if fault in {"reject", "full"}:
                # PS3.8 Table 9-21: transient: temporary congestion, or local limit exceeded.
                reject = wire.AssociateReject(2, 3, 1 if fault == "reject" else 2)
                self._say(wire.encode_associate_rj(reject), end=True)
            self._accept(wire.decode_associate_rq(event.data))
        elif event.pdu_type == wire.RELEASE_RQ_TYPE:
            self._say(wire.RELEASE_RP, end=True)
        else:
            raise HangUpError

    def _accept(self, request: wire.AssociateRequest) -> None:
        results = []
        for context in request.contexts:
            # Result 4: transfer syntaxes not supported (PS3.8 Table 9-18).
            refused = JPEG in context.transfer_syntaxes
            results.append(
                wire.ContextResult(context.context_id, 4 if refused else 0, context.transfer_syntaxes[0])
            )
            if refused:
                self._remote.write("fault", "refuse a context")
        self._say(
            wire.encode_associate_ac(
                wire.AssociateAccept(
                    called_ae=request.called_ae,
                    calling_ae=request.calling_ae,
                    contexts=tuple(results),
                    async_operations=request.async_operations,
                )
            )
        )

    def _command(self, event: Command) -> None:
        request = dimse.decode_request(event.data)
        if isinstance(request, dimse.EchoRequest):
            self._say(encode_p_data(event.context_id, dimse.encode_echo_response(request), 0))
            return
        assert isinstance(request, dimse.StoreRequest)
        fault = self._remote.draw("stores", STORE_FAULTS)
        if number_of(request.sop_instance_uid) in (self._remote.mode("poison") or ()):
            fault = self._remote.mode("poison_fault")
            self._remote.write("fault", fault)
        if fault == "abort at command":
            self._say(wire.encode_abort(2, 0), end=True)
        if fault == "hang up at command":
            raise HangUpError
        if fault == "stall at command":
            self._wait_for_the_end()
        self._store = event.context_id, request, fault
        self._parser.expect_data_set(event.context_id, memory_limit=1 << 20)

    def _data_set(self, event: DataSet) -> None:
        assert self._store is not None
        (context_id, request, fault), self._store = self._store, None
        remote, uid, data = self._remote, request.sop_instance_uid, event.data
        assert data is not None
        remote.write("received", uid)
        if fault == "crash":
            os._exit(1)
        if fault == "abort at data":
            self._say(wire.encode_abort(0), end=True)
        if fault == "stall at answer":
            self._wait_for_the_end()
        status = remote.status(uid)
        answer = encode_p_data(context_id, dimse.encode_store_response(request, status), 0)
        if fault == "half an answer":
            self._say(answer[: len(answer) // 2], end=True)
        if status in HELD:
            remote.hold(uid, data)
            if fault == "kept, no answer":
                raise HangUpError
            if fault == "kept, half an answer":
                self._say(answer[: len(answer) // 2], end=True)
        remote.write("status", f"{status:04X}")
        self._say(answer, end=fault == "kept, answered, hang up")

    def _say(self, data: bytes, *, end: bool = False) -> None:
        self._sock.sendall(data)
        if end:
            raise HangUpError


def main() -> None:
    """Serve until standard input ends, whose first line says in JSON what to do."""
    settings = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_test, daemon=True).start()
    remote = Remote(Path(settings["folder"]), settings["seed"])
    context = ssl_server_context(TLS.model_validate(settings["tls"]))
    with socket.create_server(("127.0.0.1", settings["port"]), backlog=64) as listener:
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=Connection(remote, sock, context).run, daemon=True).start()


def _end_with_the_test() -> None:
    sys.stdin.read()
    os._exit(0)


# --- in the process of the test

Mode = float | str | list[int]


class FaultyRemote:
    """The remote as a test has it: started, told what to do, killed, started again on the same port."""

    def __init__(self, folder: Path, tls: TLS, *, seed: int = 1, **mode: Mode) -> None:
        """Prepare.

        Args:
            folder: For what it holds.
            tls: Its certificate, and whom it trusts.
            seed: Of chance.
            mode: `connections` and `stores`: share of them that breaks; `permanent`: whether every
                association is rejected for good; `always`: the one thing that happens, "succeed" or a fault;
                `poison`: numbers of instances with which `poison_fault` happens, which may be "crash".
        """
        folder.mkdir(parents=True)
        self.port = free_port()
        self._folder = folder
        self._tls = tls
        self._seed = seed
        self._mode = dict(mode)
        self._process: subprocess.Popen[bytes] | None = None
        self.tell()

    def __enter__(self) -> "FaultyRemote":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def record(self) -> Record:
        """What it has seen so far."""
        return Record.read(self._folder / "record")

    def tell(self, **mode: Mode) -> None:
        """Change what it does, from the next connection or C-STORE on."""
        self._mode.update(mode)
        new = self._folder / "new"
        new.write_text(json.dumps(self._mode))
        new.rename(self._folder / "mode")

    def start(self) -> None:
        self._seed += 1
        settings = {
            "folder": str(self._folder),
            "port": self.port,
            "seed": self._seed,
            "tls": self._tls.model_dump(mode="json"),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.faulty_remote"],
            stdin=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(settings).encode() + b"\n")
        self._process.stdin.flush()
        wait_for(self._listens, what="the remote")

    def crashed(self) -> bool:
        """Whether its process has ended by itself."""
        return self._process is not None and self._process.poll() is not None

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _listens(self) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0


if __name__ == "__main__":
    main()
