"""kill -9 of any process of a node, in mid-stream: what was promised is kept and delivered, and nothing is
half there.

Two nodes: everything that the first one promises must reach the second. The figures of recovery go into the
report of the test run (`record_property`).
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ingest.queue.client import find_socket_path
from tests.faults.watch import receive
from tests.support.nodes import Node, destination, eventually
from tests.support.senders import Modality, kept_whole, nothing_half_there

RECOVERY_SECONDS = 15.0
BEFORE, AFTER = 150, 100


@pytest.fixture(params=[0, 65536], ids=["files", "segments"])
def pair(request: pytest.FixtureRequest, make_node: Callable[..., Node]) -> tuple[Node, Node]:
    """A node, and the remote to which it forwards everything."""
    remote = make_node("remote").start()
    node = make_node(
        "node",
        receive=receive(segment_max_bytes=request.param),
        workers="[workers]\npersist = 2\nforward = 2",
        destinations=destination("remote", remote.tls_port, retry_first_seconds=0.5),
    )
    return node.start(), remote


@contextlib.contextmanager
def recovery(
    node: Node, remote: Node, modality: Modality, record_property: Callable[[str, object], None]
) -> Iterator[None]:
    """After the block, all promises must be kept within the time that the node has to recover."""
    yield
    started = time.monotonic()
    promised = dict(modality.acknowledged)
    eventually(lambda: kept_whole(node, promised), RECOVERY_SECONDS, "all promised is in store and ledger")
    record_property("recovered_seconds", round(time.monotonic() - started, 2))
    eventually(lambda: set(node.deliveries()) == {"delivered"}, 60, f"deliveries end: {node.deliveries()}")
    eventually(lambda: kept_whole(remote, promised), 20, "all of it is in the remote")
    eventually(lambda: node.spooled() == [], RECOVERY_SECONDS, "the spool is empty")
    nothing_half_there(node, modality)
    rows = remote.query("SELECT count(*), count(DISTINCT sop_instance_uid) FROM instances")
    assert rows[0][0] == rows[0][1], "an instance is twice in the remote"


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["ingest-listen", "ingest-persist", "ingest-forward", "valkey-server"])
def test_a_killed_child_loses_nothing_and_its_work_goes_on(
    victim: str,
    pair: tuple[Node, Node],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    node, remote = pair
    with Modality(node, tmp_path / "sender") as modality:
        modality.until(BEFORE)
        killed = node.kill_child(victim)
        with recovery(node, remote, modality, record_property):
            modality.until(AFTER)
            modality.stop()
    assert not psutil.pid_exists(killed)
    assert node.stop() == 0


@pytest.mark.slow
def test_a_killed_supervisor_takes_its_node_along_and_the_next_one_finds_everything(
    pair: tuple[Node, Node],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    node, remote = pair
    with Modality(node, tmp_path / "sender") as modality:
        modality.until(BEFORE)
        family = node.children()
        node.kill()
        eventually(
            lambda: not any(child.is_running() for child in family), 10, "no process of the old node is left"
        )
        with recovery(node, remote, modality, record_property):
            node.start()
            modality.until(AFTER)
            modality.stop()
    assert node.stop() == 0


@pytest.mark.slow
def test_an_emptied_redis_is_filled_again(
    pair: tuple[Node, Node],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    import redis

    node, remote = pair
    with (
        Modality(node, tmp_path / "sender") as modality,
        contextlib.closing(redis.Redis(unix_socket_path=str(find_socket_path(node.data)))) as client,
    ):
        modality.until(BEFORE)
        client.flushall()
        with recovery(node, remote, modality, record_property):
            modality.until(AFTER)
            client.flushall()
            modality.stop()
    assert node.stop() == 0
