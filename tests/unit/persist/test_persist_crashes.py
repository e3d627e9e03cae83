"""A worker that dies at any line: the next one ends with the same store, ledger and queue."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingest.ledger import InstanceState
from ingest.ledger.instances import Instances
from ingest.queue.consumer import StreamConsumer
from ingest.queue.wakeups import WakeUps
from ingest.workers.persist.batch import PersistBatch
from ingest.workers.persist.spool_entry import OpenSegments
from ingest.workers.persist.storage import BatchStorage
from ingest.workers.store.filesystem import FileStore
from tests.support.instances import IMPLICIT, Made
from tests.support.nodes import eventually
from tests.support.persisting import Site, sections_of

Sites = Callable[..., Site]


class Killed(BaseException):
    """What nothing in the worker catches, as nothing catches SIGKILL."""


STEPS: list[tuple[type, str]] = [
    (FileStore, "put"),
    (FileStore, "sync"),
    (Instances, "record"),
    (BatchStorage, "finish_commit"),
    (PersistBatch, "_release_spool_entry"),
    (StreamConsumer, "acknowledge_entries"),
    (WakeUps, "send"),
]
REPLACING: list[tuple[type, str]] = [(FileStore, "replace"), (Instances, "mark_replaced")]
COPYING: list[tuple[type, str]] = [(FileStore, "sync_sources"), (OpenSegments, "mark_done")]


CASES = [
    (policy, carried, owner, name, after)
    for policy, carried in (
        ("keep-identical", "link"),
        ("keep-identical", "copy"),
        ("keep-identical", "redis"),
        ("keep-identical", "segment"),
        ("keep-both", "link"),
        ("keep-both", "segment"),
        ("overwrite", "link"),
        ("overwrite", "copy"),
        ("overwrite", "segment"),
    )
    for owner, name in (
        STEPS + (REPLACING if policy == "overwrite" else []) + (COPYING if carried == "segment" else [])
    )
    for after in (False, True)
]


def die_at(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, *, after: bool, call: int) -> None:
    """Have the `call`-th call of a method kill the worker, before or after its work."""
    real = getattr(owner, name)
    calls = 0

    def dying(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            raise Killed
        result = real(*arguments, **keywords)
        if calls == call:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, dying)


def check_whole(site: Site, expected: dict[str, list[InstanceState]]) -> None:
    """Every row once, true to its file; nothing left over."""
    rows = site.instances()
    found: dict[str, list[InstanceState]] = {}
    for row in rows:
        found.setdefault(row.sop_instance_uid, []).append(row.state)
    assert found == expected
    kept = {row.store_key: row for row in rows if row.state in {InstanceState.STORED, InstanceState.VARIANT}}
    assert site.stored() == sorted(kept)
    store = FileStore(site.config.store_root)
    assert all(store.read_size(key) == row.size for key, row in kept.items())
    quarantined = sorted(row.store_key for row in rows if row.state is InstanceState.QUARANTINED)
    assert [path.name for path in site.quarantined()] == quarantined
    with site.ledger() as ledger:
        for row in rows:
            deliveries = ledger.deliveries.find_by_instance(row.id)
            assert len(deliveries) == (row.state is not InstanceState.QUARANTINED), row
    assert site.settled()
    assert site.pending() == 0
    assert list((site.config.store_root / ".incoming").glob("*/*")) == []


@pytest.mark.parametrize(
    ("policy", "carried", "owner", "name", "after"),
    CASES,
    ids=[
        f"{policy}-{carried}-{'after' if after else 'before'}-{name}"
        for policy, carried, _, name, after in CASES
    ],
)
def test_death_at_any_step_loses_and_doubles_nothing(
    make_persist_site: Sites,
    second_file_system: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
    after: bool,
    carried: str,
    policy: str,
) -> None:
    site = make_persist_site(**sections_of(policy, carried, second_file_system))
    site.in_segments = carried == "segment"
    with site.ledger():
        pass
    for made in (
        Made(sop="1.1"),
        Made(sop="1.2"),
        Made(sop="1.2", pixels=b"zz"),
        Made(sop="1.3"),
        Made(sop="1.3"),
    ):
        site.receive(made)
    site.receive(Made(sop="1.3", syntax=IMPLICIT))
    site.receive(b"unreadable")
    died = False
    for call in (1, 2):
        with monkeypatch.context() as patch:
            die_at(patch, owner, name, after=after, call=call)
            try:
                site.work()
            except Killed:
                died = True
    site.work()
    assert died
    stored, variant, quarantined = InstanceState.STORED, InstanceState.VARIANT, InstanceState.QUARANTINED
    if policy == "keep-identical":
        check_whole(
            site, {"1.1": [stored], "1.2": [stored, quarantined], "1.3": [stored, variant], "": [quarantined]}
        )
    elif policy == "keep-both":
        check_whole(site, {"1.1": [stored], "1.2": [stored] * 2, "1.3": [stored] * 2, "": [quarantined]})
    else:
        check_whole_overwritten(site)
    if carried == "redis":
        assert set(site.persisted()) == {f"L0/ready/{number:04x}.dcm" for number in range(1, 8)}


def check_whole_overwritten(site: Site) -> None:
    """How many objects had a row before they were replaced depends on the death; the end does not."""
    rows = site.instances()
    stored = {row.sop_instance_uid: row for row in rows if row.state is InstanceState.STORED}
    assert sorted(stored) == ["1.1", "1.2", "1.3"]
    assert len([row for row in rows if row.state is InstanceState.STORED]) == 3
    store = FileStore(site.config.store_root)
    assert site.stored() == sorted(row.store_key for row in stored.values())
    assert all(store.read_size(row.store_key) == row.size for row in stored.values())
    with site.ledger() as ledger:
        assert all(len(ledger.deliveries.find_by_instance(row.id)) == 1 for row in stored.values())
    assert site.settled()
    assert site.pending() == 0


def start_worker(site: Site) -> "subprocess.Popen[bytes]":
    """A persist worker as a process of its own."""
    config = site.config.data_dir / "config.json"
    config.write_text(site.config.model_dump_json())
    program = (
        "import sys, threading; from pathlib import Path\n"
        "from ingest.config.model import Config; from ingest.workers.persist.worker import main\n"
        "sys.exit(main(Config.model_validate_json(Path(sys.argv[1]).read_text()), threading.Event()))"
    )
    return subprocess.Popen([sys.executable, "-c", program, str(config)], cwd=Path(__file__).parents[3])


def test_worker_killed_again_and_again_in_mid_stream_loses_and_doubles_nothing(site: Site) -> None:
    count = 3000
    with site.ledger() as ledger:
        for number in range(count):
            site.receive(Made(sop=f"1.9.{number}", series=f"1.8.{number % 5}"))
        for share in (200, 900, 1800):
            worker = start_worker(site)
            eventually(lambda share=share: sum(ledger.count_rows().instances.values()) >= share, 30)
            os.kill(worker.pid, signal.SIGKILL)
            worker.wait()
    worker = start_worker(site)
    eventually(site.settled, 30)
    worker.terminate()
    assert worker.wait(10) == 0
    check_whole(site, {f"1.9.{number}": [InstanceState.STORED] for number in range(count)})


def test_worker_told_to_stop_finishes_what_it_has_in_hand(site: Site) -> None:
    for number in range(500):
        site.receive(Made(sop=f"1.9.{number}"))
    worker = start_worker(site)
    with site.ledger() as ledger:
        eventually(lambda: sum(ledger.count_rows().instances.values()) >= 64, 30)
    worker.terminate()
    assert worker.wait(10) == 0
    assert site.pending() == 0
    assert len(site.instances()) + len(site.waiting()) == 500
