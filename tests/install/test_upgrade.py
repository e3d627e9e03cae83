"""Upgrade a node of an older release under load: nothing is lost, and everything is delivered.

The old node runs the code of its own commit. The new one takes over its data folder, its ledger and its Redis
while a sender goes on.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ingest
from ingest.filesystem.data_format import FILE_NAME
from ingest.ledger import SCHEMA_VERSION
from tests.support.nodes import Node, cleaned, destination, eventually
from tests.support.pki import Material
from tests.support.releases import build_release, launch_old
from tests.support.senders import Modality, kept_whole, nothing_half_there
from tests.support.servers import postgresql, require_postgresql, valkey

pytestmark = [pytest.mark.install, pytest.mark.timeout(600)]

FIRST = "597a9476f0485706ea9137d9a2105bea6896d010"
LAST = "401dc58ef113c0ca6ab86f1e3b4f5f233252ce1c"
"""The first release that sites run, and the last commit before packages and upgrades."""

SCHEMAS = {FIRST: "0005", LAST: "0018"}


class SiteNode(Node):
    """A node whose ledger is perhaps in PostgreSQL."""

    ledger_url = ""

    def query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        if not self.ledger_url:
            return super().query(sql, *values)
        import psycopg

        with psycopg.connect(self.ledger_url.replace("postgresql+psycopg", "postgresql")) as connection:
            try:
                return connection.execute(sql).fetchall()  # type: ignore[arg-type]
            except psycopg.errors.UndefinedTable:
                return []

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """A command of the new release, which ends by itself."""
        return subprocess.run(
            [sys.executable, "-m", "ingest.cli", *command, "-c", str(self.config_path)],
            capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "NO_COLOR": "1"},
        )  # fmt: skip


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty URL for SQLite in the data folder, or a new PostgreSQL server."""
    if request.param == "sqlite":
        yield ""
        return
    require_postgresql()
    with postgresql() as url:
        yield url


@pytest.fixture
def site(tmp_path: Path, material: Material, ledger_url: str) -> Iterator[tuple[SiteNode, Node]]:
    """A node that is not started yet, and the running remote that it forwards to; Redis outlives both."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(valkey())
        remote = stack.enter_context(cleaned(Node(tmp_path / "remote", material)))
        remote.start(receive="[receive]\nprocesses = 1\nmin_free_bytes = 0")
        node = SiteNode(tmp_path / "node", material)
        node.ledger_url = ledger_url
        sections = {
            "queue": f'[queue]\nurl = "{server.url}"',
            "receive": "[receive]\nprocesses = 2\nmin_free_bytes = 0\nsegment_max_bytes = 4096",
            "workers": "[workers]\npersist = 2\nforward = 2",
            "destinations": destination("remote", remote.tls_port, retry_first_seconds=0.5),
        }
        if ledger_url:
            sections["ledger"] = f'[ledger]\nurl = "{ledger_url}"'
        node.configure(**sections)
        yield stack.enter_context(cleaned(node)), remote


@pytest.mark.parametrize(("commit", "ends_by"), [(FIRST, "kill"), (LAST, "stop")], ids=["first", "last"])
def test_new_release_takes_over_under_load_and_loses_nothing(
    site: tuple[SiteNode, Node], tmp_path: Path, commit: str, ends_by: str
) -> None:
    tree = build_release(commit)
    node, remote = site
    launch_old(node, tree)
    small = Modality(node, tmp_path / "small", associations=2, size=1024, retries=True)
    large = Modality(node, tmp_path / "large", associations=2, size=100_000, retries=True)
    with small, large:
        small.until(100)
        remote.stop()
        # Deliveries wait, and the circuit opens; instances wait in spool and stream.
        small.until(100)
        large.until(50)
        node.kill() if ends_by == "kill" else node.stop()
        plan = node.run("upgrade", "--check", "--json")
        assert plan.returncode == 4, plan.stderr
        assert json.loads(plan.stdout)["schema_version"] == {
            "found": SCHEMAS[commit],
            "needed": SCHEMA_VERSION,
        }
        old_log = len(node.log)

        node.start()
        remote.start()
        small.until(100, 120)
        large.until(50, 120)
    promised = small.acknowledged | large.acknowledged

    eventually(lambda: kept_whole(node, promised), 60, "all that was promised is in store and ledger")
    eventually(lambda: set(node.deliveries()) == {"delivered"}, 120, f"deliveries end: {node.deliveries()}")
    eventually(lambda: kept_whole(remote, promised), 60, "all of it is in the remote")
    eventually(lambda: node.spooled() == [], 60, "the spool is empty")
    assert small.other == large.other == []
    small.sent |= large.sent
    nothing_half_there(node, small)
    assert "Traceback" not in node.log[old_log:]
    assert json.loads((node.data / FILE_NAME).read_text())["format"] == 1

    again = node.run("upgrade", "--check")
    assert (again.returncode, again.stdout.splitlines()[-1]) == (0, "nothing to do"), again.stderr
    with ingest.Ledger(node.config_path) as ledger:
        assert {one.sop_instance_uid for one in ledger.instances()} >= promised.keys()
        assert {one.state.value for one in ledger.deliveries()} == {"delivered"}
        assert sum(study.instances for study in ledger.studies()) == len(node.stored())
    assert node.stop() == 0


def test_upgrade_alone_brings_an_old_ledger_to_this_release(
    site: tuple[SiteNode, Node], tmp_path: Path
) -> None:
    tree = build_release(FIRST)
    node, _ = site
    launch_old(node, tree)
    with Modality(node, tmp_path / "sender", associations=1) as modality:
        modality.until(20)
    eventually(lambda: kept_whole(node, modality.acknowledged), 30, "the old node has stored all")
    running = node.run("upgrade")
    assert running.returncode == 1
    assert "stop them first" in running.stderr
    assert node.stop() == 0

    done = node.run("upgrade")

    assert done.returncode == 0, done.stderr
    assert f"{SCHEMA_VERSION} done" in done.stdout
    assert node.run("upgrade", "--check").returncode == 0
    node.start()
    assert kept_whole(node, modality.acknowledged)
    assert node.stop() == 0
