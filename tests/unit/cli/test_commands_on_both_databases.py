"""Every command that reads the ledger works on SQLite and on PostgreSQL, with deliveries in every state."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import create_engine, text

from ingest.cli import main
from ingest.clock import unix_ms
from ingest.ledger import DeliveryResult, DeliveryState, InstanceState, Ledger
from ingest.ledger.delivery_filter import DeliveryFilter
from ingest.workers.store.filesystem import FileStore
from tests.support.ledgers import row

Ask = Callable[..., Result]

COMMANDS = [
    "status",
    "status --json",
    "studies",
    "studies --json",
    "studies --stable",
    "studies --unstable",
    "instances",
    "instances --json",
    "instances --state stored --study 1",
    "deliveries",
    "deliveries --json",
    *(f"deliveries --state {state.value}" for state in DeliveryState),
    "retry --all --dry-run",
    "retry --all",
    "drop --all --yes --dry-run --reason gone",
    "drop --state dead --yes --reason gone",
    "quarantine list",
    "quarantine list --json",
    "deliver --to pacs --all --dry-run",
    "deliver --to pacs --all --again",
    "retention --dry-run",
    "retention --dry-run --json",
    "ledger verify",
    "ledger verify --store --json",
    "ledger rebuild --no-deliveries",
    "ledger rebuild --json",
]


def empty(url: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    found: str = request.getfixturevalue("postgresql_url")
    empty(found)
    return found


@pytest.fixture
def ask(url: str, tmp_path: Path) -> Ask:
    """Runs a command of a node whose ledger has rows in every state."""
    with contextlib.closing(Ledger(url)) as ledger:
        ledger.migrate()
        fill(ledger)
    for folder in ("store", "quarantine"):
        FileStore(tmp_path / folder).prepare()
    path = tmp_path / "node.toml"
    path.write_text(
        f'[node]\ndata_dir = "{tmp_path}"\n[queue]\nurl = "redis://127.0.0.1:1"\n[ledger]\nurl = "{url}"\n'
        '[retention]\nkeep_days = 1\n[[destinations]]\nname = "pacs"\nae_title = "P"\nhost = "127.0.0.1"\n'
        "port = 1\ntls = false\n"
    )

    def run(command: str) -> Result:
        words = command.split()
        count = 2 if words[0] in {"quarantine", "ledger"} else 1
        arguments = [*words[:count], "-c", str(path), *words[count:]]
        return CliRunner().invoke(main, arguments, env={**os.environ, "COLUMNS": "80"})

    return run


def fill(ledger: Ledger) -> None:
    """Instances and deliveries in every state, throughput of the last minute, and an open circuit."""
    now = unix_ms()
    ledger.instances.record(
        [
            *(row(number, received_at=now, stored_at=now) for number in range(1, 8)),
            row(20, state=InstanceState.QUARANTINED, store_key="q", destinations=(), note="another object"),
            row(21, state=InstanceState.VARIANT, destinations=(), sop_instance_uid="1.2.1"),
        ]
    )
    leased = ledger.deliveries.lease_due("pacs", "worker", 5, now, 60_000)
    states = [DeliveryState.DELIVERED, DeliveryState.RETRY, DeliveryState.DEAD, DeliveryState.WAITING]
    results = [
        DeliveryResult(
            id=one.id,
            owner="worker",
            state=state,
            next_at=now,
            last_status=0xA700,
            last_error="full",
            size=1000,
        )
        for one, state in zip(leased, states, strict=False)
    ]
    ledger.deliveries.record_results("pacs", results, now)
    third = [
        one.id
        for one in ledger.delivery_admin.find_deliveries(DeliveryFilter(states=(DeliveryState.WAITING,)), 1)
    ]
    assert third
    ledger.delivery_admin.drop_deliveries(
        DeliveryFilter(sop_instance_uid="1.2.7"), "not wanted", now, dry_run=False
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_command_works_whatever_state_deliveries_are_in(ask: Ask, command: str) -> None:
    result = ask(command)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    # No node runs, and the rows of this ledger have no files.
    expected = {"status": 2, "ledger verify": 1}
    code = next((code for start, code in expected.items() if command.startswith(start)), 0)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output


def test_status_tells_rates_as_numbers(ask: Ask) -> None:
    found = json.loads(ask("status --json").output)
    (pacs,) = found["ledger"]["destinations"]
    assert pacs["delivered_per_second"] > 0
    assert pacs["mb_per_second"] >= 0
    assert set(found["ledger"]["deliveries"]["pacs"]) >= {"delivered", "retry", "dead", "waiting", "dropped"}


def test_a_uid_is_found_by_grep_in_every_list(ask: Ask) -> None:
    for command in ("instances", "deliveries"):
        (line,) = [line for line in ask(command).output.splitlines() if "1.2.7" in line.split()]
        assert line.split()[0].isdigit()
    assert any(line.startswith("1 ") for line in ask("studies").output.splitlines())
