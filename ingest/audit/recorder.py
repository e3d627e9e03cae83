"""Recording audit events: functions for the supervisor, the listeners, the console and the monitor.

Every function builds a message and puts it into the queue of the node; the monitor sends it. A function does
nothing if the configuration has no `[audit]`, or if `[audit] events` does not name the kind. It writes a file
and waits for the disk, so an event loop calls it in another thread.

A full queue or a failing disk raises no exception, because the action of a person must not fail for want of
its record. An alarm then tells of the lost message.
"""

import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Final, Self
from urllib.parse import quote

from ingest.alarms import Severity, clear_alarm, raise_alarm
from ingest.audit import messages
from ingest.audit.messages import (
    AuditMessage,
    AuditSource,
    Code,
    EventKind,
    EventOutcome,
    Participant,
    StudyObject,
)
from ingest.audit.queue import AuditQueue, make_name, open_queue
from ingest.audit.syslog import encode_syslog
from ingest.clock import unix_ms
from ingest.config.model import AuditSettings, Config
from ingest.log import RateLimitedLog

QUEUE_FULL: Final = "audit_queue_full"
"""Alarm: audit messages are dropped, because the queue is full or cannot be written."""

_log: Final = RateLimitedLog()


class Action(Enum):
    """Actions of a person that are recorded. The value is the text of the record.

    An action on instances of known studies becomes DICOM Instances Accessed, with the EventActionCode of
    `_ACCESS`. Any other action becomes an informative Security Alert with the EventTypeCode of `_ALERTS`.
    """

    VIEW = "view study"
    DOWNLOAD = "download file"
    RELEASE = "release from quarantine"
    DROP_QUARANTINED = "drop from quarantine"
    RETRY = "retry deliveries"
    RELEASE_DELIVERIES = "release held deliveries"
    DROP = "drop deliveries"
    PAUSE = "pause destination"
    RESUME = "resume destination"
    RELOAD = "reload configuration"
    CHANGE_USERS = "change users"
    CHANGE_ROLES = "change roles"
    CHANGE_TOKENS = "change API tokens"
    OTHER = "use a restricted function"


_ACCESS: Final = {
    Action.VIEW: "R",
    Action.DOWNLOAD: "R",
    Action.RELEASE: "U",
    Action.DROP_QUARANTINED: "D",
}
_ALERTS: Final = {
    Action.RELOAD: messages.SECURITY_CONFIGURATION,
    Action.CHANGE_USERS: messages.USER_ATTRIBUTES_CHANGED,
    Action.CHANGE_ROLES: messages.ROLES_CHANGED,
    Action.CHANGE_TOKENS: messages.USER_ATTRIBUTES_CHANGED,
}


