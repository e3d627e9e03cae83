"""Operations of the requestor with peers that keep to the standard, and faults of our own side."""

import itertools
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from ingest.config.model import TLS
from ingest.dicom import wire
from ingest.errors import StoreError
from ingest.requestor.store_scu import StoreSCU, Timeouts, plan_associations
from tests.support.associations import SHORT, open_ct, remote_at, store_file
from tests.support.peers import (
    CT,
    EXPLICIT,
    IMPLICIT,
    JPEG,
    MR,
    VERIFICATION,
    Conversation,
    PynetdicomRemote,
    ScriptedPeer,
    Stored,
    storescp,
)


@pytest.mark.parametrize("max_pdu_length", [4096, 16384, 131072, 0])
@pytest.mark.parametrize("encrypted", [True, False])
def test_data_set_arrives_byte_for_byte_in_pdus_that_the_remote_takes(
    tls: TLS, file: Path, max_pdu_length: int, encrypted: bool
) -> None:
    security = tls if encrypted else None
    with (
        PynetdicomRemote([(CT, [EXPLICIT])], security, max_pdu_length=max_pdu_length) as scp,
        open_ct(scp.port, security) as association,
    ):
        assert association.peer_max_pdu_length == max_pdu_length
        assert store_file(association, file) == 0
    assert scp.stored == [Stored(CT, "1.2.3", EXPLICIT, file.read_bytes()[8:])]


def test_no_pdu_is_longer_than_the_remote_allows(file: Path) -> None:
    seen: list[tuple[int, int]] = []

    def script(peer: Conversation) -> None:
        peer.accept(max_pdu_length=4096)
        context, command = peer.read_command()
        seen.append(peer.read_data_set())
        peer.answer(context, command)
        peer.serve()

    with ScriptedPeer(script) as peer, open_ct(peer.port) as association:
        assert store_file(association, file) == 0
    assert seen == [(300_000, 4096)]


def test_one_association_carries_many_operations(tls: TLS, file: Path) -> None:
    offered = [(CT, [EXPLICIT]), (VERIFICATION, [IMPLICIT])]
    with PynetdicomRemote([(CT, [EXPLICIT])], tls) as scp:
        with StoreSCU.open(remote_at(scp.port, tls), offered, timeouts=SHORT) as association:
            for number in range(20):
                assert store_file(association, file, f"1.2.{number}") == 0
                assert association.send_echo().status == 0
        assert scp.associations == 1
    assert [stored.sop_instance for stored in scp.stored] == [f"1.2.{number}" for number in range(20)]


def test_contexts_are_accepted_and_refused_one_by_one(tls: TLS, file: Path) -> None:
    with PynetdicomRemote([(CT, [EXPLICIT])], tls) as scp:
        offered = [(CT, [EXPLICIT, JPEG]), (MR, [EXPLICIT])]
        with StoreSCU.open(remote_at(scp.port, tls), offered, timeouts=SHORT) as association:
            assert association.accepted_context_id(CT, EXPLICIT) == 1
            assert association.accepted_context_id(CT, JPEG) is None
            assert association.accepted_context_id(MR, EXPLICIT) is None
            with pytest.raises(LookupError, match=JPEG):
                association.store_instance(
                    file, 8, None, sop_class=CT, sop_instance="1.2", transfer_syntax=JPEG
                )
            assert store_file(association, file) == 0
            with pytest.raises(LookupError, match="Verification"):
                association.send_echo()


def test_a_transfer_syntax_that_was_not_offered_counts_as_refused() -> None:
    def script(peer: Conversation) -> None:
        request = wire.decode_associate_rq(peer.read_pdu()[1])
        results = (wire.ContextResult(1, 0, JPEG), wire.ContextResult(9, 0, EXPLICIT))
        peer.sock.sendall(
            wire.encode_associate_ac(
                wire.AssociateAccept(request.called_ae, request.calling_ae, contexts=results)
            )
        )
        peer.serve()

    with ScriptedPeer(script) as peer, open_ct(peer.port) as association:
        assert association.accepted_context_id(CT, EXPLICIT) is None


