"""The reporter of transfers: makes audit messages of the notes that workers leave in the ledger.

A group leaves the ledger only after its message is durable in the queue. The file of a message has a name
that follows from its group. A group that is reported again after a crash therefore adds no second message,
unless the first one has been sent meanwhile.
"""

import hashlib
import secrets
import socket
from collections.abc import Mapping
from typing import Final

from ingest.audit import AuditTrail, StudyObject, messages
from ingest.audit.messages import AuditMessage, EventOutcome, Participant, TransferAction
from ingest.audit.study_objects import describe_study
from ingest.config.model import Config, Destination
from ingest.ledger import Ledger
from ingest.ledger.transfer_notes import RECEIVED, SENT
from ingest.ledger.transfers import TransferGroup

OPEN_MAX_MS: Final = 3_600_000
"""A group that is never idle is reported after this time, and then begins anew."""

LEASE_MS: Final = 30_000
REPORTED_AT_ONCE: Final = 200
"""Maximum number of groups that one turn reports."""

_REFUSED: Final = "refused with a status of failure, and a copy is in quarantine"
_DEAD: Final = "not delivered; the node does not try again by itself"


class TransferReporter:
    """Reports the transfers of one ledger. `run` is one turn."""

    def __init__(self, config: Config, ledger: Ledger, trail: AuditTrail) -> None:
        """Prepare."""
        self._config = config
        self._ledger = ledger
        self._trail = trail
        # A group without a note for this long has ended: its association ended, or sends another study.
        self._idle_ms = round(trail.settings.idle_seconds * 1000)
        self._destinations: Mapping[str, Destination] = {each.name: each for each in config.destinations}
        self._node_title = config.node.ae_title
        self._owner = f"{socket.gethostname()}-{secrets.token_hex(6)}"
        self._lease_until = 0

    def run(self) -> None:
        """Merge notes into groups, and report groups that have begun or ended.

        Raises:
            LedgerError: The ledger is away.
            OSError: The queue cannot be written. What was not reported stays in the ledger.
        """
        transfers = self._ledger.transfers
        if not any(transfers.count_pending()):
            return  # an idle node writes nothing
        now = self._ledger.unix_ms()
        if not self._hold_lease(now):
            return
        while transfers.merge_notes(self._owner, now):
            if not self._hold_lease(self._ledger.unix_ms()):
                return
        self._report_begun()
        self._report_ended(now)

    def close(self) -> None:
        """Let the monitor of another host go on at once. Groups that have not ended stay in the ledger."""
        if self._lease_until:
            self._ledger.transfers.end_lease(self._owner)
            self._lease_until = 0

    def _hold_lease(self, now: int) -> bool:
        if now < self._lease_until - LEASE_MS // 2:
            return True
        self._lease_until = 0
        if self._ledger.transfers.hold_lease(self._owner, now, now + LEASE_MS):
            self._lease_until = now + LEASE_MS
        return bool(self._lease_until)

    def _report_begun(self) -> None:
        """Report that the node began to send. What it receives, the sender reports."""
        groups = self._ledger.transfers.list_unbegun(REPORTED_AT_ONCE)
        for group in groups:
            if group.key.direction == SENT and not group.key.is_failed:
                sender, receiver = self._ends(group)
                study = self._describe_study(group, with_classes=False)
                message = messages.build_begin_transferring(
                    self._trail.source, group.first_at, sender, receiver, study
                )
                self._trail.put(message, _make_file_name(group, group.first_at, "begin"))
        self._ledger.transfers.mark_begun([group.id for group in groups])

    def _report_ended(self, now: int) -> None:
        groups = self._ledger.transfers.list_ended(now, self._idle_ms, OPEN_MAX_MS, REPORTED_AT_ONCE)
        for group in groups:
            self._trail.put(self._build_transferred(group), _make_file_name(group, group.last_at, "end"))
        # Only now: the messages are durable, or they were dropped by a full queue and counted.
        self._ledger.transfers.delete_reported(groups)

    def _build_transferred(self, group: TransferGroup) -> AuditMessage:
        sender, receiver = self._ends(group)
        key = group.key
        description = ""
        if key.is_failed:
            description = _REFUSED if key.direction == RECEIVED else _DEAD
        return messages.build_instances_transferred(
            self._trail.source,
            group.last_at,
            sender,
            receiver,
            self._describe_study(group, with_classes=True),
            action=TransferAction(key.change),
            outcome=EventOutcome.SERIOUS_FAILURE if key.is_failed else EventOutcome.SUCCESS,
            description=description,
        )

    def _ends(self, group: TransferGroup) -> tuple[Participant, Participant]:
        """Return the sender and the receiver."""
        key = group.key
        if key.direction == RECEIVED:
            host = key.source.rpartition("//")[2].rpartition(":")[0].strip("[]")
            caller = Participant(key.calling_ae, is_requestor=True, ae_titles=(key.calling_ae,), address=host)
            return caller, self._trail.node(ae_title=key.called_ae)
        destination = self._destinations.get(key.destination)
        if destination is None:  # it was removed from the configuration meanwhile
            return self._trail.node(is_requestor=True), Participant(key.destination)
        called_title = key.called_ae or destination.ae_title
        remote = Participant(
            called_title,
            ae_titles=(called_title,),
            name=destination.name,
            address=destination.host,
        )
        own_title = key.calling_ae or destination.calling_ae_title or self._node_title
        return self._trail.node(is_requestor=True, ae_title=own_title), remote

    def _describe_study(self, group: TransferGroup, *, with_classes: bool) -> StudyObject:
        key = group.key
        destination = self._destinations.get(key.destination)
        is_encrypted = (
            key.source.startswith("dicom-tls:")
            if key.direction == RECEIVED
            else destination is not None and bool(destination.tls)
        )
        return describe_study(
            self._config,
            self._ledger,
            key.study_uid,
            sop_classes=group.sop_classes if with_classes else {},
            is_encrypted=is_encrypted,
        )


def _make_file_name(group: TransferGroup, at_ms: int, part: str) -> str:
    # SQLite uses the id of a deleted row again.
    digest = hashlib.sha256(repr(group.key).encode("utf-8", "replace")).hexdigest()[:12]
    return f"{at_ms:016d}-group-{group.id}-{digest}-{part}"
