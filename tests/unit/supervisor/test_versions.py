"""A node of this release on data of a newer one: it refuses, and touches nothing."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ingest.build_info import read_version
from ingest.errors import BootError
from ingest.filesystem.data_format import FILE_NAME
from ingest.ledger import Ledger
from ingest.program import DATA_FORMAT
from ingest.workers import host_recorder
from ingest.workers.persist.worker import PersistWorker
from tests.support.migrating import pretend_newer
from tests.support.nodes import Node, eventually
from tests.support.persisting import Site

ROLES = (("serve",), ("work", "persist"), ("work", "forward"), ("work", "retain"), ("work", "monitor"))


def run(node: Node, *command: str) -> "subprocess.CompletedProcess[str]":
    """`ingest COMMAND`, which ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "ingest.cli", *command, "-c", str(node.config_path)],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder; SQLite's log comes and goes with each reader."""
    return {
        str(path): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(("-wal", "-shm"))
    }


@pytest.mark.parametrize("command", ROLES, ids=" ".join)
def test_newer_ledger_stops_each_role_before_it_touches_anything(
    make_node: Callable[..., Node], command: tuple[str, ...]
) -> None:
    node = make_node(queue='[queue]\nurl = "redis://127.0.0.1:1"', retention="[retention]\nkeep_days = 1")
    ledger = Ledger(f"sqlite:///{node.data}/ledger.db")
    ledger.migrate()
    pretend_newer(ledger)
    ledger.close()
    before = snapshot(node.data)

    result = run(node, *command)

    assert result.returncode == 3, result.stderr
    assert "schema version 9999 of dicom-ingest 99.1.0" in result.stderr
    assert read_version() in result.stderr
    assert "Traceback" not in result.stderr
    assert snapshot(node.data) == before


def test_newer_data_folder_stops_the_node_and_the_check_names_it(make_node: Callable[..., Node]) -> None:
    node = make_node()
    node.data.mkdir()
    (node.data / FILE_NAME).write_text(json.dumps({"format": DATA_FORMAT + 1, "program": "99.1.0"}))
    for command in (("serve",), ("listen",), ("work", "persist")):
        result = run(node, *command)
        assert result.returncode == 3, result.stderr
        assert f"format {DATA_FORMAT + 1} of dicom-ingest 99.1.0" in result.stderr
        assert os.listdir(node.data) == [FILE_NAME]
    check = run(node, "check")
    assert check.returncode == 1
    assert "99.1.0" in check.stdout


def test_started_node_writes_the_version_of_its_data_folder(node: Node) -> None:
    found = json.loads((node.data / FILE_NAME).read_text())
    assert found == {"format": DATA_FORMAT, "program": read_version()}


def test_newer_ledger_in_postgresql_stops_the_node(
    make_node: Callable[..., Node], empty_postgresql_url: str
) -> None:
    node = make_node(ledger=f'[ledger]\nurl = "{empty_postgresql_url}"')
    ledger = Ledger(empty_postgresql_url)
    ledger.migrate()
    pretend_newer(ledger)
    ledger.close()
    result = run(node, "serve")
    assert result.returncode == 3, result.stderr
    assert "schema version 9999 of dicom-ingest 99.1.0" in result.stderr
    assert not node.data.exists()


def test_running_worker_ends_soon_after_a_newer_program_has_migrated_the_ledger(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_recorder, "PERIOD_SECONDS", 0.0)
    monkeypatch.setattr("ingest.workers.persist.worker.CLEANUP_SECONDS", 0.1)
    errors: list[BootError] = []

    def persist() -> None:
        try:
            PersistWorker(site.config, threading.Event(), "worker").run()
        except BootError as error:
            errors.append(error)

    worker = threading.Thread(target=persist, daemon=True)
    worker.start()
    with site.ledger() as ledger:
        eventually(ledger.hosts.list_hosts, what="the worker has noted its host")
        pretend_newer(ledger)
    worker.join(20)
    assert not worker.is_alive()
    assert "9999" in str(errors[0])