@pytest.mark.parametrize("status", [0x0000, 0xB000, 0xB007, 0xA700, 0xC123, 0x0111, 0x0122])
def test_every_status_is_an_answer_and_leaves_the_association_alive(
    tls: TLS, file: Path, status: int
) -> None:
    with (
        PynetdicomRemote([(CT, [EXPLICIT])], tls, answer=lambda _: status) as scp,
        open_ct(scp.port, tls) as association,
    ):
        assert store_file(association, file) == status
        assert association.is_established


def test_error_comment_is_passed_on(file: Path) -> None:
    def answer(_: Stored) -> Dataset:
        status = Dataset()
        status.Status = 0xC000
        status.ErrorComment = "no such study"
        return status

    with PynetdicomRemote([(CT, [EXPLICIT])], answer=answer) as scp, open_ct(scp.port) as association:
        response = association.store_instance(
            file, 8, None, sop_class=CT, sop_instance="1.2", transfer_syntax=EXPLICIT
        )
    assert (response.status, response.error_comment) == (0xC000, "no such study")


def test_part_of_a_descriptor_is_sent_and_the_descriptor_stays_open(file: Path) -> None:
    with (
        PynetdicomRemote([(CT, [EXPLICIT])]) as scp,
        open_ct(scp.port) as association,
        file.open("rb") as source,
    ):
        association.store_instance(
            source.fileno(), 100, 50, sop_class=CT, sop_instance="1.2", transfer_syntax=EXPLICIT
        )
        assert source.read(8) == b"PREAMBLE"
    assert scp.stored[0].data_set == file.read_bytes()[100:150]


def test_asynchronous_operations_are_asked_for_only_where_configured() -> None:
    asked: list[tuple[int, int] | None] = []

    def script(peer: Conversation) -> None:
        peer.accept()
        asked.append(wire.decode_associate_rq(peer.request).async_operations)
        peer.serve()

    with ScriptedPeer(script) as peer:
        open_ct(peer.port).release()
        open_ct(peer.port, async_operations=8).release()
    assert asked == [None, (8, 1)]


def test_plan_offers_each_context_once_and_at_most_128() -> None:
    contexts = [(CT, f"1.2.{number % 200}") for number in range(1000)]
    first, second = plan_associations(contexts)
    assert len(first) == 128
    assert len(second) == 72
    assert (*first, *second) == tuple(dict.fromkeys(contexts))
    assert plan_associations([]) == []


def test_128_contexts_fit_and_one_more_does_not() -> None:
    syntaxes = [f"1.2.840.10008.1.2.{number}" for number in range(129)]
    with ScriptedPeer(lambda peer: (peer.accept(), peer.serve())[1]) as peer:
        with StoreSCU.open(remote_at(peer.port), [(CT, syntaxes[:128])], timeouts=SHORT) as association:
            assert association.accepted_context_id(CT, syntaxes[127]) == 255
        with pytest.raises(ValueError, match="129"):
            StoreSCU.open(remote_at(peer.port), [(CT, syntaxes)])
        with pytest.raises(ValueError, match="0 presentation"):
            StoreSCU.open(remote_at(peer.port), [])


