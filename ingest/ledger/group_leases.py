"""Leases of groups: choose the member of each study, and find the rows of one member.

A row keeps the name of its group. Which member a study goes to is in `group_studies`. The transaction that
leases rows of the study chooses it, and workers lease rows of one group one after the other. Two workers
therefore agree.

Rows of other members may stand before those of this one: a member that is slow or away has its own backlog.
A *search* then looks behind them, from where the last search ended.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from sqlalchemy import BindParameter, Connection, bindparam, func, literal, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from ingest.ledger.circuits import CircuitState
from ingest.ledger.group_choice import (
    GroupPolicy,
    GroupTerms,
    StudyChoice,
    choose_member,
    needs_history,
)
from ingest.ledger.records import DeliveryState
from ingest.ledger.schema import circuits, deliveries, group_studies, instances, studies

SEARCH_ROWS: Final = 8192
"""Rows that a search reads at a time."""

SEARCH_PAUSE_MS: Final = 2_000
"""A search that has found nothing is not repeated in this time: it reads many rows."""

SEARCHES: Final = 3
"""How often a lease continues a search that has found nothing."""

R = TypeVar("R", bound=Mapping[Any, Any])
Position = tuple[int, int]
START: Final[Position] = (-(1 << 62), 0)

_UIDS: Final[BindParameter[Any]] = bindparam("uids", expanding=True)
_CIRCUITS: Final = select(circuits.c.destination, circuits.c.state, circuits.c.paused_at).where(
    circuits.c.destination.in_(bindparam("names", expanding=True))
)
_CHOSEN: Final = select(group_studies.c.study_uid, group_studies.c.member, group_studies.c.is_begun).where(
    group_studies.c.study_uid.in_(_UIDS), group_studies.c.group_name == bindparam("of")
)
_LAST_TURN: Final = select(func.max(group_studies.c.turn)).where(
    group_studies.c.group_name == bindparam("of")
)
_PATIENTS: Final = select(studies.c.study_uid, studies.c.issuer_of_patient_id, studies.c.patient_id).where(
    studies.c.study_uid.in_(_UIDS), studies.c.patient_id != ""
)
# The concatenation keeps SQLite from the index of all delivered rows of the group.
_OF_MEMBER: Final = (
    select(deliveries.c.id)
    .select_from(instances)
    .join(deliveries, deliveries.c.instance_id == instances.c.id)
    .where(
        instances.c.study_uid == bindparam("study"),
        deliveries.c.destination.concat("") == bindparam("of"),
        deliveries.c.member == bindparam("member"),
    )
    .limit(1)
)
_DELIVERED: Final = _OF_MEMBER.where(deliveries.c.state.concat("") == DeliveryState.DELIVERED.value)
_BEING_SENT: Final = _OF_MEMBER.where(
    deliveries.c.state.concat("") == DeliveryState.SENDING.value, deliveries.c.next_at > bindparam("now")
)
_BEGIN: Final = (
    update(group_studies)
    .where(group_studies.c.study_uid == bindparam("study"), group_studies.c.group_name == bindparam("of"))
    .values(is_begun=True)
)


def _record_choice(insert: Any) -> Any:
    statement = insert(group_studies)
    return statement.on_conflict_do_update(
        index_elements=["study_uid", "group_name"],
        set_={name: statement.excluded[name] for name in ("member", "turn", "is_begun")},
    )


_RECORD: Final = {"sqlite": _record_choice(sqlite.insert), "postgresql": _record_choice(postgresql.insert)}
_SEARCHED: Final = (
    select(
        deliveries.c.id,
        deliveries.c.next_at,
        deliveries.c.instance_id,
        instances.c.study_uid,
        instances.c.series_uid,
    )
    .join(instances, instances.c.id == deliveries.c.instance_id)
    .where(
        deliveries.c.destination == bindparam("of"),
        deliveries.c.state == bindparam("in_state"),
        deliveries.c.next_at <= bindparam("now"),
        deliveries.c.next_at >= bindparam("from_time"),
        tuple_(deliveries.c.next_at, deliveries.c.instance_id)
        > tuple_(bindparam("from_time"), bindparam("from_id")),
        deliveries.c.suspect_since == literal(0),
    )
    .order_by(deliveries.c.next_at, deliveries.c.instance_id)
    .limit(bindparam("at_most"))
)


@dataclass(frozen=True, slots=True)
class GroupMember:
    """A member of a group.

    Attributes:
        terms: The group.
        name: Name of the member.
    """

    terms: GroupTerms
    name: str


class MemberRows:
    """Tells the rows of one member from those of the others, within one transaction that leases."""

    def __init__(
        self, connection: Connection, group: GroupMember, unix_ms: int, *, without: str = ""
    ) -> None:
        """Read the circuits of group and members.

        Args:
            connection: The transaction.
            group: The group, and the member whose rows are wanted.
            unix_ms: Current time.
            without: A member that counts as not available.
        """
        self._connection = connection
        self._terms = group.terms
        self._member = group.name
        self._now = unix_ms
        self._chosen: dict[str, str] = {}
        names = [group.terms.name, *group.terms.members]
        left_alone, paused = set(), set()
        for name, state, paused_at in connection.execute(_CIRCUITS, {"names": names}):
            if paused_at:
                paused.add(name)
            if paused_at or state != CircuitState.CLOSED.value:
                left_alone.add(name)
        self._available = frozenset(group.terms.members) - left_alone - group.terms.closed - {without}
        self.is_paused = group.terms.name in paused

    def keep(self, rows: Iterable[R]) -> list[R]:
        """Return the rows whose studies go to the member; choose it for studies without a member."""
        found = list(rows)
        new = dict.fromkeys(row["study_uid"] for row in found if row["study_uid"] not in self._chosen)
        if new and not self.is_paused:
            self._choose(list(new))
        return [row for row in found if self._chosen.get(row["study_uid"]) == self._member]

    def _choose(self, uids: Sequence[str]) -> None:
        terms, name = self._terms, self._terms.name
        known = {
            uid: (member, is_begun)
            for uid, member, is_begun in self._connection.execute(_CHOSEN, {"of": name, "uids": uids})
        }
        patients = self._read_patients(uids)
        turn: int | None = None
        changes = []
        for uid in uids:
            member, is_begun = known.get(uid, ("", False))
            if not is_begun and needs_history(terms, self._available, member):
                is_begun = self._has_begun(uid, member)
            if terms.policy is GroupPolicy.ROUND_ROBIN and turn is None and member not in self._available:
                last = self._connection.execute(_LAST_TURN, {"of": name}).scalar()
                turn = 0 if last is None else last + 1
            before = StudyChoice(member, is_begun)
            chosen = choose_member(terms, self._available, before, patients.get(uid, uid), turn or 0)
            self._chosen[uid] = chosen
            # A turn counts, whoever finds the study first. Without turns all workers choose alike.
            if chosen != member and (turn is not None or chosen == self._member):
                changes.append(
                    {
                        "group_name": name,
                        "study_uid": uid,
                        "member": chosen,
                        "turn": turn or 0,
                        "is_begun": False,
                    }
                )
                turn = None if turn is None else turn + 1
        if changes:
            self._connection.execute(_RECORD[self._connection.dialect.name], changes)

    def _read_patients(self, uids: Sequence[str]) -> dict[str, str]:
        """Return the patients of studies. The values stay in this process, and only their digest counts."""
        if not (self._terms.policy is GroupPolicy.STICKY and self._terms.is_by_patient):
            return {}
        rows = self._connection.execute(_PATIENTS, {"uids": list(uids)})
        return {uid: f"{issuer}\0{patient}" for uid, issuer, patient in rows}

    def _has_begun(self, study_uid: str, member: str) -> bool:
        values = {"of": self._terms.name, "study": study_uid, "member": member}
        if self._connection.execute(_DELIVERED, values).first() is not None:
            self._connection.execute(_BEGIN, {"of": self._terms.name, "study": study_uid})
            return True
        return self._connection.execute(_BEING_SENT, {**values, "now": self._now}).first() is not None


class RowSearch:
    """Where the searches of one process have ended, by group, member and state."""

    def __init__(self, rows: int = SEARCH_ROWS) -> None:
        self._rows = rows
        self._ended: dict[tuple[str, str, str], Position] = {}
        self._not_before: dict[tuple[str, str, str], int] = {}

    def find_ids(  # noqa: PLR0917 - each is a value of its own
        self,
        connection: Connection,
        group: GroupMember,
        mine: MemberRows,
        state: str,
        limit: int,
        unix_ms: int,
        busy: set[str],
    ) -> list[int]:
        """Return the ids of the first due rows of a member behind those where the last search ended.

        A search that reaches the end begins anew next time. A row of a busy series stops it, so that the rows
        of that series keep their order.
        """
        key = (group.terms.name, group.name, state)
        if mine.is_paused or unix_ms < self._not_before.get(key, 0) <= unix_ms + SEARCH_PAUSE_MS:
            return []
        values = {"of": group.terms.name, "in_state": state, "now": unix_ms, "at_most": self._rows}
        for _ in range(SEARCHES):
            begun_at = self._ended.pop(key, START)
            bounds = {"from_time": begun_at[0], "from_id": begun_at[1]}
            rows = list(connection.execute(_SEARCHED, {**values, **bounds}).mappings())
            own = mine.keep(rows)
            free = [row for row in own if row["series_uid"] not in busy]
            if len(free) < len(own):
                self._ended[key] = begun_at
                return [int(row["id"]) for row in free[:limit]]
            if len(own) > limit:
                self._ended[key] = _position_of(own[limit - 1])
            elif len(rows) == self._rows:
                self._ended[key] = _position_of(rows[-1])
            if own:
                return [int(row["id"]) for row in own[:limit]]
            if len(rows) < self._rows and begun_at == START:
                break
        self._not_before[key] = unix_ms + SEARCH_PAUSE_MS
        return []


def _position_of(row: Mapping[Any, Any]) -> Position:
    return int(row["next_at"]), int(row["instance_id"])
