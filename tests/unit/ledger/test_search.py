"""What people ask of deliveries, on both databases: finding them, sending them again, giving them up."""

from collections.abc import Iterator

import pytest

from ingest.ledger import DeliveryResult, DeliveryState, InstanceState, Ledger
from ingest.ledger.delivery_search import CHUNK, Filter
from tests.support.ledgers import delivery_states, row


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path) -> Iterator[Ledger]:
    if request.param == "postgresql":
        opened = Ledger(request.getfixturevalue("postgresql_url"))
        with opened.write() as connection:
            connection.exec_driver_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    else:
        opened = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    opened.migrate()
    yield opened
    opened.close()


def end(ledger: Ledger, state: DeliveryState, error: str = "", destination: str = "pacs") -> None:
    """End all that is due of a destination."""
    rows = ledger.lease(destination, "w", 10_000, 100, 1000)
    results = [
        DeliveryResult(id=row.id, owner="w", state=state, last_status=0xC000, last_error=error)
        for row in rows
    ]
    ledger.finish(destination, results, 200)


def states(ledger: Ledger) -> list[DeliveryState]:
    """Oldest first."""
    return [found.state for found in reversed(ledger.find_deliveries(Filter()))]


def test_deliveries_are_found_by_what_is_known_of_them(ledger: Ledger) -> None:
    ledger.record([row(1), row(2, study_uid="2", series_uid="2.1", destinations=("pacs", "ai"))])
    end(ledger, DeliveryState.DEAD, "answered C000H: 100% wrong")
    assert [one.sop_instance_uid for one in ledger.find_deliveries(Filter())] == ["1.2.2", "1.2.2", "1.2.1"]
    for which, count in (
        (Filter(destination="ai"), 1),
        (Filter(study_uid="2"), 2),
        (Filter(series_uid="2.1", destination="pacs"), 1),
        (Filter(sop_instance_uid="1.2.1"), 1),
        (Filter(states=(DeliveryState.DEAD,)), 2),
        (Filter(states=(DeliveryState.DEAD, DeliveryState.WAITING)), 3),
        (Filter(error="C000H"), 2),
        (Filter(error="100% wrong"), 2),
        (Filter(error="100_ wrong"), 0),
        (Filter(since=200), 2),
        (Filter(until=200), 1),
        (Filter(destination="nobody"), 0),
    ):
        assert len(ledger.find_deliveries(which)) == count, which
    first, *_ = ledger.find_deliveries(Filter(), 1)
    assert len(ledger.find_deliveries(Filter(), before=first.id)) == 2


def test_dead_ones_are_sent_again_as_though_they_were_new(ledger: Ledger) -> None:
    ledger.record([row(1), row(2)])
    end(ledger, DeliveryState.DEAD, "no")
    assert ledger.send_again(Filter(sop_instance_uid="1.2.1"), 300) == {"pacs": 1}
    assert states(ledger) == [DeliveryState.WAITING, DeliveryState.DEAD]
    assert ledger.send_again(Filter(sop_instance_uid="1.2.1"), 300) == {}
    [leased] = ledger.lease("pacs", "w2", 10, 400, 1000)
    assert leased.attempts == 1


def test_what_is_on_its_way_or_no_longer_there_is_left_alone(ledger: Ledger) -> None:
    ledger.record([row(1), row(2, state=InstanceState.REMOVED)])
    assert len(ledger.lease("pacs", "w", 1, 100, 1000)) == 1
    assert ledger.give_up(Filter(sop_instance_uid="1.2.1"), "no", 300) == {}
    assert ledger.send_again(Filter(), 300) == {}
    assert ledger.give_up(Filter(), "no longer wanted", 300) == {"pacs": 1}
    assert ledger.send_again(Filter(), 300) == {}
    assert states(ledger) == [DeliveryState.SENDING, DeliveryState.DROPPED]


def test_given_up_ones_keep_the_reason_and_can_be_taken_back(ledger: Ledger) -> None:
    ledger.record([row(1)])
    assert ledger.give_up(Filter(destination="pacs"), "patient moved", 300) == {"pacs": 1}
    [found] = ledger.find_deliveries(Filter())
    assert (found.state, found.last_error) == (DeliveryState.DROPPED, "patient moved")
    assert ledger.lease("pacs", "w", 10, 400, 1000) == []
    ledger.send_again(Filter(states=(DeliveryState.DROPPED,)), 300)
    assert len(ledger.lease("pacs", "w", 10, 400, 1000)) == 1


def test_more_than_one_transaction_holds_are_changed_all(ledger: Ledger) -> None:
    ledger.record([row(number) for number in range(2 * CHUNK + 5)])
    assert ledger.give_up(Filter(), "all", 300) == {"pacs": 2 * CHUNK + 5}
    assert ledger.counts().deliveries == {"pacs": {DeliveryState.DROPPED: 2 * CHUNK + 5}}
    assert delivery_states(ledger, 1) == {"pacs": DeliveryState.DROPPED}
