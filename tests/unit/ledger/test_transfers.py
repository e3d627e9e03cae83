"""Transfers for audit messages: noted with the rows they are about, merged once, reported at least once."""

import pytest

from ingest.errors import LedgerError
from ingest.ledger import DeliveryResult, DeliveryState, InstanceState, Ledger
from ingest.ledger.transfer_notes import TransferKey
from tests.support.ledgers import row

NOW = 1_000_000
ME, OTHER = "me", "other"


@pytest.fixture
def audited(url):
    opened = Ledger(url, is_audited=True)
    opened.migrate()
    yield opened
    opened.close()


def merge(ledger, now=NOW, owner=ME):
    assert ledger.transfers.hold_lease(owner, now, now + 1000)
    while ledger.transfers.merge_notes(owner, now):
        pass
    ledger.transfers.mark_begun([group.id for group in ledger.transfers.list_unbegun(100)])
    return ledger.transfers.list_ended(now, 0, 10**9, 100)


def received(study, **more):
    values = {"calling_ae": "CT1", "called_ae": "INGEST", "source": "dicom-tls://10.0.0.1:4711"}
    return TransferKey(direction="received", study_uid=study, **{**values, **more})


def test_instances_of_one_association_and_study_make_one_group(audited):
    first = {"calling_ae": "CT1", "called_ae": "INGEST", "source": "dicom-tls://10.0.0.1:4711"}
    second = {**first, "source": "dicom-tls://10.0.0.1:4712"}
    audited.instances.record([row(1, study_uid="1", sop_class_uid="a", **first)])
    audited.instances.record(
        [
            row(2, study_uid="1", sop_class_uid="a", **first),
            row(3, study_uid="1", sop_class_uid="b", **first),
            row(4, study_uid="2", sop_class_uid="a", **first),
            row(5, study_uid="1", sop_class_uid="a", **second),
        ]
    )
    groups = {group.key: dict(group.sop_classes) for group in merge(audited)}
    assert groups == {
        received("1"): {"a": 2, "b": 1},
        received("2"): {"a": 1},
        received("1", source=second["source"]): {"a": 1},
    }
    assert audited.transfers.count_pending() == (0, 3)


def test_refused_replaced_and_repeated_instances_are_told_apart(audited):
    audited.instances.record(
        [
            row(1, study_uid="1"),
            row(2, study_uid="1", replaces=True),
            row(3, study_uid="1", state=InstanceState.QUARANTINED, refused_status=0xA900),
        ]
    )
    # The same references again: they were recorded before, so nothing was transferred.
    audited.instances.record([row(1, study_uid="1"), row(2, study_uid="1")])
    audited.transfers.note_duplicates([row(4, study_uid="1")])
    found = sorted((group.key.change, group.key.is_failed) for group in merge(audited))
    assert found == [("C", False), ("C", True), ("R", False), ("U", False)]


def test_delivered_and_dead_deliveries_are_noted_and_retries_are_not(audited):
    audited.instances.record([row(n, study_uid="1", destinations=("pacs",)) for n in range(1, 5)])
    leased = audited.deliveries.lease_due("pacs", "w", NOW, 60_000, 10)
    states = [DeliveryState.DELIVERED, DeliveryState.DELIVERED, DeliveryState.DEAD, DeliveryState.RETRY]
    results = [
        DeliveryResult(id=one.id, owner="w", state=state) for one, state in zip(leased, states, strict=True)
    ]
    # A worker whose lease another one has taken over reports nothing.
    audited.deliveries.record_results(
        "pacs", [DeliveryResult(id=one.id, owner="x", state=DeliveryState.DELIVERED) for one in leased], NOW
    )
    audited.deliveries.record_results("pacs", results, NOW)
    # A worker that was stopped meanwhile reports them once more: it holds no lease any more.
    audited.deliveries.record_results("pacs", results, NOW + 1)
    sent = [group for group in merge(audited) if group.key.direction == "sent"]
    assert sorted((group.key.is_failed, sum(group.sop_classes.values())) for group in sent) == [
        (False, 2),
        (True, 1),
    ]
    assert {group.key.destination for group in sent} == {"pacs"}


def test_rolled_back_transaction_leaves_no_note(audited, monkeypatch):
    monkeypatch.setattr("ingest.ledger.instances.find_recorded_refs", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        audited.instances.record([row(1)])
    assert audited.transfers.count_pending() == (0, 0)


def test_ledger_without_audit_notes_nothing(ledger):
    ledger.instances.record([row(1, destinations=("pacs",))])
    (leased,) = ledger.deliveries.lease_due("pacs", "w", NOW, 60_000, 10)
    done = DeliveryResult(id=leased.id, owner="w", state=DeliveryState.DELIVERED)
    ledger.deliveries.record_results("pacs", [done], NOW)
    assert ledger.transfers.count_pending() == (0, 0)


def test_what_comes_while_a_group_is_reported_makes_a_new_group(audited):
    audited.instances.record([row(1, study_uid="1")])
    reported = merge(audited)
    audited.instances.record([row(2, study_uid="1")])
    merge(audited, NOW + 1)
    audited.transfers.delete_reported(reported)
    (left,) = merge(audited, NOW + 2)
    assert sum(left.sop_classes.values()) == 1
    audited.transfers.delete_reported([left])
    audited.transfers.delete_reported([left])
    assert audited.transfers.count_pending() == (0, 0)


def test_a_group_ends_after_its_pause_or_at_last_and_when_the_clock_was_set_back(audited):
    audited.instances.record([row(1, study_uid="1")])
    merge(audited)
    ended = audited.transfers.list_ended
    assert not ended(NOW + 99, 100, 10**9, 10)
    assert ended(NOW + 100, 100, 10**9, 10)
    assert ended(NOW + 99, 100, 99, 10)
    assert ended(NOW - 1, 100, 10**9, 10)


def test_one_monitor_works_at_a_time_and_another_takes_over(audited):
    audited.instances.record([row(1)])
    lease = audited.transfers.hold_lease
    assert lease(ME, NOW, NOW + 1000)
    assert not lease(OTHER, NOW + 999, NOW + 2000)
    assert audited.transfers.merge_notes(OTHER, NOW) == 0
    assert lease(OTHER, NOW + 1000, NOW + 2000)
    # The first monitor was only slow: it must not merge any more.
    assert audited.transfers.merge_notes(ME, NOW) == 0
    assert audited.transfers.merge_notes(OTHER, NOW) == 1
    audited.transfers.end_lease(OTHER)
    assert lease(ME, NOW + 1001, NOW + 2001)


def test_values_of_peers_that_databases_refuse_do_not_stop_the_merge(audited):
    hostile = {"calling_ae": "\udc80\x00'; --", "source": "x" * 5000, "sop_class_uid": "\x00" * 5000}
    audited.instances.record([row(1, study_uid="ü\x00" * 5000, **hostile)])
    with audited.database.begin_write() as connection:
        connection.exec_driver_sql("INSERT INTO audit_notes (at, body) VALUES (1, '{')")
    assert len(merge(audited)) == 1


def test_ledger_that_is_away_raises_its_error(tmp_path):
    with pytest.raises(LedgerError):
        Ledger(f"sqlite:///{tmp_path}/none.db").transfers.count_pending()
