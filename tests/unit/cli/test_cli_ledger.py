"""`ingest deliveries`, `retry` and `drop` on a real ledger, and with a real worker."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ingest.cli import main
from ingest.cli._options import DELIVERY_STATES
from ingest.ledger import DeliveryState
from tests.support.forwarding import Forwarding
from tests.support.nodes import eventually
from tests.support.peers import CT, EXPLICIT, PynetdicomRemote
from tests.support.ports import free_port
from tests.support.servers import Valkey


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.log.configure_logging", lambda *_: None)


@pytest.fixture
def site(tmp_path: Path, redis_server: Valkey) -> Iterator[Forwarding]:
    made = Forwarding(tmp_path / "var", redis_server)
    yield made
    made.ledger.close()


def ask(site: Forwarding, command: str, *arguments: str) -> Result:
    path = site.folder.parent / "node.toml"
    destinations = "".join(
        f'[[destinations]]\nname = "{one.name}"\nae_title = "R"\nhost = "{one.host}"\nport = {one.port}\n'
        "tls = false\n"
        for one in site.destinations
    )
    path.write_text(f'[node]\ndata_dir = "var"\n[queue]\nurl = "{site.server.url}"\n{destinations}')
    return CliRunner().invoke(main, [command, "-c", str(path), *arguments], env={"COLUMNS": "250"})


def test_what_a_remote_refused_is_seen_and_sent_again_once_it_is_mended(site: Forwarding) -> None:
    status = 0xA900
    with PynetdicomRemote([(CT, [EXPLICIT])], answer=lambda _: status) as remote:
        site.add(remote.port)
        made = site.many(3)
        with site.worker():
            site.wake()
            site.wait({"dead": 3})
            listed = ask(site, "deliveries", "--state", "dead", "--error", "A900", "--json")
            rows = [json.loads(line) for line in listed.output.splitlines()]
            assert {row["sop_instance_uid"] for row in rows} == {one.sop for one in made}
            assert {(row["last_status"], row["attempts"]) for row in rows} == {("A900", 1)}
            assert rows[0]["updated_at"].endswith("+00:00")
            assert "answered A900H" in ask(site, "deliveries").output
            status = 0
            result = ask(site, "retry", "--destination", "pacs", "--since", "1h")
            assert (result.exit_code, result.output.strip()) == (0, "pacs: 3 to be sent again")
            site.wait({"delivered": 3})
        assert len(remote.stored) == 3
        assert "nothing to change" in ask(site, "retry", "--all").output


def test_dropping_asks_first_and_keeps_the_reason(site: Forwarding) -> None:
    site.add(4)
    site.many(2)
    assert ask(site, "drop", "--all").exit_code == 1
    assert site.states() == {"waiting": 2}
    result = ask(site, "drop", "--study", "1.2.3", "--reason", "moved", "--yes")
    assert result.output.strip() == "pacs: 2 dropped"
    assert site.row("1.2.3.1").last_error == "moved"


def test_every_state_of_a_delivery_can_be_asked_for() -> None:
    assert tuple(state.value for state in DeliveryState) == DELIVERY_STATES


@pytest.mark.parametrize("command", ["retry", "drop"])
def test_nothing_is_changed_where_nothing_is_named(command: str, site: Forwarding) -> None:
    result = ask(site, command)
    assert result.exit_code == 2
    assert "--all" in result.output


def test_bad_times_and_unknown_destinations_are_named(site: Forwarding) -> None:
    site.add(4)
    assert "write 30m, 2h, 3d" in ask(site, "deliveries", "--since", "yesterday").output
    result = ask(site, "deliveries", "--destination", "psca")
    assert result.exit_code == 1
    assert 'no destination "psca"; did you mean "pacs"? the configuration has pacs' in result.output


def test_retry_works_while_the_queue_is_away(site: Forwarding) -> None:
    site.add(4)
    site.many(1)
    ask(site, "drop", "--all", "--yes")
    site.server.kill()
    result = ask(site, "retry", "--state", "dropped")
    assert result.exit_code == 0, result.output
    assert site.states() == {"waiting": 1}


def test_status_tells_what_is_wrong_with_a_destination_and_retry_has_it_tried_at_once(
    site: Forwarding,
) -> None:
    port = free_port()
    site.add(port, retry_first_seconds=300)
    site.many(2)
    with site.worker():
        site.wake()
        eventually(lambda: site.ledger.circuits.read_circuit("pacs").failures == 1, 20, "it was tried")
        (told,) = json.loads(ask(site, "status", "--json").output)["ledger"]["destinations"]
        assert (told["name"], told["backlog"], told["failures"]) == ("pacs", 2, 1)
        assert told["next_probe_seconds"] > 100
        assert "refused" in told["last_error"]
        assert 0 <= told["oldest_seconds"] < 60
        assert "Connection refused" in " ".join(ask(site, "status").output.split())
        with PynetdicomRemote([(CT, [EXPLICIT])], port=port):
            assert ask(site, "retry", "--destination", "pacs").exit_code == 0
            site.wait({"delivered": 2})


def test_delivery_that_waits_for_a_circuit_says_why_and_until_when_and_retry_says_what_it_did(
    site: Forwarding,
) -> None:
    """No delivery is dead, so that `retry` changes the circuit alone."""
    site.add(free_port(), retry_first_seconds=300)
    site.many(2)
    with site.worker():
        site.wake()
        eventually(lambda: site.ledger.circuits.read_circuit("pacs").failures == 1, 20, "it was tried")
        site.wait({"waiting": 2})
    rows = [json.loads(line) for line in ask(site, "deliveries", "--json").output.splitlines()]
    assert {(row["state"], row["attempts"]) for row in rows} == {("waiting", 0)}
    for row in rows:
        assert "Connection refused" in row["waits_for"]
        assert datetime.fromisoformat(row["next_attempt_at"]) > datetime.now(UTC) + timedelta(minutes=1)
    assert "Connection refused" in " ".join(ask(site, "deliveries").output.split())
    for arguments in (["--destination", "pacs", "--dry-run"], ["--all", "--dry-run"], ["--all"]):
        said = ask(site, "retry", *arguments).output
        assert "nothing to change" not in said
        assert "pacs: was left alone" in said
        assert "Connection refused" in said
        assert ("would be tried at once" in said) is ("--dry-run" in arguments)
    assert site.ledger.circuits.read_circuit("pacs").probe_at == 0
    assert "nothing to change" in ask(site, "retry", "--destination", "pacs").output
    rows = [json.loads(line) for line in ask(site, "deliveries", "--json").output.splitlines()]
    assert {(row["waits_for"], row["next_attempt_at"]) for row in rows} == {("", None)}


def test_dry_runs_count_what_would_be_changed_and_change_nothing(site: Forwarding) -> None:
    for name in ("pacs", "ai"):
        site.add(4, name)
    site.many(2, to=("pacs", "ai"))
    site.many(1)
    would = ask(site, "drop", "--all", "--dry-run")
    assert would.output.splitlines() == ["ai: 2 would be dropped", "pacs: 3 would be dropped"]
    assert (site.states(), site.states("ai")) == ({"waiting": 3}, {"waiting": 2})
    assert "pacs: 1 would" in ask(site, "drop", "--sop", "1.2.3.3", "--dry-run").output
    ask(site, "drop", "--destination", "ai", "--yes")
    again = ask(site, "retry", "--all", "--state", "dropped", "--dry-run")
    assert (again.exit_code, again.output.strip()) == (0, "ai: 2 would be sent again")
    assert site.states("ai") == {"dropped": 2}
    assert "nothing to change" in ask(site, "retry", "--all", "--dry-run").output
