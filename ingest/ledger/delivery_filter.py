"""Conditions for deliveries: those of their instances and studies, and their own."""

from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Final

from sqlalchemy import ColumnElement, Connection, func, literal_column

from ingest.ledger.instance_filter import InstanceFilter
from ingest.ledger.newest_first import hide_from_indexes
from ingest.ledger.records import DeliveryState
from ingest.ledger.schema import HAS_ERROR, deliveries, instances
from ingest.ledger.study_filter import StudyFilter

CLOCKS_DIFFER_MS: Final = 24 * 3600 * 1000
"""The clocks of senders' listeners and of the ledger agree within this time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryFilter(StudyFilter):
    """Conditions for deliveries; a condition that is None does not apply.

    Attributes:
        calling_ae: AE title that sent the instance.
        error: A part of the last error.
        reason: Status and whole text of the last error, as `group_dead` returns them.
        since, until: Time of the last change, in Unix milliseconds; `until` is excluded.
    """

    destination: str | None = None
    study_uid: str | None = None
    series_uid: str | None = None
    sop_instance_uid: str | None = None
    states: Collection[DeliveryState] = ()
    calling_ae: str | None = None
    error: str | None = None
    reason: tuple[int | None, str] | None = None
    since: int | None = None
    until: int | None = None

    @property
    def names_object(self) -> bool:
        """Whether an index of `instances` has the few that match."""
        return self.study_uid is not None or self.sop_instance_uid is not None

    @property
    def names_few_studies(self) -> bool:
        """Whether a condition selects few studies."""
        return self.names_patient_or_order or self.series_uid is not None

    @property
    def asks_for_studies(self) -> bool:
        """Whether a condition is found by the study index."""
        others = (self.series_uid, self.calling_ae, self.until)
        return self.needs_index or any(value is not None for value in others)

    @property
    def asks_for_pairs(self) -> bool:
        """Whether there is a condition on destination or state."""
        return self.destination is not None or bool(self.states)

    @property
    def asks_for_error(self) -> bool:
        """Whether only deliveries with the text of an error match."""
        return bool(self.error) or (self.reason is not None and bool(self.reason[1]))

    @property
    def of_studies(self) -> InstanceFilter:
        """The conditions that hold for the study of a delivery.

        A delivery changes last after its instance has arrived.
        """
        names = [field.name for field in fields(StudyFilter)] + ["series_uid", "calling_ae"]
        until = None if self.until is None else self.until + CLOCKS_DIFFER_MS
        return InstanceFilter(**{name: getattr(self, name) for name in names}, until=until)

    def build_clauses(self, connection: Connection | None = None) -> list[ColumnElement[bool]]:
        """Return the conditions as SQL over `deliveries` joined with `instances`.

        With a connection, SQLite uses no index of destination, state or time. The caller names a better one.
        """
        destination, state, updated_at = (
            column if connection is None else hide_from_indexes(connection, column)
            for column in (deliveries.c.destination, deliveries.c.state, deliveries.c.updated_at)
        )
        clauses = [
            column == value
            for column, value in (
                (destination, self.destination),
                (instances.c.study_uid, self.study_uid),
                (instances.c.series_uid, self.series_uid),
                (instances.c.sop_instance_uid, self.sop_instance_uid),
                (instances.c.calling_ae, self.calling_ae),
            )
            if value is not None
        ]
        clauses += self.build_membership_clauses()
        if self.states:
            clauses.append(state.in_([one.value for one in self.states]))
        if self.error is not None:
            clauses.append(deliveries.c.last_error.contains(self.error, autoescape=True))
        if self.reason is not None:
            status, error = self.reason
            # Without a response the status is NULL: SQLAlchemy compares None with IS NULL.
            clauses.append(deliveries.c.last_status == status)
            clauses.append(func.coalesce(deliveries.c.last_error, "") == error)
        if self.asks_for_error:
            # Only with the same words do both databases use the index of deliveries with an error.
            clauses.append(literal_column(HAS_ERROR.text))
        if self.since is not None:
            clauses.append(updated_at >= self.since)
        if self.until is not None:
            clauses.append(updated_at < self.until)
        return clauses
