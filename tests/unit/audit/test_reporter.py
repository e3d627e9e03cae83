"""The reporter: a message for each group of transfers, whatever fails between ledger and queue."""

import time

import pytest

from ingest.audit import AuditTrail
from ingest.audit.queue import BLOCK_BYTES, AuditQueue
from ingest.config.model import Config
from ingest.ledger import DeliveryResult, DeliveryState, InstanceState, Ledger
from ingest.workers.monitor.audit_reporter import TransferReporter
from tests.support.audit import Said, validate
from tests.support.ledgers import row

PEER = {"calling_ae": "CT1", "called_ae": "INGEST", "source": "dicom-tls://[::1]:4711"}
PACS = {"name": "pacs", "ae_title": "PACS", "host": "pacs.example.org", "calling_ae_title": "OURS"}


@pytest.fixture
def config(tmp_path):
    return Config.model_validate(
        {
            "node": {"name": "node", "data_dir": tmp_path, "ae_title": "INGEST"},
            "audit": {"host": "arr", "idle_seconds": 0.001},
            "destinations": [PACS],
            "tls": {"node": {"trusted": [str(tmp_path)]}},
        }
    )


@pytest.fixture
def audited(config):
    opened = Ledger(config.ledger_url, is_audited=True)
    opened.migrate()
    yield opened
    opened.close()


def report(config, ledger, times=3):
    trail = AuditTrail.open(config)
    reporter = TransferReporter(config, ledger, trail)
    for _ in range(times):
        reporter.run()
        time.sleep(0.005)  # longer than idle_seconds
    reporter.close()
    return read_all(config)


def read_all(config):
    queue = AuditTrail.open(config).queue
    return [Said.of_syslog(queue.read(name)) for name in queue.list_names()]


def deliver(ledger, state=DeliveryState.DELIVERED):
    now = ledger.unix_ms()
    leased = ledger.deliveries.lease_due("pacs", "w", now, 60_000, 100)
    results = [DeliveryResult(id=one.id, owner="w", state=state) for one in leased]
    ledger.deliveries.record_results("pacs", results, now)


def test_reception_and_delivery_are_reported_with_both_ends(config, audited, tmp_path):
    audited.instances.record([row(n, study_uid="1.2", **PEER) for n in (1, 2)])
    deliver(audited)
    found = report(config, audited)
    received = next(said for said in found if said.action == "C")
    assert (received.users, received.addresses[0]) == (["CT1", "node"], "::1")
    begin, sent = (next(s for s in found if s.action == action) for action in ("E", "R"))
    assert begin.users == sent.users == ["node", "PACS"]
    assert sent.root.find("ActiveParticipant").get("AlternativeUserID") == "AETITLES=OURS"
    assert sent.requestors == ["node"]
    assert begin.classes == {}
    assert sum(sent.classes.values()) == 2
    assert len(found) == 3
    assert audited.transfers.count_pending() == (0, 0)
    queue = AuditTrail.open(config).queue
    documents = [queue.read(name).partition(b"\xef\xbb\xbf")[2] for name in queue.list_names()]
    assert validate(tmp_path, documents) == ""


def test_refused_and_dead_transfers_are_failures(config, audited):
    refused = {"state": InstanceState.QUARANTINED, "refused_status": 0xA900, "store_key": "q"}
    audited.instances.record([row(1, study_uid="1", **PEER), row(2, study_uid="1", **PEER, **refused)])
    deliver(audited, DeliveryState.DEAD)
    outcomes = sorted((said.outcome, said.action) for said in report(config, audited))
    assert outcomes == [("0", "C"), ("8", "C"), ("8", "R")]


@pytest.mark.parametrize("method", ["mark_begun", "delete_reported", "merge_notes"])
def test_crash_after_any_step_loses_no_message_and_repeats_none_that_waits(
    config, audited, monkeypatch, method
):
    audited.instances.record([row(1, study_uid="1", **PEER)])
    deliver(audited)
    done = getattr(audited.transfers, method)

    def crash(*arguments):
        monkeypatch.undo()
        if method == "merge_notes":
            done(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(audited.transfers, method, crash)
    with pytest.raises(KeyboardInterrupt):
        report(config, audited)
    with audited.database.begin_write() as connection:  # the lease of the dead monitor ends
        connection.exec_driver_sql("UPDATE audit_lease SET until = 0")
    assert sorted(said.action for said in report(config, audited)) == ["C", "E", "R"]


def test_failing_disk_keeps_the_transfers_in_the_ledger(config, audited, tmp_path):
    audited.instances.record([row(1, study_uid="1", **PEER)])
    (tmp_path / "audit").write_text("in the way")
    with pytest.raises(OSError, match="audit"):
        report(config, audited)
    (tmp_path / "audit").unlink()
    with audited.database.begin_write() as connection:
        connection.exec_driver_sql("UPDATE audit_lease SET until = 0")
    assert [said.action for said in report(config, audited)] == ["C"]


def test_full_queue_drops_and_counts(config, audited):
    trail = AuditTrail.open(config)
    trail.queue = AuditQueue(trail.queue.folder, BLOCK_BYTES)
    audited.instances.record([row(n, study_uid=str(n), **PEER) for n in range(3)])
    reporter = TransferReporter(config, audited, trail)
    for _ in range(3):
        reporter.run()
        time.sleep(0.005)
    assert audited.transfers.count_pending() == (0, 0)
    assert trail.queue.read_usage().dropped == 2


def test_removed_destination_is_still_named(config, audited):
    audited.instances.record([row(1, study_uid="1", **PEER)])
    deliver(audited)
    without = config.model_copy(update={"destinations": ()})
    sent = next(said for said in report(without, audited) if said.action == "R")
    assert sent.users == ["node", "pacs"]
