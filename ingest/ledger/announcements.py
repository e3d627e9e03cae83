"""Events of the router for webhooks, inserted in the transaction that records their cause.

Neither exists without the other: no event is lost if a worker dies, and none tells of a change that was
rolled back. A ledger without an announcer makes no events and no query more.

An event is a CloudEvent 1.0 in its JSON format. Its data hold UIDs, AE titles, states and times, and nothing
else of a data set (INVARIANT 9). docs/reference/webhooks.md documents the fields, and receivers rely on them.
"""

import json
import socket
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import BindParameter, Connection, bindparam, select

from ingest.config.model import Config, WebhookSettings
from ingest.ledger.outbox import NewEvent, insert_events
from ingest.ledger.records import DeliveryState, InstanceState, NewInstance
from ingest.ledger.row_values import clean_value
from ingest.ledger.schema import deliveries, instances

TARGET_PREFIX: Final = "webhooks."
TYPE_PREFIX: Final = "dicom_ingest."
SPEC_VERSION: Final = "1.0"


class EventKind(StrEnum):
    """What has happened. The type of the CloudEvent is this with `TYPE_PREFIX` before it."""

    INSTANCE_STORED = "instance.stored"
    INSTANCE_QUARANTINED = "instance.quarantined"
    STUDY_COMPLETE = "study.complete"
    DELIVERY_DELIVERED = "delivery.delivered"
    DELIVERY_DEAD = "delivery.dead"
    TEST = "test"


_OF_INSTANCES: Final = {
    InstanceState.STORED: EventKind.INSTANCE_STORED,
    InstanceState.VARIANT: EventKind.INSTANCE_STORED,
    InstanceState.QUARANTINED: EventKind.INSTANCE_QUARANTINED,
}
_OF_DELIVERIES: Final = {
    DeliveryState.DELIVERED.value: EventKind.DELIVERY_DELIVERED,
    DeliveryState.DEAD.value: EventKind.DELIVERY_DEAD,
}
_IDS: Final[BindParameter[Any]] = bindparam("ids", expanding=True)
# The condition on `updated_at` leaves out deliveries whose lease another worker took over and finished.
_ENDED: Final = (
    select(
        deliveries.c.state,
        deliveries.c.member,
        deliveries.c.attempts,
        deliveries.c.last_status,
        instances.c.study_uid,
        instances.c.series_uid,
        instances.c.sop_instance_uid,
        instances.c.sop_class_uid,
        instances.c.calling_ae,
        instances.c.called_ae,
    )
    .join(instances, instances.c.id == deliveries.c.instance_id)
    .where(
        deliveries.c.id.in_(_IDS),
        deliveries.c.destination == bindparam("of"),
        deliveries.c.state.in_(bindparam("states", expanding=True)),
        deliveries.c.updated_at == bindparam("now"),
    )
    .order_by(deliveries.c.id)
)


@dataclass(frozen=True, slots=True)
class Subscription:
    """What one webhook wants to hear of.

    Attributes:
        target: The receiver in the outbox.
        kinds: The events.
        destinations: Patterns of names; deliveries to other destinations are left out.
    """

    target: str
    kinds: frozenset[EventKind]
    destinations: tuple[str, ...] = ("*",)

    def wants(self, kind: EventKind, destination: str | None) -> bool:
        """Return whether an event is sent; `destination` is that of a delivery, otherwise None."""
        return kind in self.kinds and (
            destination is None or any(fnmatchcase(destination, pattern) for pattern in self.destinations)
        )


