"""`ingest status`: every part that can be read is told, whatever cannot."""

import contextlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import make_url

from ingest.acceptor.scoreboard import (
    ACCEPTING,
    ACTIVE,
    BOOTING,
    DRAINING,
    HEARTBEAT,
    STATE,
    Scoreboard,
)
from ingest.alarms import Severity, raise_alarm
from ingest.cli import main
from ingest.clock import monotonic_ms, unix_ms
from ingest.config.model import LedgerSettings
from ingest.ledger import Ledger
from ingest.queue.keys import stream_key
from ingest.queue.stream_writer import append_references
from ingest.spool.reference import Reference
from ingest.status.report import gather_status
from tests.support.servers import Valkey
from tests.support.spools import claim, config, keep


def test_a_node_that_was_never_started_has_nothing_to_tell(tmp_path: Path) -> None:
    found = gather_status(config(tmp_path))
    assert found["listeners"] == []
    assert found["spool"] == {
        "path": str(tmp_path / "spool"),
        "waiting": 0,
        "bytes": 0,
        "oldest_seconds": None,
    }
    assert found["queue"]["reachable"] is False
    assert not (tmp_path / "spool").exists(), "to look changes nothing"


def test_spool_and_queue_are_counted(tmp_path: Path, redis_server: Valkey) -> None:
    settings = config(tmp_path, redis_server.url)
    spool = claim(settings)
    where = keep(spool, b"x" * 1000)
    with redis_server.client() as client:
        append_references(client, [Reference("spool", spool.id, where)])
    found = gather_status(settings)
    spool.close()
    assert (found["spool"]["waiting"], found["spool"]["bytes"]) == (1, 1000)
    assert 0 <= found["spool"]["oldest_seconds"] < 600
    assert found["queue"] == {
        "reachable": True,
        "references": 1,
        "oldest_seconds": 0,
        "in_workers_hands": 0,
    }


def test_what_nobody_stores_is_told_by_its_age(tmp_path: Path, redis_server: Valkey) -> None:
    """Persist workers that are stopped, stuck or end again and again say nothing themselves."""
    settings = config(tmp_path, redis_server.url)
    spool = claim(settings)
    with redis_server.client() as client:
        client.xadd(stream_key(spool.id), {"where": "x"}, id=f"{unix_ms() - 90_000}-1")
    found = gather_status(settings)
    spool.close()
    assert 90 <= found["queue"]["oldest_seconds"] < 120


def test_each_listener_has_a_state_and_those_that_say_nothing_are_silent(tmp_path: Path) -> None:
    settings = config(tmp_path)
    settings.run_dir.mkdir(parents=True)
    board = Scoreboard.create(settings.run_dir / "scoreboard")
    for row, (state, heartbeat) in enumerate(
        [
            (BOOTING, monotonic_ms()),
            (ACCEPTING, monotonic_ms()),
            (DRAINING, monotonic_ms()),
            (ACCEPTING, monotonic_ms() - 60_000),
            (ACCEPTING, monotonic_ms() + 10**9),  # of before the machine was started again
        ]
    ):
        board.set(row, STATE, state)
        board.set(row, HEARTBEAT, heartbeat)
        board.set(row, ACTIVE, row)
    listeners = gather_status(settings)["listeners"]
    assert [row["state"] for row in listeners] == ["booting", "accepting", "draining", "silent", "silent"]
    assert [row["active"] for row in listeners] == [0, 1, 2, 3, 4]


def test_a_spool_that_cannot_be_read_does_not_hide_the_rest(tmp_path: Path, redis_server: Valkey) -> None:
    settings = config(tmp_path, redis_server.url)
    (tmp_path / "spool" / "L0").mkdir(parents=True)
    (tmp_path / "spool" / "L0" / "ready").write_text("no folder")
    (tmp_path / "spool" / "id").mkdir()
    found = gather_status(settings)
    assert "ready: Not a directory" in found["spool"]["error"]
    assert "cannot be used" in found["queue"]["error"]
    assert "ledger" in found


@pytest.mark.parametrize(("setting", "said"), [("on", "it is read-only"), ("off", "")])
def test_a_ledger_that_can_only_be_read_is_told(
    setting: str, said: str, tmp_path: Path, redis_server: Valkey, postgresql_url: str
) -> None:
    with contextlib.closing(Ledger(postgresql_url)) as ledger:
        ledger.migrate()
    url = make_url(postgresql_url).update_query_dict(
        {"options": f"-c default_transaction_read_only={setting}"}
    )
    settings = config(tmp_path, redis_server.url).model_copy(
        update={"ledger": LedgerSettings(url=url.render_as_string(hide_password=False))}
    )
    found = gather_status(settings)["ledger"]
    assert found["reachable"] is True
    assert said in found["read_only"]
    assert bool(found["read_only"]) is bool(said)


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_the_command_prints_it(arguments: list[str], tmp_path: Path, redis_server: Valkey) -> None:
    path = tmp_path / "ingest.toml"
    path.write_text(f'[node]\ndata_dir = "."\n[queue]\nurl = "{redis_server.url}"\n')
    result = CliRunner().invoke(main, ["status", *arguments, "-c", str(path)])
    assert result.exit_code == 2, "no node runs"
    assert "no node runs on" in result.output
    if arguments:
        assert json.loads(result.output)["queue"]["reachable"] is True
    else:
        assert "0 references" in " ".join(result.output.split())


def test_alarms_stand_in_the_status(tmp_path: Path) -> None:
    settings = config(tmp_path)
    raise_alarm(settings.run_dir, "store_missing", "the store is gone", "mount it", severity=Severity.FAILING)
    (found,) = gather_status(settings)["alarms"]
    assert (found["name"], found["severity"]) == ("store_missing", "failing")
