"""Security alerts: written by a thread, once for many of a kind, and bounded."""

import time

import pytest

from ingest.audit import AuditTrail, alerts
from ingest.audit.alerts import SecurityAlerts
from ingest.config.model import Config
from tests.support.audit import Said
from tests.support.nodes import eventually


@pytest.fixture
def config(tmp_path):
    return Config.model_validate({"node": {"name": "node", "data_dir": tmp_path}, "audit": {"host": "arr"}})


def read_all(config):
    queue = AuditTrail.open(config).queue
    return [Said.of_syslog(queue.read(name)) for name in queue.list_names()]


def test_refused_caller_becomes_an_alert_that_names_it_and_the_cause(config):
    reported = SecurityAlerts(config)
    reported.report("10.0.0.7", "CT1", "association refused: <unknown> caller")
    (said,) = eventually(lambda: read_all(config))
    assert (said.event, said.types, said.outcome) == ("Security Alert", ["Node Authentication"], "4")
    assert (said.users[1], said.addresses[1], said.objects) == ("CT1", "10.0.0.7", ["10.0.0.7"])
    assert said.detail == "association refused: <unknown> caller"
    assert said.requestors == []
    reported.close()


def test_flood_of_one_kind_is_written_once_and_counted_at_the_end(config):
    reported = SecurityAlerts(config)
    reported.report("10.0.0.7", "", "handshake")
    eventually(lambda: read_all(config))
    for _ in range(500):
        reported.report("10.0.0.7", "", "handshake")
    time.sleep(3 * alerts.FLUSH_SECONDS)
    assert len(read_all(config)) == 1
    reported.close()
    assert [said.detail for said in read_all(config)] == ["handshake", "handshake (500 times)"]


def test_repeated_alert_is_written_again_after_a_while(config):
    reported = SecurityAlerts(config, repeat_seconds=0.1)
    reported.report("10.0.0.7", "", "handshake")
    eventually(lambda: len(read_all(config)) == 1)
    reported.report("10.0.0.7", "", "handshake")
    eventually(lambda: len(read_all(config)) == 2)
    reported.close()


def test_flood_of_many_kinds_takes_bounded_memory(config):
    reported = SecurityAlerts(config)
    for number in range(2 * alerts.KINDS_MAX):
        reported.report(f"10.0.0.{number}", "", "handshake")
    reported.close()
    found = read_all(config)
    assert len(found) == alerts.KINDS_MAX + 1
    assert found[-1].objects == ["others"] or any(said.objects == ["others"] for said in found)


def test_node_without_audit_starts_no_thread(tmp_path):
    reported = SecurityAlerts(Config.model_validate({"node": {"data_dir": tmp_path}}))
    reported.report("10.0.0.7", "", "handshake")
    assert reported._thread is None
    reported.close()
    assert not (tmp_path / "audit").exists()
