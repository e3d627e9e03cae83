"""Conditions for instances: those of their studies, their own, and those of their deliveries."""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import ColumnElement, exists

from ingest.ledger.records import DeliveryState, InstanceState
from ingest.ledger.schema import deliveries, instances
from ingest.ledger.study_filter import StudyFilter


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceFilter(StudyFilter):
    """Conditions for instances; a condition that is None does not apply.

    Attributes:
        states: States of the instance.
        calling_ae: AE title of the sender.
        since, until: Time of arrival, in Unix milliseconds; `until` is excluded.
        destination: Name of a destination that the instance has a delivery to.
        delivery_states: States of that delivery, or of any delivery.
    """

    study_uid: str | None = None
    series_uid: str | None = None
    sop_instance_uid: str | None = None
    states: Collection[InstanceState] = ()
    calling_ae: str | None = None
    since: int | None = None
    until: int | None = None
    destination: str | None = None
    delivery_states: Collection[DeliveryState] = ()

    @property
    def asks_for_deliveries(self) -> bool:
        """Whether there is a condition for deliveries."""
        return self.destination is not None or bool(self.delivery_states)

    @property
    def asks_for_studies(self) -> bool:
        """Whether a condition is found by the study index."""
        others = (self.series_uid, self.calling_ae, self.since, self.until)
        return self.needs_index or any(value is not None for value in others)

    @property
    def names_object(self) -> bool:
        """Whether an index of `instances` has the few that match."""
        return self.study_uid is not None or self.sop_instance_uid is not None

    def build_clauses(self) -> list[ColumnElement[bool]]:
        """Return all conditions except those on states, as SQL over `instances`."""
        columns = instances.c
        clauses = [
            column == value
            for column, value in (
                (columns.study_uid, self.study_uid),
                (columns.series_uid, self.series_uid),
                (columns.sop_instance_uid, self.sop_instance_uid),
                (columns.calling_ae, self.calling_ae),
            )
            if value is not None
        ]
        if self.since is not None:
            clauses.append(columns.received_at >= self.since)
        if self.until is not None:
            clauses.append(columns.received_at < self.until)
        if self.asks_for_deliveries:
            clauses.append(
                exists().where(deliveries.c.instance_id == columns.id, *self.build_delivery_clauses())
            )
        return clauses + self.build_membership_clauses()

    def build_state_clauses(self) -> list[ColumnElement[bool]]:
        """Return the condition on states, if there is one, as SQL over `instances`.

        The concatenation keeps SQLite from the index of `state`. Another index is far more selective.
        """
        if not self.states:
            return []
        return [instances.c.state.concat("").in_([state.value for state in self.states])]

    def build_delivery_clauses(self) -> list[ColumnElement[bool]]:
        """Return the conditions for deliveries as SQL over `deliveries`."""
        clauses: list[ColumnElement[bool]] = []
        if self.destination is not None:
            clauses.append(deliveries.c.destination == self.destination)
        if self.delivery_states:
            clauses.append(deliveries.c.state.in_([state.value for state in self.delivery_states]))
        return clauses