class AuditTrail:
    """The audit trail of one node: its identity in messages, and its queue.

    Attributes:
        source: AuditSourceIdentification.
        queue: The queue.
        settings: `[audit]`.
        hostname: Name of this machine.
        process_id: Id of this process. Open a trail after the fork.
    """

    def __init__(self, config: Config, settings: AuditSettings) -> None:
        """Prepare; nothing is created before the first message."""
        self.settings = settings
        self.hostname = socket.gethostname()
        self.source = AuditSource(
            settings.source_id or config.node.name or self.hostname, settings.enterprise_site
        )
        self.queue: AuditQueue = open_queue(config)
        self.process_id = os.getpid()
        self._ae_title = config.node.ae_title
        self._run_dir: Path = config.run_dir

    @classmethod
    def open(cls, config: Config) -> Self | None:
        """Return the audit trail of a node; None without `[audit]`."""
        return cls(config, config.audit) if config.audit is not None else None

    def wants(self, kind: EventKind) -> bool:
        """Return whether messages of this kind are written."""
        return kind.value in self.settings.events

    def node(self, *, is_requestor: bool = False, ae_title: str = "") -> Participant:
        """Return this node as a participant: its name in the configuration, and its AE title."""
        return Participant(
            self.source.source_id,
            is_requestor,
            (ae_title or self._ae_title,),
            name="dicom-ingest",
            # PS3.15 A.5.2.4: the same name or address in all messages of a node
            address=self.hostname,
        )

    def process(self) -> Participant:
        """Return this process as a participant: its id stands in the log too (PS3.15 A.5.2.1)."""
        return replace(self.node(), user_id=str(self.process_id))

    def write(self, message: AuditMessage, name: str = "") -> bool:
        """Put a message into the queue; return False if it is lost.

        Args:
            message: The message.
            name: As in `put`.
        """
        try:
            return self.put(message, name)
        except OSError as error:
            self.queue.note_dropped()
            cause = f"data_dir/audit cannot be written: {error.strerror}"
            self._report_loss(cause, "make room, or see to the disk and to the owner of the folder")
            return False

    def put(self, message: AuditMessage, name: str = "") -> bool:
        """Put a message into the queue; return False if the queue is full, so that the message is lost.

        Args:
            message: The message.
            name: Name of its file, for an event that may be reported twice after a crash.

        Raises:
            OSError: The disk is full or failing. The caller may try again.
        """
        if not self.wants(message.kind):
            return True
        data = encode_syslog(message, self.hostname, self.process_id)
        if self.queue.put(name or make_name(message.at_ms), data):
            return True
        remedy = "see `ingest audit status`; let the repository be reached, or raise queue_max_bytes"
        self._report_loss("the queue is full: the repository was away for too long", remedy)
        return False

    def report_room(self) -> None:
        """Record how many messages were dropped, and clear the alarm, once the queue has room again."""
        if not self.queue.read_usage().dropped_now:
            clear_alarm(self._run_dir, QUEUE_FULL)
            return
        dropped = self.queue.take_dropped_now()
        if not dropped:
            return
        description = f"audit messages are recorded again; {dropped} were dropped"
        alert = self._build_recording_alert(messages.RECORDING_STARTED, EventOutcome.SUCCESS, description)
        self.write(alert)
        clear_alarm(self._run_dir, QUEUE_FULL)

    def _report_loss(self, cause: str, remedy: str) -> None:
        _log.warning("audit_message_dropped", cause=cause, remedy=remedy)
        is_first = self.queue.read_usage().dropped_now == 1
        raise_alarm(
            self._run_dir,
            QUEUE_FULL,
            f"audit messages are dropped: {cause}",
            remedy,
            severity=Severity.DEGRADED,
        )
        if is_first:
            alert = self._build_recording_alert(
                messages.RECORDING_STOPPED, EventOutcome.MAJOR_FAILURE, f"audit messages are dropped: {cause}"
            )
            data = encode_syslog(alert, self.hostname, self.process_id)
            try:
                self.queue.put(make_name(alert.at_ms), data, uses_reserve=True)
            except OSError as error:
                _log.warning("audit_message_dropped", cause=error.strerror, remedy=remedy)

    def _build_recording_alert(self, alert: Code, outcome: EventOutcome, description: str) -> AuditMessage:
        return messages.build_security_alert(
            self.source,
            unix_ms(),
            [self.process()],
            alert=alert,
            outcome=outcome,
            subject_type=messages.NODE_ID,
            subject=self.source.source_id,
            description=description,
        )


def record_application(config: Config, *, started: bool) -> bool:
    """Record that this process, a supervisor, has started or is stopping its node.

    Returns:
        Whether the message is in the queue, or not wanted. The other functions return the same.
    """
    trail = AuditTrail.open(config)
    if trail is None or not trail.wants(EventKind.APPLICATION):
        return True
    return trail.write(
        messages.build_application_activity(trail.source, unix_ms(), trail.process(), started=started)
    )


