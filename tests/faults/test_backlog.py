"""A backlog of a million deliveries: asking how things are stays quick, and nobody's memory grows with it."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ingest.clock import unix_ms
from tests.support.forwarding import Forwarding
from tests.support.instances import CT, EXPLICIT, Made
from tests.support.nodes import eventually
from tests.support.peers import PynetdicomRemote
from tests.support.servers import Valkey

ROWS = 1_000_000
PER_SERIES = 500

_INSTANCES = f"""
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
INSERT INTO instances (state, sop_instance_uid, sop_class_uid, study_uid, series_uid, transfer_syntax_uid,
    store_key, size, data_set_offset, calling_ae, called_ae, source, spool_ref, note, received_at, stored_at)
SELECT 'stored', '1.9.' || i, '{CT}', '1.9', '1.9.' || (i / {PER_SERIES}), '{EXPLICIT}', :key || i, :size,
    :offset, 'CT1', 'INGEST', '', 'spool:m' || i, '', :now, :now FROM n
"""
_DELIVERIES = """
INSERT INTO deliveries (instance_id, destination, state, attempts, next_at, created_at, updated_at)
SELECT id, 'pacs', 'waiting', 0, 0, stored_at, stored_at FROM instances
"""


@pytest.fixture
def backlog(tmp_path: Path, redis_server: Valkey) -> Iterator[Forwarding]:
    """A million instances that wait, the first thousands of them with files."""
    site = Forwarding(tmp_path / "var", redis_server)
    one = Made()
    files = site.config.store_root
    parameters = {
        "key": "k",
        "size": len(one.file),
        "offset": len(one.file) - len(one.data_set),
        "now": unix_ms(),
    }
    for number in range(1, 5001):
        (files / f"k{number}").write_bytes(one.file)
    with site.ledger.database.begin_write() as connection:
        connection.exec_driver_sql(_INSTANCES, parameters)
        connection.exec_driver_sql(_DELIVERIES)
    yield site
    site.ledger.close()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_million_waiting_deliveries_cost_neither_time_nor_memory(
    backlog: Forwarding, record_property: Callable[[str, object], None]
) -> None:
    with PynetdicomRemote([(CT, [EXPLICIT])]) as remote:
        destination = backlog.add(remote.port)
        path = backlog.folder.parent / "node.toml"
        path.write_text(
            f'[node]\ndata_dir = "var"\n[queue]\nurl = "{backlog.server.url}"\n'
            f'[[destinations]]\nname = "pacs"\nae_title = "R"\nhost = "127.0.0.1"\n'
            f"port = {destination.port}\ntls = false\n"
        )
        with backlog.worker() as worker, backlog.server.client() as client:
            process = psutil.Process(worker.pid)
            backlog.wake()
            eventually(lambda: len(remote.stored) > 200, 60, "it is under way")
            worker_before, queue_before = process.memory_info().rss, client.info()["used_memory"]
            started = time.monotonic()
            status = subprocess.run(
                [sys.executable, "-m", "ingest.cli", "status", "--json", "-c", str(path)],
                capture_output=True,
                timeout=60,
            )
            assert status.returncode == 2, "no node runs, only a worker of the test's own"
            seconds = time.monotonic() - started
            eventually(lambda: len(remote.stored) > 2500, 120, "it goes on")
            worker_after, queue_after = process.memory_info().rss, client.info()["used_memory"]
    (told,) = json.loads(status.stdout)["ledger"]["destinations"]
    record_property("status_seconds", round(seconds, 3))
    record_property("worker_grew_mb", round((worker_after - worker_before) / 1e6, 1))
    assert ROWS - 5000 <= told["backlog"] <= ROWS
    assert told["oldest_seconds"] > 0
    assert seconds < 10  # of which the interpreter and its imports take most; generous, for a busy machine
    assert worker_after - worker_before < 30e6
    assert queue_after - queue_before < 2e6
