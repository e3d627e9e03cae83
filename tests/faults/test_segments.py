"""Small instances that share a segment, through a whole node: what is small, what is not, what is odd."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from ingest.alarms import standing_alarms
from ingest.spool import segment
from tests.faults.caller import Caller, new_uid
from tests.faults.watch import assert_sound, listeners, receive, row
from tests.support.instances import Made
from tests.support.nodes import Node, eventually
from tests.support.senders import Modality, kept_whole

LIMIT = 65536


@pytest.fixture(params=["fsync", "page-cache"])
def node(request: pytest.FixtureRequest, start_node: Callable[..., Node]) -> Node:
    return start_node(receive=receive(processes=1, durability=request.param, segment_max_bytes=LIMIT))


def made(pixels: int, **fields: str) -> Made:
    return Made(sop=new_uid(), pixels=bytes(range(256)) * (pixels // 256), **fields)


def records(node: Node) -> list[segment.Record]:
    return [each for path in node.spool.glob("L*/segments/*.seg") for each in segment.read_records(path)]


def test_the_small_share_a_segment_and_the_large_do_not(node: Node) -> None:
    small = [made(size) for size in (256, 8192, 8192, 60000)]
    large = [made(size) for size in (LIMIT + 256, 1 << 20)]
    with Caller.tls(node) as caller:
        caller.associate()
        for each in (*small, *large):
            assert caller.store(each).status == 0
        caller.release()
    eventually(lambda: {each.sop for each in (*small, *large)} <= set(node.stored()), 20)
    for each in (*small, *large):
        content = node.stored()[each.sop].read_bytes()
        assert content[128:132] == b"DICM"
        assert content.endswith(each.data_set)
    found = records(node)
    assert len(found) == len(small)
    assert [each.length for each in found] == [node.stored()[each.sop].stat().st_size for each in small]
    eventually(lambda: all(each.is_persisted for each in records(node)), 20, "all is marked")
    assert node.spooled() == []
    assert node.partials() == []
    assert_sound(node)


def test_a_small_one_that_is_not_what_its_command_said_is_a_file_in_quarantine(node: Node) -> None:
    wrong = made(8192, sop_in_data_set=new_uid())
    with Caller.tls(node) as caller:
        caller.associate()
        assert caller.store(wrong).status == 0xA900
        right = made(8192)
        assert caller.store(right).status == 0
        caller.release()
    eventually(lambda: right.sop in node.stored(), 20)
    assert row(node, wrong.sop, "quarantined")["note"]
    assert len(records(node)) == 1
    assert_sound(node)


def test_segments_are_used_again_once_all_in_them_is_kept(start_node: Callable[..., Node]) -> None:
    node = start_node(
        receive=receive(processes=1, durability="page-cache", segment_max_bytes=1 << 20),
        workers="[workers]\npersist = 2\nforward = 1",
    )
    sent = 60
    with Caller.plain(node) as caller:
        caller.associate()
        for _ in range(sent):
            assert caller.store(made(900_000)).status == 0
        caller.release()
    eventually(lambda: len(node.stored()) == sent, 60)
    # 60 x 0.9 MB fill seven segments; what is kept for use again is bounded, the rest goes.
    eventually(lambda: len(list(node.spool.glob("L*/segments/*.seg"))) == 1, 20, "only the current one")
    assert len(list(node.spool.glob("L*/segments/*.tmp"))) <= 4
    assert_sound(node)


def test_listeners_that_follow_each_other_in_one_slot_lose_nothing(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    node = make_node()
    node.configure(
        node=f'[node]\nae_title = "INGEST"\ndrain_seconds = 0.5\ndata_dir = "{node.data}"',
        receive=receive(processes=1, durability="page-cache", segment_max_bytes=LIMIT),
    )
    node.start()
    with Modality(node, tmp_path / "sender", size=20_000, associations=2) as modality:
        for turn in range(4):
            modality.until(30)
            [pid] = listeners(node)
            os.kill(pid, signal.SIGTERM if turn % 2 else signal.SIGKILL)
            eventually(lambda pid=pid: listeners(node) and pid not in listeners(node), 20, "a successor")
        modality.until(30)
        modality.stop()
    promised = dict(modality.acknowledged)
    eventually(lambda: kept_whole(node, promised), 30, "all promised is in store and ledger")
    assert node.query("SELECT count(*) FROM instances WHERE state = 'quarantined'") == [(0,)]
    # Of each listener one segment is left at most; no slot was taken twice.
    assert [path.name for path in sorted(node.spool.glob("L*")) if path.name != "L0"] == []
    eventually(lambda: all(each.is_persisted for each in records(node)), 20, "all is marked")
    assert node.stop() == 0


def test_a_rotten_record_of_a_running_node_is_an_alarm_and_kept(start_node: Callable[..., Node]) -> None:
    node = start_node(
        receive=receive(processes=1, durability="page-cache", segment_max_bytes=LIMIT),
        workers="[workers]\npersist = 0",
    )
    sent = [made(8192) for _ in range(3)]
    with Caller.plain(node) as caller:
        caller.associate()
        for each in sent:
            assert caller.store(each).status == 0
        caller.release()
    assert node.stop() == 0
    [path] = node.spool.glob("L*/segments/*.seg")
    first, second, _ = segment.read_records(path)
    with path.open("r+b") as file:
        file.seek(first.offset + 4000)
        file.write(b"rotten")  # the bytes of the first
        file.seek(second.offset - 60)
        file.write(b"\x01")  # the header of the second
    before = path.read_bytes()
    node.configure(workers="[workers]\npersist = 1")
    node.start()
    eventually(lambda: set(node.stored()) == {sent[2].sop}, 20)
    assert "damaged in the spool" in row(node, sent[0].sop, "quarantined")["note"]
    eventually(lambda: "spool_damaged" in {alarm.name for alarm in standing_alarms(node.data / "run")}, 30)
    [kept] = node.spool.glob("L*/segments/*.damaged")
    assert kept.read_bytes()[: segment.MARKS_AT - 8192] == before[: segment.MARKS_AT - 8192]
    assert node.stop() == 0
