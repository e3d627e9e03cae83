"""Deliveries of what is stored already, on both databases: who gets one, who does not, and how it goes on."""

import threading
from pathlib import Path

import pytest
from sqlalchemy import update

from ingest.errors import LedgerError
from ingest.ledger import DeliveryResult, DeliveryState, InstanceState, Ledger, backfill
from ingest.ledger.backfill import BackfillCounts
from ingest.ledger.instance_filter import InstanceFilter
from ingest.ledger.schema import deliveries, instances
from tests.support.ledgers import delivery_states, row
from tests.support.nodes import eventually

ALL = InstanceFilter()
DELIVERED, DEAD, DROPPED = DeliveryState.DELIVERED, DeliveryState.DEAD, DeliveryState.DROPPED
WAITING = DeliveryState.WAITING


def finish(ledger: Ledger, state: DeliveryState, of: str = "pacs") -> None:
    """End all that is due."""
    leased = ledger.deliveries.lease_due(of, "me", 10_000, 1000, 500)
    ledger.deliveries.record_results(
        of, [DeliveryResult(id=one.id, owner="me", state=state) for one in leased], 1000
    )


def test_only_what_the_store_holds_gets_a_delivery(ledger: Ledger) -> None:
    states = list(InstanceState)
    ledger.instances.record(
        [row(number, state=state, destinations=()) for number, state in enumerate(states, 1)]
    )
    counts = ledger.backfill.create_deliveries("pacs", ALL, 5000)
    assert counts == BackfillCounts(new=2)
    owed = {states[number - 1]: delivery_states(ledger, number) for number in range(1, len(states) + 1)}
    assert {state for state, found in owed.items() if found} == {InstanceState.STORED, InstanceState.VARIANT}
    [made, _] = ledger.deliveries.lease_due("pacs", "me", 9, 6000, 500)
    assert (made.created_at, made.attempts) == (5000, 1)


def test_what_has_a_delivery_is_left_alone_and_counted_by_its_state(ledger: Ledger) -> None:
    for number, state in enumerate(DeliveryState, 1):
        ledger.instances.record([row(number)])
        with ledger.database.begin_write() as connection:
            connection.execute(
                update(deliveries).where(deliveries.c.instance_id == number).values(state=state.value)
            )
    assert ledger.backfill.create_deliveries("pacs", ALL, 5000) == BackfillCounts(
        left=dict.fromkeys(DeliveryState, 1)
    )
    assert [delivery_states(ledger, number)["pacs"] for number in range(1, len(DeliveryState) + 1)] == list(
        DeliveryState
    )


def test_again_delivers_what_was_delivered_and_leaves_the_rest(ledger: Ledger) -> None:
    ledger.instances.record([row(1)])
    finish(ledger, DELIVERED)
    ledger.instances.record([row(2)])
    finish(ledger, DEAD)
    ledger.instances.record([row(3, destinations=())])
    counts = ledger.backfill.create_deliveries("pacs", ALL, 5000, again=True)
    assert counts == BackfillCounts(new=1, again=1, left={DEAD: 1})
    assert [delivery_states(ledger, number)["pacs"] for number in (1, 2, 3)] == [WAITING, DEAD, WAITING]
    assert [one.instance_id for one in ledger.deliveries.lease_due("pacs", "me", 9, 6000, 500)] == [1, 3]


def test_filters_say_which(ledger: Ledger) -> None:
    ledger.instances.record(
        [
            row(1, destinations=(), received_at=10),
            row(2, destinations=(), received_at=20, study_uid="2", series_uid="2.1", calling_ae="MR1"),
        ]
    )
    for which, count in (
        (InstanceFilter(study_uid="2"), 1),
        (InstanceFilter(series_uid="2.1"), 1),
        (InstanceFilter(sop_instance_uid="1.2.1"), 1),
        (InstanceFilter(calling_ae="CT1"), 1),
        (InstanceFilter(since=20), 1),
        (InstanceFilter(until=20), 1),
        (InstanceFilter(study_uid="3"), 0),
        (ALL, 2),
    ):
        assert ledger.backfill.create_deliveries("pacs", which, 5000, dry_run=True).new == count, which
    assert ledger.count_rows().deliveries == {}
    assert ledger.backfill.create_deliveries("pacs", InstanceFilter(study_uid="2"), 5000).new == 1
    assert (delivery_states(ledger, 1), delivery_states(ledger, 2)) == ({}, {"pacs": WAITING})


