"""`ingest webhooks`, and what `ingest check` says about webhooks."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ingest.cli import main
from ingest.config.reader import load_config
from ingest.ledger import Ledger
from ingest.ledger.announcements import build_announcer
from tests.support.ledgers import row
from tests.support.pki import Material
from tests.support.receivers import WebServer, secret_file, server_context, web_server


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.log.configure_logging", lambda *_: None)


@pytest.fixture
def server(material: Material) -> Iterator[WebServer]:
    with web_server(server_context(material)) as running:
        yield running


@pytest.fixture
def file(tmp_path: Path, material: Material, server: WebServer) -> Path:
    path = tmp_path / "ingest.toml"
    keys = f'secret_file = "{secret_file(tmp_path)}"\nevents = ["instance.stored"]\n'
    path.write_text(
        f'[node]\ndata_dir = "var"\n[tls.node]\ntrusted = ["{material.trusted}"]\n'
        f'[[webhooks]]\nname = "good"\nurl = "https://localhost:{server.port}/token-in-the-path"\n{keys}'
        f'[[webhooks]]\nname = "bad"\nurl = "https://127.0.0.3:{server.port}/"\n{keys}'
    )
    return path


def run(file: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "-c", str(file)])


def test_test_sends_a_cloud_event_at_once_and_says_what_to_do(file: Path, server: WebServer) -> None:
    result = run(file, "webhooks", "test", "good")
    assert (result.exit_code, result.output) == (0, f"good: https://localhost:{server.port}: accepted\n")
    [received] = server.received
    assert received.headers["Content-Type"] == "application/cloudevents+json"
    assert received.payload["type"] == "dicom_ingest.test"
    assert "subject" not in received.payload
    every = run(file, "webhooks", "test")
    assert every.exit_code == 1
    assert "bad: https://127.0.0.3" in every.output
    unknown = run(file, "webhooks", "replay", "goo")
    assert unknown.exit_code == 1
    assert 'did you mean "good"?' in unknown.output


def test_lists_show_dead_events_and_replay_sends_them_again(file: Path) -> None:
    config = load_config(file)
    ledger = Ledger(config.ledger_url, announcer=build_announcer(config))
    ledger.migrate()
    ledger.instances.record([row(1), row(2)])
    leased = ledger.outbox.lease_next("webhooks.good", "me", 10, 10)
    assert leased is not None
    ledger.outbox.record_failure(leased, "answered with HTTP status 422", 0, 11, blames_target=False)
    ledger.close()
    good, bad = map(json.loads, run(file, "webhooks", "list", "--json").output.splitlines())
    assert (good["waiting"], good["dead"], bad["waiting"], bad["dead"]) == (1, 1, 2, 0)
    [dead] = map(json.loads, run(file, "webhooks", "events", "--state", "dead", "--json").output.splitlines())
    assert (dead["subject"], dead["type"], dead["webhook"]) == (
        "1.2.1",
        "dicom_ingest.instance.stored",
        "good",
    )
    assert "422" in dead["last_error"]
    assert "token-in-the-path" not in run(file, "webhooks", "list").output
    assert dead["event_id"] in run(file, "webhooks", "events", "good").output
    replayed = run(file, "webhooks", "replay", "good", "--event", dead["event_id"], "--json")
    assert json.loads(replayed.output) == {"replayed": 1}
    assert json.loads(run(file, "webhooks", "list", "--json").output.splitlines()[0])["dead"] == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('name = "bad"', 'name = "good"'), "webhooks[1].name"),
        (('events = ["instance.stored"]', "events = []"), "webhooks[0].events"),
        (("https://localhost", "http://example.org"), "without TLS"),
        (('events = ["instance.stored"]', 'events = ["instance.eaten"]'), "webhooks[0].events"),
        (('name = "good"\n', 'name = "good"\ndestinations = ["pacs"]\n'), 'there is no destination "pacs"'),
        (('name = "good"\n', 'name = "good"\ntls = "other"\n'), "there is no [tls.other]"),
    ],
)
def test_check_names_each_fault(file: Path, change: tuple[str, str], said: str) -> None:
    file.write_text(file.read_text().replace(*change))
    result = run(file, "check")
    assert result.exit_code != 0
    assert said in result.output
