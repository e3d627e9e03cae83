"""The numbers of rows that triggers keep are those of the tables, whatever statement changed these."""

import random

import pytest
from alembic import command
from sqlalchemy import delete, func, select, update

from ingest.ledger import DeliveryState, InstanceState, Ledger
from ingest.ledger.migrations import configuration
from ingest.ledger.row_counts import count_deliveries, count_instances
from ingest.ledger.schema import deliveries, instances, row_counts
from tests.support.ledgers import row


def counted(ledger: Ledger) -> tuple[dict, dict]:
    """Count the rows themselves."""
    by_destination: dict[str, dict[DeliveryState, int]] = {}
    columns = deliveries.c
    with ledger.database.begin_read() as connection:
        by_state = dict(
            connection.execute(select(instances.c.state, func.count()).group_by(instances.c.state)).all()
        )
        query = select(columns.destination, columns.state, func.count())
        for name, state, number in connection.execute(query.group_by(columns.destination, columns.state)):
            by_destination.setdefault(name, {})[DeliveryState(state)] = number
    return by_state, by_destination


def require_right_numbers(ledger: Ledger) -> None:
    with ledger.database.begin_read() as connection:
        kept = count_instances(connection), count_deliveries(connection)
    assert kept == counted(ledger)


def test_numbers_follow_every_change_of_state(ledger: Ledger) -> None:
    rows = [row(number, destinations=("pacs", "vna")) for number in range(40)]
    ledger.instances.record(rows)
    ledger.instances.record(rows)  # known references change nothing
    require_right_numbers(ledger)
    leased = ledger.deliveries.lease_due("pacs", "me", 10, 50, 60_000)
    assert leased
    require_right_numbers(ledger)
    chosen = random.Random(1)
    for _ in range(30):
        state = chosen.choice(list(DeliveryState)).value
        which = deliveries.c.id % chosen.randint(2, 7) == 0
        with ledger.database.begin_write() as connection:
            connection.execute(update(deliveries).where(which).values(state=state, updated_at=1))
        require_right_numbers(ledger)
    with ledger.database.begin_write() as connection:
        connection.execute(update(instances).where(instances.c.id < 9).values(state="quarantined"))
        connection.execute(delete(deliveries).where(deliveries.c.instance_id > 20))
        connection.execute(delete(instances).where(instances.c.id > 20))
    require_right_numbers(ledger)
    with ledger.database.begin_read() as connection:
        assert count_instances(connection)[InstanceState.QUARANTINED] == 8


def test_a_transaction_that_is_rolled_back_counts_nothing(ledger: Ledger) -> None:
    ledger.instances.record([row(1)])

    def remove_and_fail() -> None:
        with ledger.database.begin_write() as connection:
            connection.execute(update(instances).values(state="removed"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        remove_and_fail()
    require_right_numbers(ledger)


def test_a_ledger_made_before_is_counted_once(ledger: Ledger) -> None:
    ledger.instances.record([row(number, destinations=("pacs",)) for number in range(5)])
    with ledger.database.begin_write() as connection:
        command.downgrade(configuration(connection), "0013")
        command.upgrade(configuration(connection), "head")
    require_right_numbers(ledger)
    ledger.instances.record([row(9)])
    require_right_numbers(ledger)


def test_a_truncated_table_counts_nothing(postgresql_url: str) -> None:
    ledger = Ledger(postgresql_url)
    ledger.migrate()
    ledger.instances.record([row(500)])
    with ledger.database.begin_write() as connection:
        connection.exec_driver_sql("TRUNCATE attempts, deliveries, instances")
    require_right_numbers(ledger)
    ledger.instances.record([row(501)])
    require_right_numbers(ledger)
    ledger.close()


def test_counters_of_sessions_that_ended_are_merged(postgresql_url: str) -> None:
    ledger = Ledger(postgresql_url)
    ledger.migrate()
    try:
        for number in range(3):
            other = Ledger(postgresql_url)
            other.instances.record([row(100 + number)])
            other.close()
        merge = "DO $$ BEGIN FOR i IN 1..20000 LOOP PERFORM merge_row_counts(); END LOOP; END $$"
        with ledger.database.begin_write() as connection:
            connection.exec_driver_sql(merge)
        with ledger.database.begin_read() as connection:
            query = select(row_counts.c.session).where(row_counts.c.session > 0).distinct()
            sessions = connection.execute(query).scalars().all()
        assert len(sessions) <= 1  # that of this test
        require_right_numbers(ledger)
    finally:
        ledger.close()