class Announcer:
    """Makes the events of the changes that a worker records."""

    def __init__(self, source: str, subscriptions: Sequence[Subscription]) -> None:
        """Prepare.

        Args:
            source: `source` of the events, which names the node.
            subscriptions: Those of all webhooks.
        """
        self._source = source
        self._subscriptions = tuple(subscriptions)

    def announce_instances(self, connection: Connection, rows: Iterable[NewInstance]) -> None:
        """Insert events of instances, within the transaction that records them."""
        events = []
        for row in rows:
            kind = _OF_INSTANCES.get(row.state)
            if kind is None or not self._is_wanted(kind, None):
                continue
            data: dict[str, Any] = {
                "study_uid": clean_value(row.study_uid),
                "series_uid": clean_value(row.series_uid),
                "sop_instance_uid": clean_value(row.sop_instance_uid),
                "sop_class_uid": clean_value(row.sop_class_uid),
                "transfer_syntax_uid": clean_value(row.transfer_syntax_uid),
                "size": row.size,
                "calling_ae": clean_value(row.calling_ae),
                "called_ae": clean_value(row.called_ae),
                "received_at": format_time(row.received_at),
                "destinations": list(row.destinations),
            }
            if row.refused_status:
                data["status"] = format_status(row.refused_status)
            events += self._make(kind, data, row.stored_at, None, subject=data["sop_instance_uid"])
        insert_events(connection, events)

    def announce_deliveries(
        self, connection: Connection, ids: Sequence[int], destination: str, unix_ms: int
    ) -> None:
        """Insert events of deliveries that have ended, within the transaction that records it.

        Args:
            connection: The transaction.
            ids: Deliveries that it has changed.
            destination: Their destination. Those of others are left out.
            unix_ms: Their new `updated_at`.
        """
        states = [state for state, kind in _OF_DELIVERIES.items() if self._is_wanted(kind, destination)]
        if not states or not ids:
            return
        events = []
        found = connection.execute(
            _ENDED, {"ids": list(ids), "of": destination, "states": states, "now": unix_ms}
        )
        for row in found.mappings():
            data = {
                "destination": destination,
                "member": row["member"],
                "study_uid": row["study_uid"],
                "series_uid": row["series_uid"],
                "sop_instance_uid": row["sop_instance_uid"],
                "sop_class_uid": row["sop_class_uid"],
                "calling_ae": row["calling_ae"],
                "called_ae": row["called_ae"],
                "attempts": row["attempts"],
                # INVARIANT 9: the error text may repeat what the remote said of the patient.
                "status": None if row["last_status"] is None else format_status(row["last_status"]),
            }
            kind, subject = _OF_DELIVERIES[row["state"]], row["sop_instance_uid"]
            events += self._make(kind, data, unix_ms, destination, subject=subject)
        insert_events(connection, events)

    def announce_completion(self, connection: Connection, completion: Mapping[str, Any]) -> None:
        """Insert the event of a complete study, within the transaction that completes it.

        Args:
            connection: The transaction.
            completion: The new row of `completions`.
        """
        if completion["series_uid"] or not self._is_wanted(EventKind.STUDY_COMPLETE, None):
            return
        data = {
            "study_uid": completion["study_uid"],
            "generation": completion["generation"],
            "instances": completion["instances"],
            "first_at": format_time(completion["first_at"]),
            "last_at": format_time(completion["last_at"]),
        }
        kind, subject = EventKind.STUDY_COMPLETE, data["study_uid"]
        insert_events(connection, self._make(kind, data, completion["at"], None, subject=subject))

    def _is_wanted(self, kind: EventKind, destination: str | None) -> bool:
        return any(each.wants(kind, destination) for each in self._subscriptions)

    def _make(
        self,
        kind: EventKind,
        data: Mapping[str, Any],
        unix_ms: int,
        destination: str | None,
        *,
        subject: str,
    ) -> list[NewEvent]:
        return [
            make_event(each.target, kind, self._source, data, subject=subject, unix_ms=unix_ms)
            for each in self._subscriptions
            if each.wants(kind, destination)
        ]


def build_announcer(config: Config) -> Announcer | None:
    """Return the announcer that a configuration asks for; None without webhooks."""
    if not config.webhooks:
        return None
    return Announcer(
        name_source(config),
        [
            Subscription(target_of(webhook), frozenset(map(EventKind, webhook.events)), webhook.destinations)
            for webhook in config.webhooks
        ],
    )


def target_of(webhook: WebhookSettings) -> str:
    """Return the name of a webhook as a target of the outbox."""
    return f"{TARGET_PREFIX}{webhook.name}"


def name_source(config: Config) -> str:
    """Return `source` of the events of a node: a URI reference with its host and its name."""
    name = config.node.name or config.node.ae_title
    return f"/dicom-ingest/{quote(socket.gethostname(), safe='')}/{quote(name, safe='')}"


def make_event(
    target: str, kind: EventKind, source: str, data: Mapping[str, Any], *, subject: str, unix_ms: int
) -> NewEvent:
    """Return a CloudEvent for a target of the outbox."""
    event_id = str(uuid.uuid4())
    values = {
        "specversion": SPEC_VERSION,
        "id": event_id,
        "source": source,
        "type": f"{TYPE_PREFIX}{kind.value}",
        "subject": subject,
        "time": format_time(unix_ms),
        "datacontenttype": "application/json",
        "data": data,
    }
    if not subject:  # CloudEvents 1.0: if present, it is not empty
        del values["subject"]
    return NewEvent(event_id, target, json.dumps(values, ensure_ascii=False), unix_ms)


def format_time(unix_ms: int) -> str:
    """Write Unix milliseconds as RFC 3339 in UTC."""
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds")


def format_status(status: int) -> str:
    """Write a DIMSE status (PS3.7 Annex C) as four hexadecimal digits."""
    return f"{status:04X}"
