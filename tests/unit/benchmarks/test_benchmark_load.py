"""The load generator and its check, against real receivers: the floor, our node, pynetdicom, and none."""

import contextlib
import io
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynetdicom.pdu import A_ASSOCIATE_RQ, P_DATA_TF

from benchmarks import load as load_module
from benchmarks.accounting import Group
from benchmarks.floor import floor
from benchmarks.load import Load, LoadError, run
from benchmarks.load_idle import idle_associations
from benchmarks.messages import CT_IMAGE, Answer, Answers, Message, instance_uid
from benchmarks.node import Node, ours
from benchmarks.receivers import Pki, Receiver, Target, Unavailable, free_port, make_pki, wait_listening
from benchmarks.session import associate_request
from ingest.dicom.dimse import StoreRequest, encode_store_response
from ingest.ext.encode import encode_p_data
from tests.support.nodes import eventually
from tests.support.properties import examples

ROOT = "2.25.123456789012345678"
FILE_META_OF_THE_FLOOR = 328
REFUSING_SCP = """
import sys
from pynetdicom import AE, evt
from pynetdicom.sop_class import CTImageStorage
seen = 0
def store(event):
    global seen
    seen += 1
    return 0xA700 if seen % 3 == 0 else 0x0000
ae = AE()
ae.add_supported_context(CTImageStorage)
ae.start_server(("127.0.0.1", int(sys.argv[1])), evt_handlers=[(evt.EVT_C_STORE, store)])
"""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return make_pki(tmp_path_factory.mktemp("bench-pki"))


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory, keys: Pki) -> Iterator[Receiver]:
    """The floor."""
    try:
        with floor(tmp_path_factory.mktemp("floor"), keys, durability="page-cache") as running:
            yield running
    except Unavailable as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, keys: Pki) -> Iterator[Node]:
    """Our listeners."""
    with ours(tmp_path_factory.mktemp("ours"), keys, durability="page-cache") as running:
        yield running


def payloads(message: Message, pdu: int) -> tuple[bytes, bytes]:
    """Command set and data set of a message, by pynetdicom's decoder."""
    data = b"".join(bytes(piece) for piece in message.pieces)
    parts, last = {True: b"", False: b""}, {True: False, False: False}
    at = 0
    while at < len(data):
        length = int.from_bytes(data[at + 2 : at + 6], "big")
        assert length <= pdu
        decoded = P_DATA_TF()
        decoded.decode(data[at : at + 6 + length])
        for item in decoded.presentation_data_value_items:
            control = item.presentation_data_value[0]
            command = bool(control & 1)
            assert not last[command], "nothing follows the last fragment"
            parts[command] += item.presentation_data_value[1:]
            last[command] = bool(control & 2)
        at += 6 + length
    assert all(last.values())
    return parts[True], parts[False]


@given(
    size_and_pdu=st.one_of(
        st.tuples(st.integers(0, 70000), st.sampled_from([1024, 4096, 4097, 16384, 131072])),
        st.tuples(st.integers(2**20 - 500, 2**20 + 500), st.sampled_from([131072, 2**19])),
        st.tuples(st.integers(130, 131).map(lambda n: n * 16378), st.just(16384)),
        st.tuples(st.integers(3 * 2**20, 5 * 2**20), st.just(131072)),
    ),
    number=st.integers(0, 10**6),
    message_id=st.integers(1, 65535),
)
@examples(50)
def test_a_stamped_message_is_a_c_store_of_that_instance(
    size_and_pdu: tuple[int, int], number: int, message_id: int
) -> None:
    size, pdu = size_and_pdu
    message = Message(size, pdu, ROOT)
    message.stamp(7, 9)
    message.stamp(number, message_id)
    command_set, data_set = payloads(message, pdu)
    command = pydicom.dcmread(io.BytesIO(command_set), force=True)
    assert command.MessageID == message_id
    assert command.AffectedSOPInstanceUID == instance_uid(ROOT, number)
    assert len(data_set) == message.data_bytes
    assert message.data_bytes == size & ~1 or size < message.data_bytes < 600
    read = pydicom.dcmread(io.BytesIO(data_set), force=True)
    assert read.SOPInstanceUID == instance_uid(ROOT, number)
    assert read.StudyInstanceUID == ROOT
    assert len(read.PixelData or b"") % 2 == 0


def test_a_gigabyte_takes_no_gigabyte_of_memory() -> None:
    message = Message(1 << 30, 131072, ROOT)
    assert message.data_bytes == 1 << 30
    assert sum(len(piece) for piece in {id(piece): piece for piece in message.pieces}.values()) < 4 << 20
    assert sum(len(piece) for piece in message.pieces) > 1 << 30


