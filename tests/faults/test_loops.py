"""Real nodes that forward to each other, and a peer that sends each image back changed: every loop ends."""

import contextlib
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from ingest.requestor.store_scu import StoreSCU
from tests.support.instances import CT, EXPLICIT, Made
from tests.support.nodes import Node, eventually
from tests.support.peers import PynetdicomRemote, Stored
from tests.support.ports import free_port
from tests.support.senders import TIMEOUTS, remote_of

IMAGE = Made(sop="1.2.3.4", calling="CT1")
Nodes = Callable[..., Node]


def send(node: Node, made: Made, folder: Path) -> None:
    """Send one image as the modality CT1."""
    path = folder / f"sending-{threading.get_ident()}"
    path.write_bytes(made.data_set)
    with StoreSCU.open(remote_of(node), [(CT, [made.syntax])], timeouts=TIMEOUTS) as association:
        answer = association.store_instance(
            path, 0, None, sop_class=CT, sop_instance=made.sop, transfer_syntax=made.syntax
        )
    assert answer.status == 0


def ring(make_node: Nodes, titles: Sequence[str], policy: str, *, returns: bool = False) -> list[Node]:
    """Running nodes, each of which forwards to the next, and the last to the first."""
    nodes = [make_node(f"node{number}") for number in range(len(titles))]
    for node in nodes:
        node.tls_port, node.plain_port = free_port(), free_port()
    for number, node in enumerate(nodes):
        other = (number + 1) % len(nodes)
        node.configure(
            node=f'[node]\nae_title = "{titles[number]}"\ndata_dir = "var"',
            store=f'[store]\nduplicates = "{policy}"',
            destinations=(
                f'[[destinations]]\nname = "next"\nae_title = "{titles[other]}"\nhost = "localhost"\n'
                f'port = {nodes[other].tls_port}\ntls = "node"\nretry_first_seconds = 0.2\n'
                f'[[routes]]\nname = "all"\nto = ["next"]\nreturn = {str(returns).lower()}'
            ),
        )
    return [node.start() for node in nodes]


def rows(node: Node) -> list[tuple[str, str]]:
    return list(node.query("SELECT state, routed FROM instances ORDER BY id"))


def stays(nodes: Sequence[Node]) -> bool:
    """Whether nothing more happens."""

    def counts() -> list[object]:
        return [(rows(node), node.deliveries(), len(node.events("duplicate_dropped"))) for node in nodes]

    before = counts()
    time.sleep(1.0)
    return counts() == before and all(node.spooled() == [] for node in nodes)


@pytest.mark.parametrize("policy", ["overwrite", "keep-both"])
def test_nothing_goes_back_to_the_node_that_it_came_from(
    make_node: Nodes, tmp_path: Path, policy: str
) -> None:
    first, second = ring(make_node, ["A", "B"], policy)
    send(first, IMAGE, tmp_path)
    eventually(lambda: first.deliveries() == {"delivered": 1} and second.stored(), 30, "delivered")
    assert stays([first, second])
    assert rows(first) == [("stored", "all")]
    assert rows(second) == [("stored", "all; not sent back to next")]
    assert second.deliveries() == {}
    (event,) = second.events("not_sent_back")
    assert (event["destination"], event["calling_ae"]) == ("next", "A")


@pytest.mark.parametrize(
    ("titles", "policy"),
    [(["A", "B"], "overwrite"), (["A", "B"], "keep-both"), (["INGEST", "INGEST"], "overwrite")],
    ids=["returned-overwrite", "returned-keep-both", "same-title"],
)
def test_image_that_comes_back_unchanged_is_no_event(
    make_node: Nodes, tmp_path: Path, policy: str, titles: list[str]
) -> None:
    nodes = ring(make_node, titles, policy, returns=titles == ["A", "B"])
    send(nodes[0], IMAGE, tmp_path)
    eventually(lambda: nodes[0].events("duplicate_dropped"), 30, "it came back")
    eventually(lambda: [node.deliveries() for node in nodes] == [{"delivered": 1}] * 2, 30, "delivered")
    assert stays(nodes)
    assert [rows(node) for node in nodes] == [[("stored", "all")]] * 2


def test_ring_of_three_ends_where_it_began(make_node: Nodes, tmp_path: Path) -> None:
    nodes = ring(make_node, ["A", "B", "C"], "overwrite")
    send(nodes[0], IMAGE, tmp_path)
    eventually(lambda: nodes[0].events("duplicate_dropped"), 30, "it came round")
    eventually(lambda: [node.deliveries() for node in nodes] == [{"delivered": 1}] * 3, 30, "delivered")
    assert stays(nodes)
    assert [rows(node) for node in nodes] == [[("stored", "all")]] * 3


class Changer:
    """A remote that sends every image back to a node with other pixels, until `stop`."""

    def __init__(self, node: Node, folder: Path) -> None:
        self._node, self._folder = node, folder
        self._queue: queue.Queue[Stored | None] = queue.Queue()
        self._remote = PynetdicomRemote([(CT, [EXPLICIT])], answer=self._take)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.got = 0

    @contextlib.contextmanager
    def at_work(self) -> Iterator[int]:
        """Yields its port."""
        with self._remote:
            self._thread.start()
            yield self._remote.port
            self.stop()

    def stop(self) -> None:
        self._queue.put(None)
        self._thread.join(20)

    def _take(self, stored: Stored) -> int:
        self.got += 1
        self._queue.put(stored)
        return 0

    def _run(self) -> None:
        number = 0
        while (stored := self._queue.get()) is not None:
            number += 1
            send(self._node, Made(sop=stored.sop_instance, pixels=b"%8d" % number), self._folder)


def command(node: Node, *arguments: str) -> str:
    """What an `ingest` command of this node prints."""
    made = [sys.executable, "-m", "ingest.cli", *arguments, "-c", str(node.config_path)]
    done = subprocess.run(made, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])
    return done.stdout


@pytest.mark.parametrize("policy", ["overwrite", "keep-both"])
def test_peer_that_changes_each_image_gets_a_bounded_number_and_an_alarm_is_raised(
    make_node: Nodes, tmp_path: Path, policy: str
) -> None:
    node = make_node("node")
    changer = Changer(node, tmp_path)
    with changer.at_work() as port:
        node.start(
            store=f'[store]\nduplicates = "{policy}"',
            destinations=(
                f'[[destinations]]\nname = "ai"\nae_title = "AI"\nhost = "127.0.0.1"\nport = {port}\n'
                'tls = false\nlinger_seconds = 5\n[[routes]]\nname = "all"\nto = ["ai"]'
            ),
        )
        send(node, IMAGE, tmp_path)
        eventually(lambda: len(rows(node)) == 11, 60, "ten went round, and the eleventh stays")
        assert stays([node])
        assert changer.got == 10
        assert rows(node)[-1] == ("stored", "all; not sent to ai: 10 objects of its UID were within an hour")
        (alarm,) = json.loads(command(node, "status", "--json"))["alarms"]
        assert alarm["name"] == "replacements_bounded.ai"
        assert "ingest deliver --to ai --sop 1.2.3.4" in alarm["remedy"]
        changer.stop()
        assert "ai: 1 to be delivered" in command(node, "deliver", "--to", "ai", "--sop", "1.2.3.4")
        eventually(lambda: changer.got == 11, 20, "a person has it delivered")
        assert json.loads(command(node, "status", "--json"))["alarms"] == []