def record_user_login(
    config: Config, user: str, address: str, *, succeeded: bool = True, description: str = ""
) -> bool:
    """Record that a person logged in to the console, or tried to.

    Args:
        config: The configuration.
        user: Name that the person gave. Never a password or token.
        address: IP address of the browser.
        succeeded: Whether the person is logged in now.
        description: How, or why not: "password", "OIDC", "wrong password".
    """
    outcome = EventOutcome.SUCCESS if succeeded else EventOutcome.MINOR_FAILURE
    return _record_authentication(config, user, address, outcome, description, is_login=True)


def record_user_logout(config: Config, user: str, address: str, *, description: str = "") -> bool:
    """Record that a person logged out of the console, or was logged out.

    Args:
        config: The configuration.
        user: Name of the user.
        address: IP address of the browser.
        description: Why, if the person did not ask for it: "session timeout".
    """
    return _record_authentication(
        config, user, address, EventOutcome.SUCCESS, description, is_login=False, is_requested=not description
    )


def record_query(config: Config, user: str, address: str, *, subject: str, query: str) -> bool:
    """Record a search in the console or its API.

    Args:
        config: The configuration.
        user: Name of the user.
        address: IP address of the browser.
        subject: What was searched: "studies", "instances", "deliveries".
        query: The criteria, as JSON. They may contain patient data.
    """
    trail = AuditTrail.open(config)
    if trail is None or not trail.wants(EventKind.QUERY):
        return True
    message = messages.build_query(
        trail.source,
        unix_ms(),
        Participant(user, is_requestor=True, address=address),
        trail.process(),
        subject=quote(subject),
        query=query.encode("utf-8", "replace"),
    )
    return trail.write(message)


def record_action(
    config: Config,
    user: str,
    address: str,
    action: Action,
    *,
    target: str = "",
    description: str = "",
    succeeded: bool = True,
    studies: Sequence[StudyObject] = (),
) -> bool:
    """Record what a person did in the console or through its API.

    Args:
        config: The configuration.
        user: Name of the user.
        address: IP address of the browser.
        action: The action.
        target: What it was done to, such as "destination/PACS" or "user/anna"; no patient data.
        description: More about it, for people; no patient data.
        succeeded: Whether it was done.
        studies: Studies that were read or changed. There is one message for each, and it names the patient.
    """
    trail = AuditTrail.open(config)
    if trail is None or not trail.wants(EventKind.ACTION):
        return True
    at_ms = unix_ms()
    person = Participant(user, is_requestor=True, address=address)
    outcome = EventOutcome.SUCCESS if succeeded else EventOutcome.MINOR_FAILURE
    said = ": ".join(part for part in (action.value, target, description) if part)
    if not studies:
        return trail.write(
            messages.build_security_alert(
                trail.source,
                at_ms,
                [person, trail.process()],
                alert=_ALERTS.get(action, messages.RESTRICTED_FUNCTION),
                outcome=outcome,
                subject_type=messages.RESOURCE_URI,
                subject=f"dicom-ingest:{quote(target or 'node')}",
                description=said,
                kind=EventKind.ACTION,
            )
        )
    written = [
        trail.write(
            messages.build_instances_accessed(
                trail.source,
                at_ms,
                [person, trail.process()],
                study,
                action=_ACCESS.get(action, "U"),
                outcome=outcome,
                description=said,
            )
        )
        for study in studies
    ]
    return all(written)


def _record_authentication(
    config: Config,
    user: str,
    address: str,
    outcome: EventOutcome,
    description: str,
    *,
    is_login: bool,
    is_requested: bool = True,
) -> bool:
    trail = AuditTrail.open(config)
    if trail is None or not trail.wants(EventKind.LOGIN):
        return True
    message = messages.build_user_authentication(
        trail.source,
        unix_ms(),
        Participant(user, is_requestor=is_requested, address=address),
        # PS3.15 A.5.3.12, note: for a logout by a timer the node is the requestor
        replace(trail.process(), is_requestor=not is_requested),
        is_login=is_login,
        outcome=outcome,
        description=description,
    )
    return trail.write(message)
