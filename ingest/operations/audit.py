"""The audit trail for a person: what waits in the queue, a test message, and records of commands."""

import contextlib
import getpass
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from ingest.audit import Action, AuditTrail, messages, record_action
from ingest.audit.messages import EventOutcome, Participant
from ingest.audit.queue import read_time_of
from ingest.audit.sender_state import read_sender_state
from ingest.audit.syslog import encode_syslog
from ingest.clock import unix_ms
from ingest.config.model import Config
from ingest.errors import AssociationError, ConfigError, IngestError, LedgerError
from ingest.ledger import Ledger
from ingest.operations.times import format_iso_time
from ingest.requestor.audit_repository import connect_to_repository

ANSWER_SECONDS: Final = 10.0
"""Deadline for the acknowledgement of a test message."""

SETTLE_SECONDS: Final = 1.0
"""Time that the connection must stand after that: a repository may refuse our certificate late."""

_TIMES: Final = ("oldest_at", "sent_at", "failing_since")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditStatus:
    """The state of the audit trail. Times are Unix milliseconds; 0 means never.

    Attributes:
        repository: Host, port and protocol of the repository.
        waiting: Messages in the queue.
        waiting_bytes: Their bytes on the disk.
        max_bytes: `[audit] queue_max_bytes`.
        oldest_at: Time of the event of the oldest message.
        unreported: Groups of transfers in the ledger that have no message yet; None while the ledger is away.
        dropped: Messages that were dropped since the node was set up.
        is_dropping: Whether messages were dropped since the queue last had room.
        sent: Messages that were sent since the node was set up.
        sent_at: When the repository last took messages.
        failing_since: Since when the repository takes no messages.
        error: Why it takes none.
    """

    repository: str
    waiting: int
    waiting_bytes: int
    max_bytes: int
    oldest_at: int
    unreported: int | None
    dropped: int
    is_dropping: bool
    sent: int
    sent_at: int
    failing_since: int
    error: str

    @property
    def is_well(self) -> bool:
        """Whether the repository takes messages, and none is dropped."""
        return not self.failing_since and not self.is_dropping

    def to_json(self) -> dict[str, Any]:
        """Return the values for JSON."""
        return asdict(self) | {name: format_iso_time(getattr(self, name)) for name in _TIMES}


def read_audit_status(config: Config) -> AuditStatus:
    """Return the state of the audit trail.

    Raises:
        ConfigError: The configuration has no `[audit]`.
    """
    trail = _require_trail(config)
    names = trail.queue.list_names()
    usage, sender = trail.queue.read_usage(), read_sender_state(trail.queue.folder)
    return AuditStatus(
        repository=_describe_repository(trail),
        waiting=len(names),
        waiting_bytes=usage.bytes,
        max_bytes=trail.queue.max_bytes,
        oldest_at=read_time_of(names[0]) if names else 0,
        unreported=_count_unreported(config),
        dropped=usage.dropped,
        is_dropping=bool(usage.dropped_now),
        sent=sender.sent,
        sent_at=sender.sent_at,
        failing_since=sender.failing_since,
        error=sender.error,
    )


def send_test_message(config: Config, person: str = "", address: str = "") -> str:
    """Send a Security Alert (outcome 0, informative) that says it is a test, past the queue.

    Args:
        config: The configuration.
        person: Name of the person; empty for that of the login on this host.
        address: Address of the person; empty for this host.

    Returns:
        The repository, for people.

    Raises:
        AssociationError: The repository does not take it.
        ConfigError: There is no `[audit]`, or a file of its `[tls.NAME]` cannot be used.
    """
    trail = _require_trail(config)
    message = messages.build_security_alert(
        trail.source,
        unix_ms(),
        [
            Participant(person or _name_person(), is_requestor=True, address=address or trail.hostname),
            trail.process(),
        ],
        alert=messages.RESTRICTED_FUNCTION,
        outcome=EventOutcome.SUCCESS,
        subject_type=messages.NODE_ID,
        subject=trail.source.source_id,
        description="this is a test of the audit trail",
    )
    connection = connect_to_repository(config, trail.settings)
    with contextlib.closing(connection):
        connection.send(encode_syslog(message, trail.hostname, trail.process_id))
        deadline = time.monotonic() + ANSWER_SECONDS
        while not connection.is_acknowledged():
            connection.require_open()
            if time.monotonic() > deadline:
                raise AssociationError(f"{_describe_repository(trail)} does not acknowledge what was sent")
            time.sleep(0.05)
        settled_at = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < settled_at:
            connection.require_open()
            time.sleep(0.05)
    return _describe_repository(trail)


@contextlib.contextmanager
def recorded_change(config: Config, action: Action, target: str, description: str = "") -> Iterator[None]:
    """Record the change that a command makes within the context, as done or as failed.

    Args:
        config: The configuration; without `[audit]` nothing is recorded.
        action: The action.
        target: What is changed, such as "user/anna"; no patient data.
        description: More about it, for people; no patient data and no secrets.
    """
    person, host = _name_person(), socket.gethostname()
    try:
        yield
    except IngestError:
        record_action(config, person, host, action, target=target, description=description, succeeded=False)
        raise
    record_action(config, person, host, action, target=target, description=description)


def _name_person() -> str:
    """Return the login name; in a container the user may have none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # KeyError before Python 3.13
        return f"uid-{os.getuid()}"


def _require_trail(config: Config) -> AuditTrail:
    trail = AuditTrail.open(config)
    if trail is None:
        raise ConfigError(["audit: there is no [audit], so no messages are written; docs/how-to/audit.md"])
    return trail


def _describe_repository(trail: AuditTrail) -> str:
    settings = trail.settings
    return f"{settings.host}:{settings.port} ({'UDP' if settings.tls is False else 'TLS'})"


def _count_unreported(config: Config) -> int | None:
    with contextlib.suppress(LedgerError), contextlib.closing(Ledger(config.ledger_url)) as ledger:
        return sum(ledger.transfers.count_pending())
    return None