def response(message_id: int, status: int = 0, uid: str = "1.2.3", pdu: int = 16384) -> bytes:
    return encode_p_data(1, encode_store_response(StoreRequest(message_id, CT_IMAGE, uid), status), pdu)


@pytest.mark.parametrize("cut", [1, 5, 13, 1000])
def test_answers_are_read_however_they_are_cut(cut: int) -> None:
    wanted = [(3, 0), (1, 0xA700), (65535, 0), (2, 0xB000), (4, 0)]
    uids = ["1.2.3", "1.2.34567", "1.2.3", "1.2.3.4.5.6.7", ""]
    stream = b"".join(response(*pair, uid) for pair, uid in zip(wanted, uids, strict=True))
    answers, found = Answers(), []
    for at in range(0, len(stream), cut):
        answers.feed(stream[at : at + cut])
        while (pdu := answers.pdu()) is not None:
            assert pdu[0] == 4
            found += answers.answers(pdu[1])
    assert found == [Answer(*pair) for pair in wanted]


def test_an_answer_in_several_fragments_is_one_answer() -> None:
    answers = Answers()
    answers.feed(response(8, 0xC123, "1.2.3", pdu=40))
    found, pdus = [], 0
    while (pdu := answers.pdu()) is not None:
        pdus += 1
        found += answers.answers(pdu[1])
    assert pdus > 1
    assert found == [Answer(8, 0xC123)]


def test_what_is_no_answer_raises() -> None:
    with pytest.raises(ValueError, match="no C-STORE-RSP"):
        Answers().answers(b"\4\0\0\0\0\x08\0\0\0\4\1\3ab")
    with pytest.raises(ValueError, match="data set"):
        Answers().answers(b"\4\0\0\0\0\x08\0\0\0\4\1\2ab")


def test_a_window_is_asked_for_only_when_wanted() -> None:
    for operations, asked in ((1, ()), (8, ((8, 1),))):
        request = A_ASSOCIATE_RQ()
        request.decode(associate_request(Target("localhost", 1), operations))
        items = request.user_information.user_data
        found = tuple(
            (item.max_operations_invoked, item.max_operations_performed)
            for item in items
            if hasattr(item, "max_operations_invoked")
        )
        assert found == asked


# --- against the floor


@pytest.mark.parametrize(
    "load",
    [
        Load(8 << 10, 20, root=ROOT),
        Load(512 << 10, 3, 2, pdu=16384, root=ROOT),
        Load(3 << 20, 2, 1, root=ROOT),
        Load(8 << 10, 5, 2, churn=True, root=ROOT),
        Load(8 << 10, 5, 2, tls_version="TLSv1.2", root=ROOT),
    ],
)
def test_all_that_was_acknowledged_is_stored_byte_for_byte(receiver: Receiver, load: Load) -> None:
    receiver.clear()
    result = run(receiver.target, load)
    count = load.instances * load.associations
    uids = list(result.acknowledged())
    assert (result.instances, result.failed, result.statuses) == (count, 0, {0: count})
    assert len(set(uids)) == len(result.latencies) == count
    assert receiver.missing(uids) == []
    assert receiver.stored() == count
    assert result.bytes == count * load.size
    assert 0 < min(result.latencies) <= result.latency(0.5) <= result.latency(0.99) <= result.seconds
    assert result.sender_seconds > 0
    message = Message(load.size, load.pdu, f"{ROOT}.{load.associations - 1}")
    message.stamp(load.instances - 1, 1)
    kept = (receiver.folder / "files" / f"{uids[-1]}.dcm").read_bytes()
    assert kept[FILE_META_OF_THE_FLOOR:] == payloads(message, 1 << 20)[1]


def test_the_same_root_sends_the_same_instances_and_no_root_new_ones(receiver: Receiver) -> None:
    receiver.clear()
    for root, stored in ((ROOT, 6), (ROOT, 6), ("", 12)):
        run(receiver.target, Load(8 << 10, 3, 2, root=root))
        assert receiver.stored() == stored


def test_an_instance_that_was_lost_after_its_success_is_missing(receiver: Receiver) -> None:
    result = run(receiver.target, Load(8 << 10, 5, 2))
    lost = list(result.acknowledged())[3]
    (receiver.folder / "files" / f"{lost}.dcm").unlink()
    assert receiver.missing(result.acknowledged()) == [lost]


