"""Notes about transfers, for the audit trail: what workers add to the transactions that record transfers.

A persist or forward worker adds one note to each of its transactions that records transfers. Note and rows
become durable together, so no transfer is forgotten, and a rolled back one is not reported.
`ingest.ledger.transfers` makes groups of the notes.

Notes hold AE titles, addresses and UIDs, and no other attribute of a data set.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from sqlalchemy import BindParameter, Connection, bindparam, func, insert, select

from ingest.ledger.records import DeliveryResult, DeliveryState, NewInstance
from ingest.ledger.row_values import clean_value
from ingest.ledger.schema import audit_notes, deliveries, instances

RECEIVED: Final = "received"
SENT: Final = "sent"

_IDS: Final[BindParameter[Any]] = bindparam("ids", expanding=True)
_ADD: Final = insert(audit_notes).values(at=bindparam("at"), body=bindparam("body"))
# The condition on `updated_at` leaves out deliveries whose lease another worker took over and finished.
_FINISHED: Final = (
    select(
        instances.c.study_uid,
        instances.c.sop_class_uid,
        deliveries.c.state,
        func.count(),
    )
    .join(instances, instances.c.id == deliveries.c.instance_id)
    .where(
        deliveries.c.id.in_(_IDS),
        deliveries.c.state.in_((DeliveryState.DELIVERED.value, DeliveryState.DEAD.value)),
        deliveries.c.updated_at == bindparam("now"),
    )
    .group_by(instances.c.study_uid, instances.c.sop_class_uid, deliveries.c.state)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferKey:
    """What the instances of one audit message have in common.

    Attributes:
        direction: RECEIVED or SENT.
        study_uid: Study Instance UID; empty if it could not be read.
        is_failed: Whether the transfers failed: refused with a status, or dead.
        change: What it did to the instances that the receiver held: "C" for none, "R" for nothing, "U" for
            replaced ones.
        calling_ae, called_ae, source: Of the association that received them, as in `instances`. For sent
            ones, the AE titles that were passed through from the sender; otherwise empty.
        destination: Name of the destination that they were sent to.
    """

    direction: str
    study_uid: str
    is_failed: bool = False
    change: str = "C"
    calling_ae: str = ""
    called_ae: str = ""
    source: str = ""
    destination: str = ""


@dataclass(slots=True)
class MergedTransfers:
    """Numbers and times of transfers with one key.

    Attributes:
        classes: Number of instances of each SOP class.
        first_at: Time of the first transfer, in Unix milliseconds.
        last_at: Time of the last transfer.
    """

    classes: dict[str, int] = field(default_factory=dict)
    first_at: int = 0
    last_at: int = 0

    def add_one(self, sop_class_uid: str, at: int) -> None:
        """Add the transfer of one instance."""
        self.classes[sop_class_uid] = self.classes.get(sop_class_uid, 0) + 1
        if not self.first_at or at < self.first_at:
            self.first_at = at
        self.last_at = max(self.last_at, at)

    def add(self, classes: Mapping[str, int], first_at: int, last_at: int) -> None:
        """Add transfers."""
        for uid, count in classes.items():
            self.classes[uid] = self.classes.get(uid, 0) + count
        self.first_at = min(self.first_at or first_at, first_at)
        self.last_at = max(self.last_at, last_at)


def note_received(connection: Connection, rows: Iterable[NewInstance], *, is_known: bool = False) -> None:
    """Note received instances, within the transaction that records them.

    Args:
        connection: The transaction.
        rows: The rows of the instances.
        is_known: Whether the store had them already.
    """
    # One association sends many instances of one study, so the key is made once for all of them.
    groups: dict[tuple[object, ...], tuple[NewInstance, MergedTransfers]] = {}
    for row in rows:
        identity = (
            row.study_uid,
            row.refused_status,
            row.replaces,
            row.calling_ae,
            row.called_ae,
            row.source,
        )
        group = groups.get(identity)
        if group is None:
            group = groups[identity] = (row, MergedTransfers())
        group[1].add_one(row.sop_class_uid, row.received_at)
    merged: dict[TransferKey, MergedTransfers] = {}
    for row, transfers in groups.values():
        key = TransferKey(
            direction=RECEIVED,
            study_uid=clean_value(row.study_uid),
            is_failed=bool(row.refused_status),
            change="R" if is_known else "U" if row.replaces else "C",
            calling_ae=row.calling_ae,
            called_ae=row.called_ae,
            source=row.source,
        )
        merged.setdefault(key, MergedTransfers()).add(
            transfers.classes, transfers.first_at, transfers.last_at
        )
    _add_note(connection, merged)


def note_sent(
    connection: Connection, results: Sequence[DeliveryResult], destination: str, unix_ms: int
) -> None:
    """Note delivered and dead deliveries, within the transaction that records the results."""
    ended = {DeliveryState.DELIVERED, DeliveryState.DEAD}
    by_titles: dict[tuple[str, str], list[int]] = {}
    for result in results:
        if result.state in ended:
            by_titles.setdefault((result.calling_ae, result.called_ae), []).append(result.id)
    merged: dict[TransferKey, MergedTransfers] = {}
    for (calling_ae, called_ae), ids in by_titles.items():
        found = connection.execute(_FINISHED, {"ids": ids, "now": unix_ms})
        for study_uid, sop_class_uid, state, count in found:
            key = TransferKey(
                direction=SENT,
                study_uid=study_uid,
                is_failed=state == DeliveryState.DEAD.value,
                # PS3.15 Table A.5.3.7-1: a sender that does not know the contents of the receiver writes R.
                change="R",
                calling_ae=calling_ae,
                called_ae=called_ae,
                destination=destination,
            )
            merged.setdefault(key, MergedTransfers()).add({sop_class_uid: count}, unix_ms, unix_ms)
    _add_note(connection, merged)


def _add_note(connection: Connection, merged: Mapping[TransferKey, MergedTransfers]) -> None:
    if not merged:
        return
    body = [[asdict(key), group.classes, group.first_at, group.last_at] for key, group in merged.items()]
    at = max(group.last_at for group in merged.values())
    connection.execute(_ADD, {"at": at, "body": encode_json(body)})


def encode_json(value: object) -> str:
    """Write a value as compact JSON, always in the same order."""
    # ASCII: PostgreSQL refuses NUL and lone surrogates in a text, and peers choose AE titles and UIDs.
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
