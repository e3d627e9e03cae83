"""`ingest alerts` and what `ingest check` says about alerts."""

import json

import pytest
from click.testing import CliRunner

from ingest.cli import main
from ingest.config.reader import load_config
from ingest.ledger import Ledger
from ingest.ledger.outbox import NewEvent
from tests.support.receivers import secret_file, server_context, web_server


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setattr("ingest.log.configure_logging", lambda *_: None)


@pytest.fixture
def server(material):
    with web_server(server_context(material)) as running:
        yield running


@pytest.fixture
def file(tmp_path, material, server):
    path = tmp_path / "ingest.toml"
    alert = 'type = "webhook"\nalarms = ["destination_dwon"]\n'
    alert += f'secret_file = "{secret_file(tmp_path)}"\n'
    path.write_text(
        f'[node]\ndata_dir = "var"\n[tls.node]\ntrusted = ["{material.trusted}"]\n'
        f'[[alerts]]\nname = "good"\nurl = "https://localhost:{server.port}/token-in-the-path"\n{alert}'
        f'[[alerts]]\nname = "bad"\nurl = "https://127.0.0.3:{server.port}/"\n{alert}'
    )
    return path


def run(file, *arguments):
    return CliRunner().invoke(main, [*arguments, "-c", str(file)])


def test_test_sends_at_once_and_says_what_to_do(file, server):
    result = run(file, "alerts", "test", "good")
    assert (result.exit_code, result.output) == (
        0,
        f"good: https://localhost:{server.port}: accepted\n",
    )
    assert server.types() == ["test"]
    every = run(file, "alerts", "test")
    assert every.exit_code == 1
    assert "bad: https://127.0.0.3" in every.output
    assert "start the server, or correct host and port" in every.output
    unknown = run(file, "alerts", "test", "goo")
    assert unknown.exit_code == 1
    assert 'did you mean "good"?' in unknown.output


def test_list_shows_what_was_told_and_what_waits(file):
    config = load_config(file)
    ledger = Ledger(config.ledger_url)
    ledger.migrate()
    told = json.dumps({"told": [{"name": "destination_down.pacs"}]})
    event = NewEvent("id-1", "alerts.good", "{}", 1_700_000_000_000)
    ledger.alert_groups.record({("good", "", "pacs"): told}, [event], 5)
    leased = ledger.outbox.lease_next("alerts.good", "me", 10, 10)
    ledger.outbox.record_failure(leased, "nobody listens", 50, 11, blames_target=True)
    ledger.close()
    good, bad = map(json.loads, run(file, "alerts", "list", "--json").output.splitlines())
    assert good["standing"] == [{"name": "destination_down.pacs"}]
    assert (good["waiting"], good["last"]["last_error"], bad["waiting"]) == (1, "nobody listens", 0)
    table = run(file, "alerts", "list").output
    assert "destination_down.pacs" in table
    assert "token-in-the-path" not in table


def test_check_notes_a_condition_that_does_not_exist(file):
    result = run(file, "check")
    assert "did you mean destination_down?" in result.output