def test_answers_that_come_in_pieces_cost_no_delayed_acknowledgement(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.write_bytes(bytes(100))

    def script(peer: Conversation) -> None:
        peer.accept()
        peer.sock = InPieces(peer.sock)  # type: ignore[assignment]
        peer.serve()

    with ScriptedPeer(script) as peer, open_ct(peer.port) as association:
        started = time.monotonic()
        for _ in range(25):
            assert store_file(association, small) == 0
        assert time.monotonic() - started < 0.6  # 25 times 40 ms otherwise


class InPieces:
    """A socket that writes every PDU's header by itself."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.recv = sock.recv

    def sendall(self, data: bytes) -> None:
        self._sock.send(data[:6])
        self._sock.send(data[6:])


def test_missing_file_keeps_the_association(file: Path) -> None:
    with PynetdicomRemote([(CT, [EXPLICIT])]) as scp, open_ct(scp.port) as association:
        with pytest.raises(StoreError, match="cannot be opened"):
            store_file(association, file.with_name("gone"))
        assert store_file(association, file) == 0


def test_file_shorter_than_said_is_noticed_before_anything_is_sent(file: Path) -> None:
    with PynetdicomRemote([(CT, [EXPLICIT])]) as scp, open_ct(scp.port) as association:
        with pytest.raises(StoreError, match="cannot be read"):
            association.store_instance(
                file, 299_999, 20_000, sop_class=CT, sop_instance="1.2", transfer_syntax=EXPLICIT
            )
        assert store_file(association, file) == 0


def test_file_that_ends_half_way_aborts(file: Path) -> None:
    with PynetdicomRemote([(CT, [EXPLICIT])]) as scp:
        association = open_ct(scp.port)
        with pytest.raises(StoreError, match="cannot be read"):
            association.store_instance(
                file, 0, 900_000, sop_class=CT, sop_instance="1.2", transfer_syntax=EXPLICIT
            )
        assert not association.is_established
    assert scp.stored == []


def test_owner_gets_its_turn_while_the_remote_thinks_and_may_end_it(file: Path) -> None:
    turns: list[float] = []
    over = threading.Event()

    def script(peer: Conversation) -> None:
        peer.accept()
        peer.read_command()
        peer.read_data_set()
        over.wait(20)

    def tick() -> None:
        turns.append(time.monotonic())
        if over.is_set():
            raise InterruptedError

    with ScriptedPeer(script) as peer:
        association = open_ct(peer.port, timeouts=Timeouts(5, 30), on_tick=tick)
        timer = threading.Timer(1.2, over.set)
        timer.start()
        with pytest.raises(InterruptedError):
            store_file(association, file)
        timer.join()
    assert not association.is_established
    assert all(later - earlier < 0.8 for earlier, later in itertools.pairwise(turns))


def test_large_instance_takes_no_memory(tmp_path: Path, tls: TLS) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(512 << 20)

    def script(peer: Conversation) -> None:
        peer.accept(131072)
        context, command = peer.read_command()
        window = memoryview(bytearray(1 << 20))
        left = (512 << 20) + ((512 << 20) // 131060 + 1) * 12
        while left > 0:
            left -= peer.sock.recv_into(window[:left] if left < len(window) else window)
        peer.answer(context, command)
        peer.serve()

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with ScriptedPeer(script, tls) as peer, open_ct(peer.port, tls, Timeouts(5, 10)) as association:
        before = resident()
        assert store_file(association, large, offset=0) == 0
        assert resident() - before < 16 << 20


@pytest.fixture(params=["plain", "tls"])
def dcmtk(request: pytest.FixtureRequest, tmp_path: Path, tls: TLS) -> Iterator[tuple[int, TLS | None, Path]]:
    security = tls if request.param == "tls" else None
    with storescp(tmp_path / "received", security, "-pdu", "4096") as port:
        yield port, security, tmp_path / "received"


@pytest.mark.interop
def test_dcmtk_gets_every_byte(dcmtk: tuple[int, TLS | None, Path], tmp_path: Path) -> None:
    port, security, folder = dcmtk
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CT, "1.2.3.4"
    dataset.PixelData = os.urandom(200_000)
    dataset["PixelData"].VR = "OB"
    source = tmp_path / "source"
    dataset.save_as(source, implicit_vr=False, little_endian=True, enforce_file_format=False)
    with open_ct(port, security, Timeouts(10, 10)) as association:
        assert store_file(association, source, "1.2.3.4", offset=0) == 0
    (received,) = folder.iterdir()
    assert received.read_bytes().endswith(source.read_bytes())
