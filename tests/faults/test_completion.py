"""Studies are complete exactly once, after their last instance, whatever dies meanwhile."""

import contextlib
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from ingest.requestor.store_scu import StoreSCU
from tests.faults.watch import receive
from tests.support.instances import CT, EXPLICIT, Made
from tests.support.interleaved import InterleavedSenders, interleave, kill_in_turn
from tests.support.nodes import Node, destination, eventually
from tests.support.peers import PynetdicomRemote
from tests.support.pki import Material
from tests.support.senders import TIMEOUTS, remote_of

NODE = (
    '[node]\nae_title = "INGEST"\ndata_dir = "var"\ndrain_seconds = 10\nstable_seconds = {stable}\n'
    "complete_idle_seconds = {idle}\n"
)
EVENTS = "SELECT study_uid, generation, event, instances, at, last_at FROM completions WHERE series_uid = ''"


def suspend_without_lock(node: Node, worker: psutil.Process) -> bool:
    """Stop a worker, unless it is writing to the ledger at this moment: nobody else could write then."""
    worker.suspend()
    with contextlib.closing(sqlite3.connect(node.data / "ledger.db", timeout=1)) as ledger:
        try:
            ledger.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            worker.resume()
            return False
        ledger.rollback()
    return True


def of_study(text: str) -> str:
    """The route of `destination`, for whole studies."""
    return f'{text}on = "study"\n'


@pytest.mark.parametrize(
    ("studies", "instances", "rounds", "pause"),
    [
        pytest.param(60, 20, 8, 0.06, marks=pytest.mark.slow),
        pytest.param(1000, 100, 60, 0.02, marks=(pytest.mark.long, pytest.mark.timeout(1500))),
    ],
)
def test_each_of_many_interleaved_studies_is_complete_once_after_its_last_instance(
    studies: int,
    instances: int,
    rounds: int,
    pause: float,
    make_node: Callable[..., Node],
    tmp_path: Path,
) -> None:
    order = interleave(studies, instances, seed=studies)
    node = make_node(
        node=f"{NODE.format(stable=6, idle=60)}record_completions = true",
        receive=receive(segment_max_bytes=0 if studies < 100 else 65536),
        workers="[workers]\npersist = 2\nforward = 1",
    ).start()
    killed = []
    with InterleavedSenders(node, tmp_path / "senders", order, pause=pause) as senders:
        killed += list(kill_in_turn(node, senders, rounds))
        senders.until(1)
    assert len(killed) == rounds
    eventually(
        lambda: node.query("SELECT count(*) FROM receptions WHERE state = 'receiving'") == [(0,)],
        90,
        "all studies are complete",
    )
    rows = node.query(EVENTS)
    assert sorted({row[0] for row in rows}) == sorted({study for study, _ in order})
    assert [row[:4] for row in rows if row[1:4] != (1, "complete", instances)] == []
    assert len(rows) == studies
    stored = dict(node.query("SELECT study_uid, max(stored_at) FROM instances GROUP BY 1"))
    for study, _, _, _, at, last_at in rows:
        assert last_at >= stored[study]
        assert at >= last_at + 6000
        assert at >= senders.ended[study] * 1000
    assert node.query("SELECT count(*) FROM instances WHERE state = 'stored'") == [(len(order),)]
    assert node.stop() == 0


def test_open_association_holds_its_last_study_until_it_idles_or_carries_another(
    make_node: Callable[..., Node], material: Material, tmp_path: Path
) -> None:
    with PynetdicomRemote([(CT, [EXPLICIT])], material.tls("remote")) as remote:
        node = make_node(
            node=NODE.format(stable=1, idle=6),
            destinations=of_study(destination("archive", remote.port)),
        ).start()

        def store(association: StoreSCU, study: str, number: int) -> None:
            made = Made(sop=f"1.2.{study}.{number}", study=f"1.2.{study}", series=f"1.2.{study}.9")
            path = tmp_path / made.sop
            path.write_bytes(made.data_set)
            answer = association.store_instance(
                path, 0, None, sop_class=CT, sop_instance=made.sop, transfer_syntax=EXPLICIT
            )
            assert answer.status == 0

        def events(study: str) -> list[tuple[int, str, int]]:
            rows = node.query(f"{EVENTS} AND study_uid = ? ORDER BY id", f"1.2.{study}")
            return [row[1:4] for row in rows]

        def open_association() -> StoreSCU:
            return StoreSCU.open(remote_of(node), [(CT, [EXPLICIT])], timeouts=TIMEOUTS)

        with open_association() as association:
            store(association, "1", 1)
            began = time.monotonic()
            eventually(lambda: node.query("SELECT 1 FROM receptions"))
            # Stable for long, and still held. Redis knows nothing of it.
            node.kill_child("valkey-server")
            while time.monotonic() < began + 3.5:
                assert events("1") == []
                time.sleep(0.1)
            store(association, "2", 1)
            eventually(lambda: events("1") == [(1, "complete", 1)], 10)
            assert events("2") == []
            eventually(lambda: len(remote.stored) == 1, 20)
            # Nothing comes any more, and the association stays open.
            eventually(lambda: events("2") == [(1, "complete", 1)], 20)
        with open_association() as association:
            store(association, "2", 2)
            eventually(lambda: events("2")[1:] == [(2, "reopened", 1)])
        eventually(lambda: events("2")[2:] == [(2, "complete", 1)], 10)

        # The association of a killed listener has ended.
        association = open_association()
        store(association, "3", 1)
        eventually(lambda: node.query("SELECT 1 FROM receptions WHERE study_uid = '1.2.3'"))
        for child in node.children("ingest-listen"):
            child.kill()
        association.abort()
        began = time.monotonic()
        eventually(lambda: events("3") == [(1, "complete", 1)], 5)
        assert time.monotonic() - began < 5, "it did not wait for the idle time"
        eventually(lambda: len(remote.stored) == 4, 20)
        uids = [stored.sop_instance for stored in remote.stored]
        assert uids == ["1.2.1.1", "1.2.2.1", "1.2.2.2", "1.2.3.1"]
    assert node.stop() == 0


def test_nothing_completes_while_its_spool_has_older_instances(
    make_node: Callable[..., Node], material: Material, tmp_path: Path
) -> None:
    node = make_node(node=f"{NODE.format(stable=4, idle=60)}record_completions = true").start()
    order = [("1.2.9", number) for number in range(30)]
    with InterleavedSenders(node, tmp_path / "senders", order[:20], senders=2) as senders:
        senders.until(1)
    eventually(lambda: node.query("SELECT count(*) FROM instances") == [(20,)])
    # No worker persists any more: it is stopped, and does not die.
    [worker] = node.children("ingest-persist")
    eventually(lambda: suspend_without_lock(node, worker))
    with InterleavedSenders(node, tmp_path / "senders", order[20:], senders=2) as senders:
        senders.until(1)
    # The monitor has seen that no association is open.
    eventually(lambda: node.query("SELECT * FROM carriers") == [])
    [(due_at,)] = node.query("SELECT due_at FROM receptions")
    while time.time() < due_at / 1000 + 4:
        assert node.query(EVENTS) == []
        time.sleep(0.1)
    worker.resume()
    [row] = eventually(lambda: node.query(EVENTS), 20)
    assert row[1:4] == (1, "complete", 30)
    assert node.stop() == 0
