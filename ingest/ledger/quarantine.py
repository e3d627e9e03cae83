"""The half of the ledger that a person's decisions about the quarantine go through."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.exc import IntegrityError

from ingest.ledger.database import Database
from ingest.ledger.instances import (
    INSERT,
    INSERT_DELIVERIES,
    clean,
    columns_of,
    drop_open_deliveries,
)
from ingest.ledger.records import Instance, InstanceState, NewInstance
from ingest.ledger.schema import QUARANTINED, instances

GAVE_WAY: Final = "released"
"""In place of a spool's id in the references of what gave way to a released object."""

_KEYS_OF_SAME: Final = select(instances.c.store_key).where(
    QUARANTINED,
    instances.c.content_digest == bindparam("digest"),
    instances.c.sop_instance_uid == bindparam("sop"),
    instances.c.study_uid == bindparam("study"),
    instances.c.series_uid == bindparam("series"),
    instances.c.refused_status == bindparam("status"),
)
_REFUSED_BYTES: Final = select(func.coalesce(func.sum(instances.c.size), 0)).where(
    QUARANTINED, instances.c.refused_status != 0
)
# What a person has put there is nobody's surprise.
_SET_ASIDE: Final = (
    QUARANTINED,
    instances.c.refused_status == 0,
    instances.c.spool_ref.not_like(f"{GAVE_WAY}:%"),
)


class ContentIdentity(NamedTuple):
    """What makes two instances the same thing in quarantine.

    Attributes:
        digest: Of the content.
        sop_instance_uid, study_uid, series_uid: As the instance has them.
        status: What its sender was answered; 0 is Success.
    """

    digest: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str
    status: int


class Quarantine:
    """Lets quarantined instances become the stored ones, or go."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find_store_keys(self, same: ContentIdentity) -> list[str]:
        """Where in quarantine the same thing lies; one key at most, unless workers came at one moment.

        Raises:
            LedgerError: The ledger is away.
        """
        asked = {
            "digest": same.digest,
            "sop": clean(same.sop_instance_uid),
            "study": clean(same.study_uid),
            "series": clean(same.series_uid),
            "status": same.status,
        }
        with self._database.begin_read() as connection:
            return list(connection.execute(_KEYS_OF_SAME, asked).scalars())

    def sum_refused_bytes(self) -> int:
        """Bytes of all copies in quarantine of what was refused.

        Raises:
            LedgerError: The ledger is away.
        """
        with self._database.begin_read() as connection:
            return int(connection.execute(_REFUSED_BYTES).scalar_one())

    def list_acknowledged_ids(self, limit: int) -> list[int]:
        """Ids of acknowledged instances in quarantine that no person has put there, oldest first.

        Raises:
            LedgerError: The ledger is away.
        """
        query = select(instances.c.id).where(*_SET_ASIDE).order_by(instances.c.id).limit(limit)
        with self._database.begin_read() as connection:
            return list(connection.execute(query).scalars())

    def count_acknowledged(self) -> tuple[int, int]:
        """How many there are of them, and when the first of them came, in Unix milliseconds.

        Raises:
            LedgerError: The ledger is away.
        """
        with self._database.begin_read() as connection:
            query = select(func.count(), func.coalesce(func.min(instances.c.stored_at), 0))
            count, first = connection.execute(query.where(*_SET_ASIDE)).one()
            return int(count), int(first)

    def replace_stored(
        self, old: Instance | None, note: str, kept: Sequence[NewInstance], now_ms: int
    ) -> None:
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
        with self._database.begin_write() as connection:
            if old is not None:
                this = (instances.c.id == old.id, instances.c.state == InstanceState.STORED.value)
                drop_open_deliveries(connection, this, now_ms)
                connection.execute(
                    update(instances)
                    .where(*this)
                    .values(state=InstanceState.REPLACED.value, note=clean(note))
                )
            if kept:
                connection.execute(INSERT[self._database.dialect], [columns_of(row) for row in kept])

    def release(self, number: int, released: NewInstance) -> bool:
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
            with self._database.begin_write() as connection:
                changed = connection.execute(
                    update(instances).where(*quarantined).values(columns_of(released))
                )
                if changed.rowcount:
                    # They are variants of what gave way, and must not be taken for this one's.
                    variants = (
                        instances.c.sop_instance_uid == clean(released.sop_instance_uid),
                        instances.c.state == InstanceState.VARIANT.value,
                    )
                    drop_open_deliveries(connection, variants, released.stored_at)
                if changed.rowcount and waiting:
                    connection.execute(INSERT_DELIVERIES, waiting)
                return bool(changed.rowcount)
        except IntegrityError:
            # One stored row a SOP instance UID, and one row a file of the store.
            return False

    def drop(self, number: int, note: str) -> bool:
        """Say that a quarantined instance has no file any more; False where it is not quarantined.

        Raises:
            LedgerError: The ledger is away.
        """
        quarantined = (instances.c.id == number, instances.c.state == InstanceState.QUARANTINED.value)
        values = {"state": InstanceState.REMOVED.value, "note": clean(note)}
        with self._database.begin_write() as connection:
            return bool(connection.execute(update(instances).where(*quarantined).values(values)).rowcount)
