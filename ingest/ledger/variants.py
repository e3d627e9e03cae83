"""Variants of an instance: one object of a SOP instance UID is enough for a destination.

A variant is another object of a SOP instance UID in another transfer syntax. Senders make one when a remote
refuses the first. Each variant has deliveries of its own, and these rules settle them:

- A destination that has accepted one object of the UID is owed no other.
- While an object that came earlier waits for its first attempt or is being sent, the later ones wait.
- An earlier object that is to be tried again, or dead, keeps back nothing.

The rules are applied when a delivery is leased and when it is finished, so that no order of events leaves
one without an end. Further copies (`[store] duplicates = "keep-both"`) are instances of their own, and not
meant here.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, bindparam, exists, select, text, update

from ingest.ledger.rows import DeliveryState, InstanceState
from ingest.ledger.schema import deliveries, instances

DEFER_MILLISECONDS: Final = 2_000
"""How long a variant waits before it is asked again what became of the object before it."""

_UNTRIED: Final = (DeliveryState.WAITING.value, DeliveryState.SENDING.value)
_UNSETTLED: Final = (DeliveryState.WAITING.value, DeliveryState.RETRY.value, DeliveryState.DEAD.value)
# Not the bare column: SQLite would go by its index, and read nearly all rows there are.
_KEPT_FIRST: Final = (
    instances.c.state.concat("").in_((InstanceState.STORED.value, InstanceState.VARIANT.value)),
    instances.c.copy_digest == "",
)
_OF_UIDS: Final = (
    select(instances.c.sop_instance_uid, instances.c.id, deliveries.c.destination, deliveries.c.state)
    .join(deliveries, deliveries.c.instance_id == instances.c.id)
    .where(instances.c.sop_instance_uid.in_(bindparam("uids", expanding=True)), *_KEPT_FIRST)
)
_other: Final = instances.alias("other")
_HAS_VARIANT: Final = exists().where(
    _other.c.sop_instance_uid == instances.c.sop_instance_uid, text("other.state = 'variant'")
)
_DELIVERED_WITH_VARIANTS: Final = (
    select(instances.c.id, instances.c.sop_instance_uid, instances.c.transfer_syntax_uid)
    .join(deliveries, deliveries.c.instance_id == instances.c.id)
    .where(
        deliveries.c.id.in_(bindparam("ids", expanding=True)),
        deliveries.c.state == DeliveryState.DELIVERED.value,
        instances.c.copy_digest == "",
        _HAS_VARIANT,
    )
)
_DROP: Final = update(deliveries).values(
    state=DeliveryState.DROPPED.value,
    next_at=0,
    lease_owner=None,
    lease_until=None,
    suspect_since=0,
    last_error=bindparam("why"),
    updated_at=bindparam("now"),
)
_DROP_IDS: Final = _DROP.where(deliveries.c.id.in_(bindparam("ids", expanding=True)))
_DROP_OTHERS: Final = _DROP.where(
    deliveries.c.destination == bindparam("of"),
    deliveries.c.state.in_(_UNSETTLED),
    deliveries.c.instance_id.in_(
        select(instances.c.id).where(
            instances.c.sop_instance_uid == bindparam("uid"),
            instances.c.id != bindparam("delivered"),
            *_KEPT_FIRST,
        )
    ),
)
_DEFER: Final = (
    update(deliveries)
    .where(deliveries.c.id.in_(bindparam("ids", expanding=True)))
    .values(next_at=bindparam("at"))
)


def accepted_already(connection: Connection, uids: Collection[str]) -> set[tuple[str, str]]:
    """Pairs of SOP instance UID and destination, of those destinations that have accepted an object of it."""
    found = connection.execute(_OF_UIDS, {"uids": list(uids)}) if uids else ()
    return {
        (uid, destination) for uid, _, destination, state in found if state == DeliveryState.DELIVERED.value
    }


def without_superseded(
    connection: Connection, destination: str, rows: Iterable[RowMapping], now_ms: int
) -> list[dict[str, Any]]:
    """Of deliveries that are due those that may be leased now; drops and defers the others.

    Args:
        connection: Of the transaction that leases.
        destination: Whose deliveries they are.
        rows: Deliveries with `id`, `instance_id`, `sop_instance_uid` and `instance_state`.
        now_ms: The time, in Unix milliseconds.
    """
    found = [dict(row) for row in rows]
    variants = [row for row in found if row.pop("instance_state") == InstanceState.VARIANT.value]
    if not variants:
        return found
    uids = {row["sop_instance_uid"] for row in variants}
    states: dict[str, dict[int, str]] = {}
    for uid, number, name, state in connection.execute(_OF_UIDS, {"uids": list(uids)}):
        if name == destination:
            states.setdefault(uid, {})[number] = state
    dropped: set[int] = set()
    deferred: set[int] = set()
    for row in variants:
        own, others = row["instance_id"], states.get(row["sop_instance_uid"], {})
        if any(other != own and state == DeliveryState.DELIVERED.value for other, state in others.items()):
            dropped.add(row["id"])
        elif any(other < own and state in _UNTRIED for other, state in others.items()):
            deferred.add(row["id"])
    if dropped:
        why = "another object of its SOP instance UID was delivered before"
        connection.execute(_DROP_IDS, {"ids": list(dropped), "why": why, "now": now_ms})
    if deferred:
        connection.execute(_DEFER, {"ids": list(deferred), "at": now_ms + DEFER_MILLISECONDS})
    return [row for row in found if row["id"] not in dropped | deferred]


def drop_superseded(connection: Connection, destination: str, ids: Sequence[int], now_ms: int) -> None:
    """Drop what a destination needs no more: other objects of the SOP instance UIDs that it has accepted.

    Args:
        connection: Of the transaction that says what was delivered, after it has been said.
        destination: Whose deliveries they are.
        ids: Those deliveries.
        now_ms: The time, in Unix milliseconds.
    """
    for number, uid, syntax in connection.execute(_DELIVERED_WITH_VARIANTS, {"ids": list(ids)}).all():
        why = f"instance {number} of its SOP instance UID, in transfer syntax {syntax}, was delivered instead"
        parameters = {"of": destination, "uid": uid, "delivered": number, "why": why, "now": now_ms}
        connection.execute(_DROP_OTHERS, parameters)
