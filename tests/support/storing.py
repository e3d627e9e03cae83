"""Associations that store, without a listener: what ext.store does beside what Python does."""

import contextlib
import select
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ingest.acceptor.scoreboard import BYTES, FAILED, INSTANCES, Scoreboard
from ingest.acceptor.store_scp import FullReason, ListenerServices, StoreSCP
from ingest.dicom.negotiate import AcceptedContext
from ingest.dicom.part10 import FileMeta
from ingest.dicom.responses import Response, decode_response
from ingest.dicom.wire import encode_abort
from ingest.ext.channel import Channel
from ingest.ext.cstore_service import CStoreService
from ingest.ext.encode import encode_p_data
from ingest.ext.errors import PeerError
from ingest.ext.events import Command, ControlPDU
from ingest.metrics.board import MetricsBoard
from ingest.metrics.families import COMMIT_SECONDS, RECEIVE_SECONDS
from ingest.queue.publisher import Publisher
from ingest.spool import spool as spools
from ingest.spool.reference import Location
from ingest.spool.spool import Spool
from tests.faults.caller import CONTEXTS, data_pdus
from tests.support.channels import Line, Windows, line
from tests.support.pki import Material
from tests.support.spools import config

ROW = 3
FILE_META = FileMeta(
    "",
    "",
    "",
    calling_ae="CALLER",
    called_ae="INGEST",
    source_address="dicom-tls://192.0.2.1:50000",
    receiving_address="dicom-tls://192.0.2.2:2762",
    certificate=("ab" * 32, "CN=caller"),
)
ACCEPTED = {number: AcceptedContext(syntax, transfer) for number, syntax, transfer in CONTEXTS}


@dataclass
class Owner:
    """The connection of a StoreSCP."""

    channel: Channel
    full: FullReason | None = None
    done: int = 0
    notices: list[int] = field(default_factory=list)

    def respond(self, context_id: int, command: bytes) -> None:
        self.channel.send(encode_p_data(context_id, command, 0))

    def handle_operation_end(self) -> None:
        self.done += 1

    def handle_notices(self) -> None:
        self.notices.append(self.channel.notices)

    def find_full_reason(self) -> FullReason | None:
        return self.full


@dataclass
class Association:
    """One association and its peer.

    Attributes:
        left: What ext.store left to Python: command sets and ends of data sets, in order.
        error: What broke it.
    """

    line: Line
    owner: Owner
    scp: StoreSCP
    left: list[str] = field(default_factory=list)
    error: PeerError | None = None

    def feed(self, *data: bytes) -> None:
        """Have it take bytes, as a listener does."""
        self.line.say(*data)
        self.go_on()

    def responses(self) -> list[Response]:
        """What has come to the peer, each in one PDU."""
        data, found = self.line.heard(), []
        while data:
            length = 6 + int.from_bytes(data[2:6])
            assert data[:1] == b"\x04"
            assert data[11] == 3, "not one whole command set"
            found.append(decode_response(data[12:length]))
            data = data[length:]
        return found

    def go_on(self) -> None:
        try:
            while (event := self.line.channel.receive()) is not None:
                self.left.append(type(event).__name__)
                assert not isinstance(event, ControlPDU)
                if isinstance(event, Command):
                    self.scp.handle_command(event.context_id, event.data)
                else:
                    self.scp.handle_data_set(event)
        except PeerError as error:
            self.error = error
            self.scp.end()
            self.line.channel.send(encode_abort(2, error.reason))

    def store(self, command: bytes, data: bytes, context_id: int = 1, **how: int) -> None:
        """A whole C-STORE, in one write."""
        self.feed(encode_p_data(context_id, command, 0), data_pdus(context_id, data, **how))


@dataclass
class Site:
    """What the associations of a listener share."""

    services: ListenerServices

    @property
    def cstore_service(self) -> CStoreService:
        return self.services.cstore_service

    @property
    def spool(self) -> Spool:
        return self.services.spool

    def counters(self) -> tuple[int, ...]:
        board = self.services.board
        return tuple(board.get(ROW, field) for field in (INSTANCES, BYTES, FAILED))

    def files(self) -> list[Path]:
        """What is ready, oldest first."""
        return sorted((self.spool.slot.path / "ready").iterdir())

    def take_files(self) -> list[tuple[str, bytes]]:
        """The same as endings of names and contents; they are gone then."""
        found = [(path.name.partition(".")[2], path.read_bytes()) for path in self.files()]
        for path in self.files():
            path.unlink()
        return found

    def work(self) -> None:
        """Start what makes entries durable, where `site` did not."""
        thread = threading.Thread(target=self.spool.committer.run)
        self.spool._threads.append(thread)
        thread.start()

    def settle(self, *associations: Association) -> list[BaseException]:
        """Collect until none of their operations is outstanding; what was raised meanwhile."""
        raised: list[BaseException] = []
        while any(association.scp.outstanding for association in associations):
            assert select.select([self.spool.committer.wakeup], [], [], 20)[0]
            raised += self.cstore_service.collect()
        return raised

    def partials(self) -> list[Path]:
        return list((self.spool.slot.path / "partial").iterdir())

    @contextlib.contextmanager
    def association(
        self,
        *,
        fast: bool = True,
        limit: int = 64,
        contexts: dict[int, AcceptedContext] = ACCEPTED,
        windows: Windows | None = None,
        material: Material | None = None,
        allows_priority: bool = False,
        **limits: int,
    ) -> Iterator[Association]:
        """An established association, with `material` in TLS; `fast` lets ext.store take what it can."""
        with line(material, windows=windows, **limits) as made:
            owner = Owner(made.channel)
            scp = StoreSCP(
                owner,
                made.channel,
                made.parser,
                self.services,
                FILE_META,
                contexts,
                limit,
                allows_priority=allows_priority,
            )
            made.channel.taker = scp.operations
            scp.operations.receiving, scp.operations.answering = fast, True
            try:
                yield Association(made, owner, scp)
            finally:
                scp.end()
                made.channel.taker = None


@contextlib.contextmanager
def site(
    folder: Path, *, durable: bool = False, quarantine: bool = True, working: bool = True, small: int = 0
) -> Iterator[Site]:
    """A spool below a folder, and what a listener has with it; without `working` nothing becomes durable.

    Files of up to `small` bytes go into segments.
    """
    settings = config(folder)
    folder.mkdir(parents=True, exist_ok=True)
    board = Scoreboard.create(folder / "scoreboard")
    with pytest.MonkeyPatch.context() as patch:
        if not working:
            patch.setattr(spools, "COMMIT_THREADS", 0)
        spool = Spool.claim(settings.spool_dir, durable=durable, segments=small > 0)
    metrics = MetricsBoard.create()
    cstore_service = CStoreService(
        spool.committer,
        spool.slot.name,
        board.counters(ROW),
        INSTANCES,
        BYTES,
        make_location=Location,
        durable=durable,
        small=small,
        metrics=metrics.words,
        receive_times=metrics.find_word(RECEIVE_SECONDS),
        commit_times=metrics.find_word(COMMIT_SECONDS),
    )
    try:
        yield Site(
            ListenerServices(
                spool,
                cstore_service,
                Publisher(settings, spool, cstore_service),
                board,
                ROW,
                quarantine,
                settings.instance_limit,
                settings.receive.header_max_bytes,
            )
        )
    finally:
        spool.close()
