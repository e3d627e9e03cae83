"""`ingest upgrade` and `--check`, on both databases."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ingest.cli import main
from ingest.filesystem.data_format import FILE_NAME, read_data_format
from ingest.ledger import SCHEMA_VERSION, Ledger
from ingest.operations import upgrade
from tests.support.ledgers import find_newest_instances, row
from tests.support.migrating import downgrade, pretend_newer
from tests.support.users import NOBODY, shared_folder, with_reachable_python


class Site:
    """A configuration, and a ledger with rows of an older schema version."""

    def __init__(self, folder: Path, url: str) -> None:
        self.data = folder / "data"
        self.path = folder / "node.toml"
        self.path.write_text(f'[node]\ndata_dir = "{self.data}"\n[ledger]\nurl = "{url}"\n')
        self.ledger = Ledger(url)
        self.ledger.migrate()
        self.ledger.instances.record([row(number) for number in range(1, 21)])
        downgrade(self.ledger, "0011")

    def run(self, *options: str) -> Result:
        return CliRunner().invoke(main, ["upgrade", "-c", str(self.path), *options])


@contextlib.contextmanager
def running_with_lock(function: str, run_dir: Path) -> Iterator[None]:
    """Another process that holds a lock of a node on its run folder."""
    program = (
        f"import sys, pathlib; from ingest.filesystem.node_lock import {function} as take; "
        "fd = take(pathlib.Path(sys.argv[1])); print(fd, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(run_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield
        process.kill()


@pytest.fixture
def site(tmp_path: Path, url: str) -> Iterator[Site]:
    made = Site(tmp_path, url)
    with contextlib.closing(made.ledger):
        yield made


def test_check_says_what_would_be_done_and_changes_nothing(site: Site) -> None:
    result = site.run("--check")
    assert result.exit_code == 4, result.output
    assert f"0011 -> {SCHEMA_VERSION}" in result.output
    assert "0012  Index studies and series." in result.output
    assert "about 20 rows of instances" in result.output
    assert "back up the ledger" in result.output
    assert any(way in result.output for way in ("VACUUM INTO", "pg_dump"))
    assert site.ledger.read_schema_version() == "0011"
    assert not site.data.exists()
    plan = json.loads(site.run("--check", "--json").output)
    assert plan["verdict"] == "needed"
    assert plan["schema_version"] == {"found": "0011", "needed": SCHEMA_VERSION}
    assert [step["revision"] for step in plan["steps"]][:2] == ["0012", "0013"]


def test_upgrade_migrates_and_writes_the_version_and_then_nothing_is_left(site: Site) -> None:
    result = site.run()
    assert result.exit_code == 0, result.output
    assert "0012 done" in result.output
    site.ledger.require_schema()
    assert len(find_newest_instances(site.ledger)) == 20
    assert read_data_format(site.data) is not None
    again = site.run("--check")
    assert (again.exit_code, again.output.splitlines()[-1]) == (0, "nothing to do")
    assert site.run().exit_code == 0


def test_newer_ledger_or_data_folder_is_refused_before_anything_is_touched(site: Site) -> None:
    site.ledger.migrate()
    pretend_newer(site.ledger)
    for options in ((), ("--check",)):
        result = site.run(*options)
        assert result.exit_code == 3
        assert "9999 of dicom-ingest 99.1.0" in result.output
    assert not site.data.exists()
    with site.ledger.database.begin_write() as connection:
        connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{SCHEMA_VERSION}'")
    site.data.mkdir()
    (site.data / FILE_NAME).write_text('{"format": 99, "program": "99.1.0"}')
    result = site.run()
    assert result.exit_code == 3
    assert "format 99" in result.output
    assert os.listdir(site.data) == [FILE_NAME]


def test_check_without_a_ledger_says_that_one_will_be_made(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(f'[node]\ndata_dir = "{tmp_path}"\n')
    result = CliRunner().invoke(main, ["upgrade", "-c", str(path), "--check"])
    assert (result.exit_code, result.output.splitlines()[-1]) == (0, "a new ledger will be made")


def test_migration_that_fails_leaves_no_version_in_the_data_folder(site: Site) -> None:
    with site.ledger.database.begin_write() as connection:
        connection.exec_driver_sql("CREATE TABLE studies (id INTEGER)")  # revision 0012 makes it
    assert site.run().exit_code != 0
    assert site.ledger.read_schema_version() == "0011"
    assert not (site.data / FILE_NAME).exists()


@pytest.mark.parametrize("lock", ["take_node_lock", "share_workers_lock"])
def test_running_node_or_worker_has_to_stop_first(site: Site, lock: str) -> None:
    run_dir = site.data / "run"
    run_dir.mkdir(parents=True)
    # A lock of this process would not hinder it.
    with running_with_lock(lock, run_dir):
        assert "stop the node" in site.run("--check").output
        result = site.run()
        assert result.exit_code == 1
        assert "stop them first" in result.output
    assert site.ledger.read_schema_version() == "0011"


def test_other_hosts_that_work_are_named_and_have_to_stop_first(site: Site) -> None:
    site.ledger.migrate()
    site.ledger.hosts.note_host("worker7", "/srv/ingest", "forward")
    with site.ledger.database.begin_write() as connection:
        # As though this release had one migration more than the other one.
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0018'")
    check = site.run("--check")
    assert check.exit_code == 4
    assert "stop forward on worker7" in check.output
    refused = site.run()
    assert refused.exit_code == 1
    assert "worker7" in refused.output
    assert "--force" in refused.output


def test_full_disk_is_named_before_the_migration(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrade, "SPARE_BYTES", 1 << 62)
    check = site.run("--check")
    if site.ledger.database.dialect == "postgresql":
        assert (check.exit_code, "on the disk of the server" in check.output) == (4, True)
        return
    assert check.exit_code == 1
    refused = site.run()
    assert refused.exit_code == 1
    assert "make room" in refused.output
    assert site.ledger.read_schema_version() == "0011"


def test_root_leaves_no_file_that_the_user_of_the_node_cannot_use() -> None:
    before = with_reachable_python()
    with shared_folder() as folder:
        (folder / "node.toml").write_text('[node]\ndata_dir = "var"\n')
        data = folder / "var"
        data.mkdir()
        os.chown(data, NOBODY, NOBODY)
        command = [*before, sys.executable, "-m", "ingest.cli", "upgrade", "-c", str(folder / "node.toml")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        made = {path.name: path.stat() for path in data.iterdir()}
        assert {"format.json", "ledger.db", "ledger.db.lock", "run"} <= set(made)
        assert {(status.st_uid, status.st_gid) for status in made.values()} == {(NOBODY, NOBODY)}
        assert {name for name, status in made.items() if status.st_mode & 0o007} == set()