def test_progress_is_told_up_to_the_last(receiver: Receiver) -> None:
    told: list[int] = []
    run(receiver.target, Load(8 << 10, 20, 2, think_seconds=0.02), progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 40
    assert len(told) > 2


def test_think_time_is_kept(receiver: Receiver) -> None:
    result = run(receiver.target, Load(8 << 10, 5, 1, think_seconds=0.1))
    assert result.seconds >= 0.4
    assert result.latency(0.5) < 0.1


def test_the_floor_grants_no_operations_window(receiver: Receiver) -> None:
    result = run(receiver.target, Load(8 << 10, 20, 2, operations=8))
    assert (result.operations, result.failed) == (1, 0)


def test_idle_associations_are_open_before_the_load_and_gone_after_it(receiver: Receiver) -> None:
    before = len(receiver.group.pids())
    with idle_associations(receiver.target, 20):
        assert len(receiver.group.pids()) == before + 20
        assert run(receiver.target, Load(8 << 10, 5, 2, idle=5)).instances == 10
    eventually(lambda: len(receiver.group.pids()) == before, what="they are released")


def test_cpu_time_of_the_floors_ended_processes_is_counted(receiver: Receiver) -> None:
    before = receiver.group.cpu_seconds()
    result = run(receiver.target, Load(512 << 10, 40, 2))
    eventually(lambda: len(receiver.group.pids()) == 1, what="only the floor itself is left")
    used = receiver.group.cpu_seconds() - before
    assert result.bytes / 20e9 < used < 2 * result.seconds + 1


def test_the_floor_requires_a_client_certificate(receiver: Receiver, keys: Pki) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(keys.trusted)
    with (
        socket.create_connection(("127.0.0.1", receiver.target.port)) as plain,
        context.wrap_socket(plain) as connection,
    ):
        connection.sendall(associate_request(receiver.target, 1))
        with pytest.raises(ssl.SSLError, match="certificate required"):
            connection.recv(1)


def test_a_durable_floor_stores_what_it_acknowledges(tmp_path: Path, keys: Pki) -> None:
    with floor(tmp_path, keys, durability="fsync") as receiver:
        assert receiver.facts.durable
        result = run(receiver.target, Load(8 << 10, 3, 2))
        assert receiver.missing(result.acknowledged()) == []


# --- against others


def test_our_node_grants_operations_and_loses_nothing(node: Node) -> None:
    result = run(node.target, Load(8 << 10, 50, 2, operations=16))
    assert (result.operations, result.instances, result.failed) == (16, 100, 0)
    assert node.missing(result.acknowledged()) == []
    assert node.waiting() == node.stored() == 100
    uid = next(iter(result.acknowledged()))
    for path in (node.folder / "var" / "spool").glob("L*/ready/*"):
        if uid.encode() in path.read_bytes():
            path.unlink()
    assert node.missing(result.acknowledged()) == [uid]
    node.clear()
    assert node.stored() == 0
    assert run(node.target, Load(8 << 10, 3, 2)).failed == 0


def test_refused_instances_are_not_among_the_acknowledged(tmp_path: Path) -> None:
    port = free_port()
    with Group("refusing") as group:
        scp = group.popen([sys.executable, "-c", REFUSING_SCP, str(port)], stderr=subprocess.DEVNULL)
        wait_listening(port, scp, tmp_path / "log")
        result = run(Target("127.0.0.1", port), Load(8 << 10, 9, 1))
    assert result.statuses == {0: 6, 0xA700: 3}
    assert (result.instances, result.failed, len(result.latencies)) == (6, 3, 9)
    assert list(result.acknowledged()) == [instance_uid(f"{result.root}.0", n) for n in (0, 1, 3, 4, 6, 7)]


def test_without_a_receiver_the_error_says_so() -> None:
    with pytest.raises(LoadError, match="ConnectionRefusedError"):
        run(Target("127.0.0.1", free_port()), Load(8 << 10, 1, 2))
    with (
        pytest.raises(LoadError, match="ConnectionRefusedError"),
        idle_associations(Target("127.0.0.1", free_port()), 3),
    ):
        pass


def test_a_receiver_that_dies_is_an_error_and_no_wait(tmp_path: Path, keys: Pki) -> None:
    with floor(tmp_path, keys, durability="page-cache") as receiver:

        def kill() -> None:
            eventually(lambda: receiver.stored() > 2, what="it has begun")
            for pid in receiver.group.pids():
                with contextlib.suppress(ProcessLookupError):  # it has followed another of the group
                    os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        started = time.monotonic()
        with pytest.raises(LoadError):
            run(receiver.target, Load(8 << 10, 100000, 2, think_seconds=0.01))
        killer.join()
        assert time.monotonic() - started < 20


def test_a_receiver_that_stops_answering_is_given_up(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_module, "STALLED_SECONDS", 1.0)
    with pytest.raises(LoadError, match="no answer for"):
        run(receiver.target, Load(8 << 10, 2, 2, think_seconds=30))
