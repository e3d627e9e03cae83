"""The task of alerts on a real ledger: what is told is recorded, by one host and one monitor."""

import contextlib
import json
import time
from pathlib import Path

import pytest

from ingest.alarms import raise_alarm, read_watched_alarms
from ingest.config.model import AlertSettings, Config, Destination, LedgerSettings, NodeSettings
from ingest.ledger import Ledger
from ingest.ledger.records import DeliveryResult, DeliveryState
from ingest.status.report import gather_status
from ingest.workers.monitor.alerts import AlertTask, name_owner
from ingest.workers.monitor.sender import EventSender, get_pause_seconds
from tests.support.ledgers import row
from tests.support.nodes import eventually
from tests.support.receivers import server_context, trusting, web_server, webhook

MINUTE = 60_000


class Host:
    """A host with a monitor; several may share a ledger."""

    def __init__(
        self, folder: Path, ledger: Ledger, url: str, *alerts: AlertSettings, **sections: object
    ) -> None:
        (folder / "run").mkdir(parents=True, exist_ok=True)
        self.config = Config(
            node=NodeSettings(data_dir=folder),
            ledger=LedgerSettings(url=url),
            alerts=alerts,
            destinations=(Destination(name="pacs", ae_title="P", host="h", tls=False),),
            **sections,
        )
        self.ledger = ledger
        self.restart()

    def restart(self) -> None:
        """Start another monitor in place of one that was killed."""
        owner = name_owner(self.config)
        self.sender = EventSender(self.config, self.ledger, owner)
        self.task = AlertTask(self.config, self.ledger, self.sender, owner, lease_ms=600)

    def look(self) -> None:
        self.task._look_at = 0.0
        self.task.run()

    def told(self, subject: str = "pacs") -> list[str]:
        events = [json.loads(event.payload) for event in self.ledger.outbox.list_events(100)]
        return [event["type"] for event in reversed(events) if event["subject"] == subject]


@pytest.fixture
def alert(tmp_path):
    # Nobody listens at the port: events stay in the outbox, where the tests look.
    return webhook(tmp_path, "http://127.0.0.1:1/", interval_minutes=0.0001)


@pytest.fixture
def make_host(tmp_path, ledger, url, alert):
    with contextlib.ExitStack() as stack:

        def make(name: str, *alerts: AlertSettings, **sections: object) -> Host:
            host = Host(tmp_path / name, ledger, url, *(alerts or (alert,)), **sections)
            stack.callback(lambda: host.task.close())
            return host

        yield make


def kill_deliveries(ledger: Ledger) -> None:
    ledger.instances.record([row(1), row(2)])
    leased = ledger.deliveries.lease_due("pacs", "w", 10, 100, 1000)
    results = [DeliveryResult(id=one.id, owner="w", state=DeliveryState.DEAD) for one in leased]
    ledger.deliveries.record_results("pacs", results, 200)


def revive_deliveries(ledger: Ledger) -> None:
    from ingest.ledger.delivery_filter import DeliveryFilter

    ledger.delivery_admin.drop_deliveries(DeliveryFilter(destination="pacs"), "test", 300, dry_run=False)


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_two_hosts_of_a_ledger_tell_once_and_the_other_takes_over(make_host, ledger):
    one, two = make_host("one"), make_host("two")
    one.look()
    two.look()
    kill_deliveries(ledger)
    for _ in range(2):
        one.look()
        two.look()
    assert one.told() == ["alarm"]
    assert one.told("node_not_running") == ["alarm", "alarm"]  # each tells of itself
    one.task.close()
    revive_deliveries(ledger)
    eventually(lambda: (two.look(), two.told() == ["alarm", "recovery"])[1], 10, "the other host goes on")
    first = json.loads(ledger.outbox.list_events(100)[-1].payload)
    assert first["node"]["ae_title"] == "INGEST"


def test_killed_monitor_tells_nothing_twice_and_forgets_nothing(make_host, ledger):
    host = make_host("one")
    kill_deliveries(ledger)
    host.look()
    host.task.close()
    host.restart()
    host.look()
    assert host.told() == ["alarm"]
    host.task.close()
    revive_deliveries(ledger)
    host.restart()
    host.look()
    assert host.told() == ["alarm", "recovery"]