def test_variant_is_not_due_where_another_object_was_accepted(ledger: Ledger) -> None:
    ledger.instances.record([row(1)])
    finish(ledger, DELIVERED)
    ledger.instances.record([row(2, state=InstanceState.VARIANT, sop_instance_uid="1.2.1", destinations=())])
    assert ledger.backfill.create_deliveries("pacs", ALL, 5000) == BackfillCounts(left={DELIVERED: 2})
    assert ledger.backfill.create_deliveries("ai", ALL, 5000).new == 2


def test_every_copy_is_delivered(ledger: Ledger) -> None:
    ledger.instances.record(
        [row(1, destinations=()), row(2, sop_instance_uid="1.2.1", copy_digest="a", destinations=())]
    )
    assert ledger.backfill.create_deliveries("pacs", ALL, 5000).new == 2


def test_many_are_made_in_bounded_steps_and_an_interrupted_run_is_continued(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill, "SPAN", 700)
    ledger.instances.record([row(number, destinations=()) for number in range(1, 2501)])
    parts: list[float] = []

    def stop(part: float) -> None:
        parts.append(part)
        if len(parts) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ledger.backfill.create_deliveries("pacs", ALL, 5000, progress=stop)
    assert sum(ledger.count_rows().deliveries["pacs"].values()) == 1400
    parts.clear()
    counts = ledger.backfill.create_deliveries("pacs", ALL, 6000, progress=parts.append)
    assert counts == BackfillCounts(new=1100, left={WAITING: 1400})
    assert parts == [0.28, 0.56, 0.84, 1.0]
    assert ledger.backfill.create_deliveries("pacs", ALL, 7000).new == 0


def test_full_step_is_followed_by_the_rest_of_its_span(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill, "CHUNK", 10)
    ledger.instances.record([row(number, destinations=()) for number in range(1, 36)])
    query = backfill._select_matching

    def small(destination: str, which: InstanceFilter) -> object:
        return query(destination, which).limit(10)

    monkeypatch.setattr(backfill, "_select_matching", small)
    assert ledger.backfill.create_deliveries("pacs", ALL, 5000).new == 35
    assert ledger.backfill.create_deliveries("ai", InstanceFilter(study_uid="1"), 5000).new == 35


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)  # SQLite has one writer at a time
def test_instance_that_retention_is_removing_gets_no_delivery(ledger: Ledger) -> None:
    ledger.instances.record([row(1, destinations=()), row(2, destinations=())])
    done: list[BackfillCounts] = []
    thread = threading.Thread(
        target=lambda: done.append(ledger.backfill.create_deliveries("pacs", ALL, 5000))
    )
    with ledger.database.begin_write() as connection:
        connection.execute(update(instances).where(instances.c.id == 1).values(state="removing"))
        thread.start()
        eventually(lambda: _waits_for_lock(ledger), 10, "the command waits for retention")
    thread.join(20)
    assert done == [BackfillCounts(new=1)]
    assert delivery_states(ledger, 1) == {}


def _waits_for_lock(ledger: Ledger) -> bool:
    with ledger.database.begin_read() as connection:
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        return bool(connection.exec_driver_sql(waiting).scalar())


def test_ledger_that_is_away_is_said(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="is not there"):
        Ledger(f"sqlite:///{tmp_path}/none.db").backfill.create_deliveries("pacs", ALL, 1)


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)  # SQLite has one writer at a time
def test_retention_sees_what_was_made_while_it_looked(ledger: Ledger) -> None:
    ledger.instances.record([row(1, destinations=()), row(2, destinations=())])
    [study] = ledger.retention.summarize_studies(["1"])
    marked: list[int] = []

    def mark() -> None:
        files = ledger.retention.mark_removing([study], 10, 6000, only_delivered=True)
        marked.extend(file.id for file in files)

    thread = threading.Thread(target=mark)
    with ledger.database.begin_write() as connection:
        connection.execute(backfill._LOCK, {"ids": [1]})
        connection.execute(backfill._CREATE["postgresql"], {"of": "pacs", "now": 5000, "ids": [1]})
        thread.start()
        eventually(lambda: _waits_for_lock(ledger), 10, "retention waits for the command")
    thread.join(20)
    assert marked == [2]
