"""The half of the ledger that a person's decisions about the quarantine go through."""

from collections.abc import Collection, Sequence

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from ingest.ledger.database import Database
from ingest.ledger.instances import (
    INSERT,
    INSERT_DELIVERIES,
    as_instance,
    clean,
    columns_of,
    drop_open_deliveries,
)
from ingest.ledger.rows import Instance, InstanceState, NewInstance
from ingest.ledger.schema import instances


class Quarantine(Database):
    """Lets quarantined instances become the stored ones, or go."""

    def instances_by_id(self, ids: Collection[int]) -> dict[int, Instance]:
        """Rows by their ids; an id without a row is missing.

        Raises:
            LedgerError: The ledger is away.
        """
        with self.read() as connection:
            rows = connection.execute(select(instances).where(instances.c.id.in_(ids))).mappings()
            return {row["id"]: as_instance(row) for row in rows}

    def give_way(self, old: Instance | None, note: str, kept: Sequence[NewInstance], now_ms: int) -> None:
        """Mark a stored instance as replaced, and record what is kept of it, in one transaction.

        What is not delivered of it is dropped. What has a row already gets no second one.

        Args:
            old: What gives way, or None.
            note: What its row says from now on.
            kept: Rows of quarantined copies.
            now_ms: The time, in Unix milliseconds.

        Raises:
            LedgerError: The ledger is away.
        """
        with self.write() as connection:
            if old is not None:
                this = (instances.c.id == old.id, instances.c.state == InstanceState.STORED.value)
                drop_open_deliveries(connection, this, now_ms)
                connection.execute(
                    update(instances)
                    .where(*this)
                    .values(state=InstanceState.REPLACED.value, note=clean(note))
                )
            if kept:
                connection.execute(INSERT[self.dialect], [columns_of(row) for row in kept])

    def release_quarantined(self, number: int, released: NewInstance) -> bool:
        """Make a quarantined instance the stored one of its SOP instance UID; its deliveries wait.

        Args:
            number: The id of its row.
            released: What the row says from now on.

        Returns:
            Whether it is; False where it is not quarantined any more, or another has its place.

        Raises:
            LedgerError: The ledger is away.
        """
        quarantined = (instances.c.id == number, instances.c.state == InstanceState.QUARANTINED.value)
        waiting = [
            {"instance_id": number, "destination": destination, "at": released.stored_at}
            for destination in released.destinations
        ]
        try:
            with self.write() as connection:
                changed = connection.execute(
                    update(instances).where(*quarantined).values(columns_of(released))
                )
                if changed.rowcount and waiting:
                    connection.execute(INSERT_DELIVERIES, waiting)
                return bool(changed.rowcount)
        except IntegrityError:
            # One stored row a SOP instance UID, and one row a file of the store.
            return False

    def drop_quarantined(self, number: int, note: str) -> bool:
        """Say that a quarantined instance has no file any more; False where it is not quarantined.

        Raises:
            LedgerError: The ledger is away.
        """
        quarantined = (instances.c.id == number, instances.c.state == InstanceState.QUARANTINED.value)
        values = {"state": InstanceState.REMOVED.value, "note": clean(note)}
        with self.write() as connection:
            return bool(connection.execute(update(instances).where(*quarantined).values(values)).rowcount)
