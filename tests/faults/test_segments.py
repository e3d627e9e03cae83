"""Small instances that share a segment, through a whole node: what is small, what is not, what is odd."""

from collections.abc import Callable

import pytest

from ingest.spool import segment
from tests.faults.caller import Caller, new_uid
from tests.faults.watch import assert_sound, receive, row
from tests.instances import Made
from tests.nodes import Node, eventually

LIMIT = 65536


@pytest.fixture(params=["fsync", "page-cache"])
def node(request: pytest.FixtureRequest, start_node: Callable[..., Node]) -> Node:
    return start_node(receive=receive(processes=1, durability=request.param, segment_max_bytes=LIMIT))


def made(pixels: int, **fields: str) -> Made:
    return Made(sop=new_uid(), pixels=bytes(range(256)) * (pixels // 256), **fields)


def records(node: Node) -> list[segment.Record]:
    return [each for path in node.spool.glob("L*/segments/*.seg") for each in segment.walk(path)]


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
    eventually(lambda: all(each.done for each in records(node)), 20, "all is marked")
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
