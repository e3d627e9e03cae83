"""Whether the store has room: what the remover finds, what it leaves word of, and who reads it."""

import threading
from pathlib import Path
from typing import Any

import pytest
import structlog

import ingest.workers.retention.remover
from ingest.checks.node import check_node
from ingest.config.model import Config
from ingest.ledger import DeliveryState
from ingest.spool import store_capacity
from ingest.status.report import gather_status
from tests.support.persisting import Site
from tests.support.retaining import deliver, fill, left, made, remove, remover

REFUSE: dict[str, Any] = {"at_max_bytes": "refuse"}
FULL = "9 bytes in the store, [retention] max_bytes is 8"


def test_word_is_left_and_taken_back_and_said_once(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        for why in ("", "a", "a", "b", "", ""):
            store_capacity.write_store_full(tmp_path, why)
            assert store_capacity.read_store_full(tmp_path) == why
    assert [(event["event"], event["reason"]) for event in logs] == [
        ("store_full", "a"),
        ("store_has_room", ""),
    ]
    assert list(tmp_path.iterdir()) == []


def test_word_that_says_nothing_or_cannot_be_read_is_word(tmp_path: Path) -> None:
    (tmp_path / store_capacity.FILE_NAME).touch()
    assert "max_bytes is reached" in store_capacity.read_store_full(tmp_path)
    (tmp_path / store_capacity.FILE_NAME).unlink()
    (tmp_path / store_capacity.FILE_NAME).mkdir()
    assert "cannot be read: Is a directory" in store_capacity.read_store_full(tmp_path)


def test_store_is_full_from_max_bytes_on_and_only_where_it_refuses(site: Site) -> None:
    fill(site, made(1), made(2))
    deliver(site, DeliveryState.DELIVERED)
    size = sum(row.size for row in site.instances())
    for limits, full in (
        ({"max_bytes": size, **REFUSE}, True),
        ({"max_bytes": size + 1, **REFUSE}, False),
        ({"max_bytes": 1}, False),
        ({"keep_days": 1}, False),
    ):
        with remover(site, **limits) as one:
            assert one.describe_full_store() == (
                f"{size} bytes in the store, [retention] max_bytes is {size}" if full else ""
            ), limits


def test_refusing_removes_nothing_for_bytes_but_for_age(site: Site) -> None:
    fill(site, made(1), made(2))
    deliver(site, DeliveryState.DELIVERED)
    assert remove(site, max_bytes=1, **REFUSE).studies == 0
    assert left(site) == ["2.1", "2.2"]
    assert remove(site, max_bytes=1, keep_days=1, days=2, **REFUSE).studies == 2


@pytest.mark.parametrize(
    ("limits", "before", "after"),
    [
        ({"max_bytes": 1, **REFUSE}, "", True),
        # Word of a node whose store was emptied since, or that refuses no more.
        ({"max_bytes": 10**9, **REFUSE}, FULL, False),
        ({"max_bytes": 10**9}, FULL, False),
        # What it removes itself makes room at once.
        ({"max_bytes": 1, "keep_days": 1e-9, **REFUSE}, "", False),
    ],
)
def test_first_look_of_a_remover_leaves_word(
    site: Site, monkeypatch: pytest.MonkeyPatch, limits: dict[str, Any], before: str, after: bool
) -> None:
    fill(site, made(1))
    deliver(site, DeliveryState.DELIVERED)
    run_dir = site.config.run_dir
    run_dir.mkdir(parents=True, exist_ok=True)
    store_capacity.write_store_full(run_dir, before)
    stop = threading.Event()
    monkeypatch.setattr(ingest.workers.retention.remover, "_sleep_until_stopped", lambda *_: stop.set())
    retention = site.config.retention.model_copy(update=limits)
    ingest.workers.retention.remover.run(site.config.model_copy(update={"retention": retention}), stop)
    assert bool(store_capacity.read_store_full(run_dir)) is after


def test_remover_that_is_to_stop_leaves_the_word_to_its_successor(site: Site) -> None:
    fill(site, made(1))
    site.config.run_dir.mkdir(parents=True, exist_ok=True)
    stop = threading.Event()
    stop.set()
    with remover(site, max_bytes=1, **REFUSE) as one:
        ingest.workers.retention.remover._publish_store_capacity(site.config, one, stop)
    assert store_capacity.read_store_full(site.config.run_dir) == ""


@pytest.mark.parametrize(
    ("retention", "running", "said"),
    [
        ({"max_bytes": 8, **REFUSE}, True, FULL),
        ({"max_bytes": 8, **REFUSE}, False, ""),
        ({"max_bytes": 8}, True, ""),
    ],
)
def test_status_and_check_say_that_a_running_node_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, retention: dict[str, Any], running: bool, said: str
) -> None:
    settings = Config.model_validate({"node": {"data_dir": tmp_path}, "retention": retention})
    settings.run_dir.mkdir(parents=True)
    store_capacity.write_store_full(settings.run_dir, FULL)
    monkeypatch.setattr("ingest.filesystem.node_lock.is_node_running", lambda _: running)
    assert gather_status(settings)["store"]["full"] == said
    faults = [fault for fault in check_node(settings) if fault.key == "retention.max_bytes"]
    assert [said in fault.cause and not fault.is_note for fault in faults] == ([True] if said else [])