def test_one_monitor_of_a_data_folder_works_at_a_time(make_host, ledger):
    """As during a reload, when two generations run."""
    host = make_host("one")
    host.look()
    before = host.task
    host.restart()
    kill_deliveries(ledger)
    host.look()
    assert host.told() == []
    before.close()
    host.look()
    assert host.told() == ["alarm"]


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_alarm_without_a_ledger_is_sent_at_once_and_recorded_as_sent_later(
    tmp_path, material, make_host, ledger, url
):
    with web_server(server_context(material)) as server:
        hook = webhook(tmp_path, f"https://localhost:{server.port}/", alarms=("store_missing",))
        host = make_host("one", hook, tls={"node": trusting(material)})
        host.look()
        file = Path(url.removeprefix("sqlite:///"))
        file.rename(file.with_name("away"))
        raise_alarm(host.config.run_dir, "store_missing", "it is away", "mount it")
        host.look()
        eventually(lambda: server.types() == ["alarm"], 10, "sent from memory")
        host.look()
        file.with_name("away").rename(file)
        eventually(lambda: (host.look(), host.told("store_missing"))[1], 10, "recorded")
        time.sleep(0.3)
        assert server.types() == ["alarm"]
        assert [event.state.value for event in ledger.outbox.list_events(5)] == ["sent"]


def test_watched_alarms_stand_in_the_status_while_the_monitor_runs(make_host, ledger, monkeypatch):
    host = make_host("one")
    ledger.instances.record([row(1, received_at=10)])
    host.look()
    names = {problem["name"] for problem in gather_status(host.config)["problems"]}
    assert "deliveries_waiting.pacs" in names
    assert [name for name in names if name.startswith("deliveries_waiting")] == ["deliveries_waiting.pacs"]
    later = time.time() + 200
    monkeypatch.setattr("ingest.alarms.time.time", lambda: later)
    assert read_watched_alarms(host.config.run_dir) == []


def test_failing_alert_is_an_alarm_that_another_alert_tells_of(tmp_path, make_host, ledger, monkeypatch):
    monkeypatch.setattr("ingest.workers.monitor.sender.FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("ingest.workers.monitor.sender.ATTEMPTS_UNTIL_ALARM", 1)
    broken = webhook(tmp_path, "http://127.0.0.1:1/", name="broken", alarms=("node_not_running",))
    other = webhook(tmp_path, "http://127.0.0.1:1/", name="other", alarms=("alerts_unsent",))
    host = make_host("one", broken, other)
    eventually(lambda: (host.look(), "alarm" in host.told("broken"))[1], 10, "the other one tells of it")
    (event,) = ledger.outbox.list_events(5, "alerts.other")
    (alarm,) = json.loads(event.payload)["alarms"]
    assert alarm["name"] == "alerts_unsent.broken"
    assert "nobody listens at 127.0.0.1:1" in alarm["cause"]


def test_silence_is_learned_from_the_ledger(tmp_path, make_host, ledger):
    now = int(time.time() * 1000)
    hour = 3_600_000
    every = [row(n, calling_ae="CT1", received_at=now - n * hour) for n in range(20 * 24, 6, -1)]
    ledger.instances.record(every)
    hook = webhook(tmp_path, "http://127.0.0.1:1/", silent_hours=4, alarms=("peer_silent",))
    host = make_host("one", hook)
    host.look()
    assert host.told("CT1") == ["alarm"]
    (alarm,) = read_watched_alarms(host.config.run_dir)
    assert alarm.cause == "CT1 usually sends at this time and has sent nothing for 7 hours"
    assert len(ledger.peer_hours.read_hours()[1]) == len(every)


@pytest.mark.parametrize(("attempts", "seconds"), [(1, 5), (2, 10), (8, 640), (9, 900), (1000, 900)])
def test_pauses_grow_to_a_quarter_of_an_hour(attempts, seconds):
    assert get_pause_seconds(attempts) == seconds
