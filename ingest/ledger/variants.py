"""Variants: a destination needs only one object of a SOP instance UID.

A variant is another object of a SOP instance UID in another transfer syntax. Senders create one if a remote
refuses the first. Each object has its own deliveries. These rules decide about them:

- A destination that has accepted one object gets no other one.
- While an earlier object waits for its first attempt or is being sent, the later ones wait.
- An earlier object that is dead, held or awaiting, or waits for a retry, keeps back no other.

The rules are applied when a delivery is leased and when its result is recorded. No order of events leaves a
delivery open for ever. The first object is never dropped when it is leased, only when its variant was
delivered: a wrong guess would lose an image.

An older variant may belong to an object that was replaced or removed. Then it is not the same image, and it
was stored before the object that is first now. Two workers that store both objects at once may record them in
either order, so the comparison allows for `SLACK_MILLISECONDS`. Further copies (`[store] duplicates =
"keep-both"`) are instances of their own, and these rules do not apply to them.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, bindparam, exists, select, text, update

from ingest.ledger.records import UNRELEASED, DeliveryState, InstanceState
from ingest.ledger.schema import deliveries, instances

DEFER_MILLISECONDS: Final = 2_000
"""How long a deferred delivery waits before the rules are applied to it again."""

SLACK_MILLISECONDS: Final = 60_000
"""A variant that was stored longer than this before the first object does not belong to it."""

_UNTRIED: Final = (DeliveryState.WAITING.value, DeliveryState.SENDING.value)
_UNSETTLED: Final = tuple(
    state.value for state in (DeliveryState.WAITING, DeliveryState.RETRY, DeliveryState.DEAD, *UNRELEASED)
)
_variant: Final = instances.alias("variant")
# With a literal SQLite uses the index of variants, which is nearly empty.
_HAS_VARIANT: Final = exists().where(
    _variant.c.sop_instance_uid == instances.c.sop_instance_uid, text("variant.state = 'variant'")
)
IS_VARIED: Final = _HAS_VARIANT.label("is_varied")
"""A column for queries of instances: whether the SOP instance UID has variants."""
# The concatenation keeps SQLite from the index of `state`, which would read nearly all rows.
_OBJECTS: Final = (
    select(
        instances.c.id,
        instances.c.sop_instance_uid,
        instances.c.state,
        instances.c.stored_at,
        instances.c.transfer_syntax_uid,
        deliveries.c.id.label("delivery"),
        deliveries.c.destination,
        deliveries.c.state.label("delivery_state"),
        deliveries.c.next_at,
    )
    .outerjoin(deliveries, deliveries.c.instance_id == instances.c.id)
    .where(
        instances.c.sop_instance_uid.in_(bindparam("uids", expanding=True)),
        instances.c.state.concat("").in_((InstanceState.STORED.value, InstanceState.VARIANT.value)),
        instances.c.copy_digest == "",
    )
)
_VARIED_AND_DELIVERED: Final = (
    select(instances.c.sop_instance_uid)
    .join(deliveries, deliveries.c.instance_id == instances.c.id)
    .where(
        deliveries.c.id.in_(bindparam("ids", expanding=True)),
        deliveries.c.state == DeliveryState.DELIVERED.value,
        instances.c.copy_digest == "",
        _HAS_VARIANT,
    )
)
_DROP: Final = (
    update(deliveries)
    .where(deliveries.c.id.in_(bindparam("ids", expanding=True)))
    .values(
        state=DeliveryState.DROPPED.value,
        next_at=0,
        lease_owner=None,
        lease_until=None,
        last_error=bindparam("why"),
        updated_at=bindparam("now"),
    )
)
_DEFER: Final = (
    update(deliveries)
    .where(deliveries.c.id.in_(bindparam("ids", expanding=True)))
    .values(state=DeliveryState.WAITING.value, next_at=bindparam("at"), lease_owner=None, lease_until=None)
)


@dataclass(frozen=True, slots=True)
class _Object:
    """An object of a SOP instance UID, and its delivery to one destination if it has one."""

    id: int
    is_first: bool
    syntax: str
    delivery: int | None
    state: str | None
    next_at: int

    def is_before(self, other: "_Object") -> bool:
        """Whether this object came first. The stored object always did, in any order of the rows."""
        return not other.is_first and (self.is_first or self.id < other.id)


def find_accepted(connection: Connection, uids: Collection[str]) -> set[tuple[str, str]]:
    """Return pairs of SOP instance UID and destination: the destination has accepted an object of the UID."""
    if not uids:
        return set()
    rows = list(connection.execute(_OBJECTS, {"uids": list(uids)}).mappings())
    same = _same_image(rows)
    return {
        (row["sop_instance_uid"], row["destination"])
        for row in rows
        if row["id"] in same and row["delivery_state"] == DeliveryState.DELIVERED.value
    }


def select_leasable(
    connection: Connection, destination: str, rows: Sequence[RowMapping], unix_ms: int
) -> list[dict[str, Any]]:
    """Return those due deliveries that may be leased now; drop or defer the others.

    Args:
        connection: The transaction that leases.
        destination: Name of the destination.
        rows: Due deliveries with `id`, `instance_id`, `sop_instance_uid` and `IS_VARIED`.
        unix_ms: Current time.
    """
    uids = {row["sop_instance_uid"] for row in rows if row["is_varied"]}
    if not uids:
        return list(map(dict, rows))
    objects = _objects_of(connection, destination, uids)
    dropped: set[int] = set()
    deferred: set[int] = set()
    for row in rows:
        others = objects.get(row["sop_instance_uid"], {})
        one = others.get(row["instance_id"])
        if one is None:
            continue
        rest = [other for other in others.values() if other.id != one.id]
        if not one.is_first and any(other.state == DeliveryState.DELIVERED.value for other in rest):
            dropped.add(row["id"])
        elif any(_keeps_back(other, one, unix_ms) for other in rest):
            deferred.add(row["id"])
    if dropped:
        why = "another object of its SOP instance UID was delivered before"
        connection.execute(_DROP, {"ids": list(dropped), "why": why, "now": unix_ms})
    if deferred:
        connection.execute(_DEFER, {"ids": list(deferred), "at": unix_ms + DEFER_MILLISECONDS})
    return [dict(row) for row in rows if row["id"] not in dropped | deferred]


def drop_superseded(connection: Connection, destination: str, ids: Sequence[int], unix_ms: int) -> None:
    """Drop deliveries that a destination does not need any more, because it has accepted another object.

    Args:
        connection: The transaction that records the results, after it has recorded them.
        destination: Name of the destination.
        ids: Ids of the delivered deliveries.
        unix_ms: Current time.
    """
    uids = connection.execute(_VARIED_AND_DELIVERED, {"ids": list(ids)}).scalars().all()
    for others in _objects_of(connection, destination, uids).values():
        for one in others.values():
            if one.delivery not in ids or one.state != DeliveryState.DELIVERED.value:
                continue
            rest = [
                other.delivery
                for other in others.values()
                if other.id != one.id and other.state in _UNSETTLED
            ]
            why = f"instance {one.id} of its SOP instance UID, in transfer syntax {one.syntax}, was delivered"
            if rest:
                connection.execute(_DROP, {"ids": rest, "why": f"{why} instead", "now": unix_ms})


def _keeps_back(other: _Object, one: _Object, unix_ms: int) -> bool:
    """Return whether the delivery of `one` must wait until that of `other` has ended."""
    if other.is_before(one):
        return other.state in _UNTRIED
    # `other` came later, but was leased before `one` was recorded, and its worker is alive.
    return one.is_first and other.state == DeliveryState.SENDING.value and other.next_at > unix_ms


def _objects_of(
    connection: Connection, destination: str, uids: Collection[str]
) -> dict[str, dict[int, _Object]]:
    """Return the objects of one image with their deliveries to a destination, by SOP instance UID and id."""
    found: dict[str, dict[int, _Object]] = {}
    rows = list(connection.execute(_OBJECTS, {"uids": list(set(uids))}).mappings()) if uids else []
    same = _same_image(rows)
    for row in rows:
        if row["id"] in same and row["destination"] == destination:
            found.setdefault(row["sop_instance_uid"], {})[row["id"]] = _Object(
                row["id"],
                row["state"] == InstanceState.STORED.value,
                row["transfer_syntax_uid"],
                row["delivery"],
                row["delivery_state"],
                row["next_at"],
            )
    return found


def _same_image(rows: Sequence[RowMapping]) -> set[int]:
    """Return the ids of objects that are the first of their UID, a variant of it, or have no first one."""
    stored = {
        row["sop_instance_uid"]: row["stored_at"]
        for row in rows
        if row["state"] == InstanceState.STORED.value
    }
    return {
        row["id"]
        for row in rows
        if row["stored_at"] >= stored.get(row["sop_instance_uid"], 0) - SLACK_MILLISECONDS
    }
