"""Quarantine: rows of quarantined instances, and the decisions of a person about them."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.exc import IntegrityError

from ingest.ledger.announcements import Announcer
from ingest.ledger.database import Database
from ingest.ledger.instances import (
    INSERT,
    INSERT_DELIVERIES,
    drop_open_deliveries,
    encode_columns,
    encode_delivery,
)
from ingest.ledger.reception_notes import note_receptions
from ingest.ledger.records import Instance, InstanceState, NewInstance
from ingest.ledger.row_values import clean_value
from ingest.ledger.schema import QUARANTINED, instances
from ingest.ledger.study_index import index_studies

GAVE_WAY: Final = "released"
"""Stands for the spool id in the references of objects that a released one replaced."""

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
# Instances that a person has put there need no attention.
_ACKNOWLEDGED: Final = (
    QUARANTINED,
    instances.c.refused_status == 0,
    instances.c.spool_ref.not_like(f"{GAVE_WAY}:%"),
)


class ContentIdentity(NamedTuple):
    """The identity of a quarantined instance: two with equal values are the same.

    Attributes:
        digest: Digest of the content.
        sop_instance_uid, study_uid, series_uid: UIDs of the instance.
        status: Status of the C-STORE response; 0 is Success.
    """

    digest: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str
    status: int


class Quarantine:
    """Releases and drops quarantined instances, and counts them.

    Every method is one transaction. It raises LedgerError while the database is unavailable.
    """

    def __init__(self, database: Database, *, announcer: Announcer | None = None) -> None:
        self._database = database
        self._announcer = announcer

    def find_store_keys(self, same: ContentIdentity) -> list[str]:
        """Return the keys of the same instance in quarantine.

        There is one key at most, unless several workers quarantined the instance at the same moment.
        """
        parameters = {
            "digest": same.digest,
            "sop": clean_value(same.sop_instance_uid),
            "study": clean_value(same.study_uid),
            "series": clean_value(same.series_uid),
            "status": same.status,
        }
        with self._database.begin_read() as connection:
            return list(connection.execute(_KEYS_OF_SAME, parameters).scalars())

    def sum_refused_bytes(self) -> int:
        """Return the bytes of all quarantined copies of refused instances."""
        with self._database.begin_read() as connection:
            return int(connection.execute(_REFUSED_BYTES).scalar_one())

    def list_acknowledged_ids(self, limit: int) -> list[int]:
        """Return ids of acknowledged instances in quarantine that no person has put there, oldest first."""
        query = select(instances.c.id).where(*_ACKNOWLEDGED).order_by(instances.c.id).limit(limit)
        with self._database.begin_read() as connection:
            return list(connection.execute(query).scalars())

    def count_acknowledged(self) -> tuple[int, int]:
        """Count these instances; also return when the first one was stored, in Unix milliseconds."""
        with self._database.begin_read() as connection:
            query = select(func.count(), func.coalesce(func.min(instances.c.stored_at), 0))
            count, first = connection.execute(query.where(*_ACKNOWLEDGED)).one()
            return int(count), int(first)

    def replace_stored(
        self, old: Instance | None, note: str, kept: Sequence[NewInstance], unix_ms: int
    ) -> None:
        """Mark a stored instance as replaced and record its quarantined copies, in one transaction.

        Its open deliveries are dropped. A copy that already has a row gets no second one.

        Args:
            old: The stored instance, or None.
            note: The new note of its row.
            kept: Rows of its quarantined copies.
            unix_ms: Current time.
        """
        with self._database.begin_write() as connection:
            if old is not None:
                this = (instances.c.id == old.id, instances.c.state == InstanceState.STORED.value)
                drop_open_deliveries(connection, this, unix_ms)
                connection.execute(
                    update(instances)
                    .where(*this)
                    .values(state=InstanceState.REPLACED.value, note=clean_value(note))
                )
            if kept:
                new = connection.execute(
                    INSERT[self._database.dialect], [encode_columns(row) for row in kept]
                )
                by_ref = {clean_value(row.spool_ref): row for row in kept}
                index_studies(connection, [(number, by_ref[ref]) for number, ref in new])

    def release(self, number: int, released: NewInstance) -> bool:
        """Make a quarantined instance the stored one of its SOP instance UID, and create its deliveries.

        Args:
            number: The id of its row.
            released: The new contents of the row.

        Returns:
            Whether it was released. It is not if it is not quarantined any more, or if another instance has
            its UID or its store key.
        """
        quarantined = (instances.c.id == number, instances.c.state == InstanceState.QUARANTINED.value)
        waiting = [encode_delivery(released, number, destination) for destination in released.destinations]
        try:
            with self._database.begin_write() as connection:
                changed = connection.execute(
                    update(instances).where(*quarantined).values(encode_columns(released))
                )
                if changed.rowcount:
                    # They are variants of the replaced object. They must not count as variants of the
                    # released one.
                    variants = (
                        instances.c.sop_instance_uid == clean_value(released.sop_instance_uid),
                        instances.c.state == InstanceState.VARIANT.value,
                    )
                    drop_open_deliveries(connection, variants, released.stored_at)
                if changed.rowcount and waiting:
                    connection.execute(INSERT_DELIVERIES, waiting)
                if changed.rowcount:
                    index_studies(connection, [(number, released)])
                    note_receptions(connection, [released])
                    if self._announcer is not None:
                        self._announcer.announce_instances(connection, [released])
                return bool(changed.rowcount)
        except IntegrityError:
            # The ledger allows one stored row for each SOP instance UID, and one row for each file.
            return False

    def drop(self, number: int, note: str) -> bool:
        """Record that a quarantined instance has no file any more; return False if it is not quarantined."""
        quarantined = (instances.c.id == number, instances.c.state == InstanceState.QUARANTINED.value)
        values = {"state": InstanceState.REMOVED.value, "note": clean_value(note)}
        with self._database.begin_write() as connection:
            return bool(connection.execute(update(instances).where(*quarantined).values(values)).rowcount)
