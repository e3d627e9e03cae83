"""Studies and series that are being received, and the events of their completion.

`ingest.ledger.reception_notes` writes the rows when instances are recorded. Here the monitor completes them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final

from sqlalchemy import Connection, bindparam, delete, func, or_, select, tuple_, update

from ingest.ledger.announcements import Announcer
from ingest.ledger.database import INSERT_BY_DIALECT, Database
from ingest.ledger.reception_notes import COMPLETE, RECEIVING, REOPENED
from ingest.ledger.records import DeliveryState
from ingest.ledger.schema import (
    FIRST_DUE,
    IS_RECEIVING,
    carriers,
    completions,
    deliveries,
    instances,
    receptions,
    spool_marks,
)

AHEAD_MS: Final = 60_000
"""How far the clock of a host may be ahead."""

CHUNK: Final = 500
"""Maximum number of values in one IN list."""


@dataclass(frozen=True, slots=True)
class Reception:
    """A study or series whose completion is judged; times are Unix milliseconds.

    Attributes:
        series_uid: Empty for a study.
        generation: 1 until the first completion.
        first_at, last_at: When the first and the last instance of this generation were stored.
        instances: Instances of this generation.
        due_at: When it is complete at the earliest.
        seen_at: Last progress of an open association that carried it last; None without one.
    """

    study_uid: str
    series_uid: str
    generation: int
    first_at: int
    last_at: int
    instances: int
    due_at: int
    seen_at: int | None = None


@dataclass(frozen=True, slots=True)
class CompletionEvent:
    """A row of `completions`.

    Attributes:
        series_uid: Empty for a study.
        generation: The number of this completion, from 1.
        event: "complete" or "reopened".
        at: When it happened, in Unix milliseconds.
        instances: Instances of this generation at that time.
        first_at, last_at: As in `Reception`.
    """

    id: int
    study_uid: str
    series_uid: str
    generation: int
    event: str
    at: int
    instances: int
    first_at: int
    last_at: int


@dataclass(frozen=True, slots=True)
class ReceptionCounts:
    """How many studies and series wait to be complete.

    Attributes:
        due_at: The earliest `due_at`; None if none waits.
    """

    studies: int
    series: int
    due_at: int | None


@dataclass(frozen=True, slots=True)
class SpoolMark:
    """Up to which time a spool is persisted, and when that was seen."""

    spool: str
    low_water: int
    seen_at: int


_key: Final = tuple_(receptions.c.due_at, receptions.c.study_uid, receptions.c.series_uid)
_carried: Final = (
    select(func.max(carriers.c.seen_at))
    .where(
        carriers.c.study_uid == receptions.c.study_uid,
        or_(receptions.c.series_uid == "", carriers.c.series_uid == receptions.c.series_uid),
    )
    .correlate(receptions)
    .scalar_subquery()
)
_DUE: Final = (
    select(
        *(receptions.c[field.name] for field in fields(Reception) if field.name != "seen_at"),
        _carried.label("seen_at"),
    )
    .where(
        IS_RECEIVING,
        receptions.c.due_at <= bindparam("until"),
        _key > tuple_(bindparam("due"), bindparam("study"), bindparam("series")),
    )
    .order_by(receptions.c.due_at, receptions.c.study_uid, receptions.c.series_uid)
    .limit(bindparam("at_most"))
)
_COMPLETE: Final = (
    update(receptions)
    .where(
        receptions.c.study_uid == bindparam("of_study"),
        receptions.c.series_uid == bindparam("of_series"),
        receptions.c.state == RECEIVING,
        receptions.c.generation == bindparam("is_generation"),
        receptions.c.last_at == bindparam("is_last_at"),
        receptions.c.instances == bindparam("are_instances"),
    )
    .values(state=COMPLETE)
)
_OF_STUDY: Final = select(instances.c.id).where(instances.c.study_uid == bindparam("of_study"))
_RELEASE: Final = {
    level: update(deliveries)
    .where(
        deliveries.c.instance_id.in_(which),
        # The concatenation keeps SQLite from reading all deliveries of a destination.
        deliveries.c.state.concat("") == DeliveryState.AWAITING.value,
        deliveries.c.awaits == level,
    )
    .values(
        state=DeliveryState.WAITING.value,
        next_at=FIRST_DUE,
        # The time until the delivery expires starts now: nobody could send it before.
        created_at=bindparam("now"),
        updated_at=bindparam("now"),
    )
    for level, which in (
        ("study", _OF_STUDY),
        ("series", _OF_STUDY.where(instances.c.series_uid == bindparam("of_series"))),
    )
}
_COUNTS: Final = select(
    func.count().filter(receptions.c.series_uid == ""),
    func.count().filter(receptions.c.series_uid != ""),
    func.min(receptions.c.due_at),
).where(IS_RECEIVING)
_SEEN: Final = (
    update(carriers)
    .where(carriers.c.association == bindparam("of"), carriers.c.seen_at < bindparam("at_ms"))
    .values(seen_at=bindparam("at_ms"))
)


def find_completion_states(connection: Connection, study_uids: Sequence[str]) -> dict[str, str]:
    """Return "receiving", "reopened" or "complete", by UID, for the studies whose completion is judged.

    Args:
        connection: A transaction.
        study_uids: Study Instance UIDs, at most as many as one query may name.
    """
    query = select(receptions.c.study_uid, receptions.c.state, receptions.c.generation).where(
        receptions.c.study_uid.in_(study_uids), receptions.c.series_uid == ""
    )
    return {
        uid: REOPENED if state == RECEIVING and generation > 1 else state
        for uid, state, generation in connection.execute(query)
    }


class Receptions:
    """Completes studies and series, and lists the events.

    Every method is one transaction, durable on return. It raises LedgerError while the database is
    unavailable.
    """

    def __init__(self, database: Database, *, announcer: Announcer | None = None) -> None:
        self._database = database
        self._announcer = announcer

    # --- judge

    def find_due(self, until_ms: int, limit: int, after: Reception | None = None) -> list[Reception]:
        """Return what may be complete, judged by times alone, the earliest first.

        Args:
            until_ms: The time up to which everything is known.
            limit: Maximum number of rows.
            after: The last row of the previous page.
        """
        parameters = {
            "until": until_ms,
            "at_most": limit,
            "due": after.due_at if after else -1,
            "study": after.study_uid if after else "",
            "series": after.series_uid if after else "",
        }
        with self._database.begin_read() as connection:
            return [Reception(**row) for row in connection.execute(_DUE, parameters).mappings()]

    def bound_times(self, unix_ms: int) -> int:
        """Set times that lie in the future to now; return how many rows had such a time.

        The clock of a host was ahead. Its studies would wait until that time comes.
        """
        values = {"due_at": receptions.c.due_at - (receptions.c.last_at - unix_ms), "last_at": unix_ms}
        late = receptions.c.last_at > unix_ms + AHEAD_MS
        with self._database.begin_write() as connection:
            return connection.execute(update(receptions).where(IS_RECEIVING, late).values(**values)).rowcount

    def complete(self, found: Reception, unix_ms: int) -> bool:
        """Complete a study or series: write its event, and make the deliveries due that await it.

        Args:
            found: The row as it was judged.
            unix_ms: Current time.

        Returns:
            Whether it was completed. It was not if an instance came since it was judged, or if another
            monitor has completed it.
        """
        key = {"of_study": found.study_uid, "of_series": found.series_uid}
        event = {
            **{field.name: getattr(found, field.name) for field in fields(CompletionEvent)[1:4]},
            "event": COMPLETE,
            "at": unix_ms,
            **{name: getattr(found, name) for name in ("instances", "first_at", "last_at")},
        }
        release = _RELEASE["series" if found.series_uid else "study"]
        with self._database.begin_write() as connection:
            changed = connection.execute(
                _COMPLETE,
                {
                    **key,
                    "is_generation": found.generation,
                    "is_last_at": found.last_at,
                    "are_instances": found.instances,
                },
            ).rowcount
            if not changed:
                return False
            connection.execute(completions.insert(), event)
            connection.execute(release, {**key, "now": unix_ms})
            if self._announcer is not None:
                self._announcer.announce_completion(connection, event)
        return True

    # --- associations

    def find_carriers(self, first: int, last: int) -> dict[int, int]:
        """Return the associations with ids in this range that count as open, and when they were last seen."""
        query = select(carriers.c.association, carriers.c.seen_at).where(
            carriers.c.association.between(first, last)
        )
        with self._database.begin_read() as connection:
            return {row.association: row.seen_at for row in connection.execute(query)}

    def update_carriers(self, ended: Sequence[int], seen: Mapping[int, int]) -> None:
        """Forget associations that have ended, and note when others made progress."""
        with self._database.begin_write() as connection:
            for start in range(0, len(ended), CHUNK):
                some = ended[start : start + CHUNK]
                connection.execute(delete(carriers).where(carriers.c.association.in_(some)))
            if seen:
                connection.execute(_SEEN, [{"of": number, "at_ms": seen[number]} for number in sorted(seen)])

    # --- spools

    def write_mark(self, mark: SpoolMark) -> None:
        """Note up to which time a spool is persisted."""
        statement = INSERT_BY_DIALECT[self._database.dialect](spool_marks).values(
            spool=mark.spool, low_water=mark.low_water, seen_at=mark.seen_at
        )
        changes = {"low_water": mark.low_water, "seen_at": mark.seen_at}
        with self._database.begin_write() as connection:
            connection.execute(statement.on_conflict_do_update(index_elements=["spool"], set_=changes))

    def read_marks(self) -> list[SpoolMark]:
        """Return what was noted of all spools."""
        query = select(spool_marks.c.spool, spool_marks.c.low_water, spool_marks.c.seen_at)
        with self._database.begin_read() as connection:
            return [SpoolMark(*row) for row in connection.execute(query)]

    # --- list and clean up

    def list_events(
        self, limit: int, *, study_uid: str | None = None, before: int | None = None, after: int | None = None
    ) -> list[CompletionEvent]:
        """Return events, the newest first; with `after` those behind this id, the oldest first."""
        query = select(*(completions.c[field.name] for field in fields(CompletionEvent))).limit(limit)
        if study_uid is not None:
            query = query.where(completions.c.study_uid == study_uid)
        if before is not None:
            query = query.where(completions.c.id < before)
        if after is not None:
            query = query.where(completions.c.id > after).order_by(completions.c.id)
        else:
            query = query.order_by(completions.c.id.desc())
        with self._database.begin_read() as connection:
            return [CompletionEvent(**row) for row in connection.execute(query).mappings()]

    def count_receptions(self) -> ReceptionCounts:
        """Count the studies and series that are not complete."""
        with self._database.begin_read() as connection:
            return ReceptionCounts(*connection.execute(_COUNTS).one())

    def remove_ended(self, before_ms: int) -> int:
        """Remove what was complete long ago, events and all, and associations of hosts that are gone.

        A study of which instances come afterwards begins with generation 1.
        """
        ended = (receptions.c.state == COMPLETE, receptions.c.last_at < before_ms)
        with self._database.begin_write() as connection:
            connection.execute(delete(carriers).where(carriers.c.seen_at < before_ms))
            connection.execute(delete(spool_marks).where(spool_marks.c.seen_at < before_ms))
            connection.execute(
                delete(completions).where(
                    tuple_(completions.c.study_uid, completions.c.series_uid).in_(
                        select(receptions.c.study_uid, receptions.c.series_uid).where(*ended)
                    )
                )
            )
            return connection.execute(delete(receptions).where(*ended)).rowcount
