"""Test webhooks, list their events, and send events again that were given up."""

import contextlib
import difflib
import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from ingest.clock import unix_ms
from ingest.config.model import Config, WebhookSettings
from ingest.errors import SendingError, UnknownWebhookError
from ingest.events.sending import send_event
from ingest.ledger import Ledger
from ingest.ledger.announcements import EventKind, make_event, name_source, target_of
from ingest.ledger.outbox import EventState, OutboxEvent
from ingest.operations.times import format_iso_time

WEBHOOK_FIELDS: Final = ("webhook", "receiver", "events", "waiting", "oldest_at", "dead", "last_error")
"""Fields of `ingest webhooks list`; docs/reference/lists.md describes them."""

EVENT_FIELDS: Final = (
    "event_id",
    "webhook",
    "type",
    "subject",
    "state",
    "attempts",
    "created_at",
    "updated_at",
    "last_error",
)
"""Fields of `ingest webhooks events`; docs/reference/lists.md describes them."""

STATES: Final = (EventState.WAITING, EventState.SENDING, EventState.DEAD)
"""States of the events of webhooks. An event that was sent has no row any more."""


@dataclass(frozen=True, slots=True)
class WebhookTest:
    """The result of a test of one webhook.

    Attributes:
        webhook: Name of the webhook.
        receiver: The server that was asked.
        event_id: Id of the test event.
        cause: Why the event was not accepted; empty if it was.
        remedy: The next step; empty if none is needed.
    """

    webhook: str
    receiver: str
    event_id: str
    cause: str = ""
    remedy: str = ""

    @property
    def is_sent(self) -> bool:
        """Whether the receiver accepted the event."""
        return not self.cause

    def to_json(self) -> dict[str, Any]:
        """Return the result as values for JSON."""
        return {
            "webhook": self.webhook,
            "receiver": self.receiver,
            "event_id": self.event_id,
            "sent": self.is_sent,
            "cause": self.cause,
            "remedy": self.remedy,
        }


@dataclass(frozen=True, slots=True)
class WebhookOverview:
    """A webhook with the events that wait or were given up.

    Attributes:
        webhook: Its settings.
        waiting: Number of events that wait.
        oldest_ms: When the oldest of them was created; 0 without one.
        dead: Number of events that were given up.
        last_error: Why the first waiting event, or else the newest dead one, was not accepted.
    """

    webhook: WebhookSettings
    waiting: int
    oldest_ms: int
    dead: int
    last_error: str

    def to_json(self) -> dict[str, Any]:
        """Return the overview as values for JSON."""
        return {
            "webhook": self.webhook.name,
            "receiver": name_receiver(self.webhook),
            "events": list(self.webhook.events),
            "waiting": self.waiting,
            "oldest_at": format_iso_time(self.oldest_ms),
            "dead": self.dead,
            "last_error": self.last_error,
        }


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """An event that waits or was given up."""

    webhook: str
    event: OutboxEvent

    @property
    def kind(self) -> str:
        """Type of the CloudEvent."""
        return str(json.loads(self.event.payload)["type"])

    @property
    def subject(self) -> str:
        """The UID that the event is about."""
        return str(json.loads(self.event.payload).get("subject", ""))

    def to_json(self) -> dict[str, Any]:
        """Return the event as values for JSON."""
        return {
            "event_id": self.event.event_id,
            "webhook": self.webhook,
            "type": self.kind,
            "subject": self.subject,
            "state": self.event.state.value,
            "attempts": self.event.attempts,
            "created_at": format_iso_time(self.event.created_at),
            "updated_at": format_iso_time(self.event.updated_at),
            "last_error": self.event.last_error,
        }


def send_test_events(config: Config, name: str | None) -> list[WebhookTest]:
    """Send a test event to one webhook, or to all, at once and without the outbox.

    Raises:
        UnknownWebhookError: The configuration has no such webhook, or none at all.
    """
    return [_send_test_event(config, webhook) for webhook in select_webhooks(config, name)]


def list_webhooks(config: Config) -> list[WebhookOverview]:
    """Return the state of each webhook. Raises LedgerError while the ledger is away."""
    overviews = []
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        waiting, dead = ledger.outbox.count_open(), ledger.outbox.count_dead()
        for webhook in config.webhooks:
            target = target_of(webhook)
            number, oldest_ms = waiting.get(target, (0, 0))
            error = ledger.outbox.read_first_error(target)
            overviews.append(WebhookOverview(webhook, number, oldest_ms, dead.get(target, 0), error))
    return overviews


def list_webhook_events(
    config: Config, name: str | None, states: Collection[EventState], limit: int
) -> list[WebhookEvent]:
    """Return events of one webhook, or of all, the newest first.

    Raises:
        UnknownWebhookError: The configuration has no such webhook.
        LedgerError: The ledger is away.
    """
    found = []
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        for webhook in config.webhooks if name is None else select_webhooks(config, name):
            events = ledger.outbox.list_events(limit, target_of(webhook), states or STATES)
            found += [WebhookEvent(webhook.name, event) for event in events]
    return sorted(found, key=lambda each: each.event.id, reverse=True)[:limit]


def replay_dead_events(config: Config, name: str, event_ids: Collection[str] | None) -> int:
    """Let events that were given up wait again, all or some; return how many.

    Raises:
        UnknownWebhookError: The configuration has no such webhook.
        LedgerError: The ledger is away.
    """
    [webhook] = select_webhooks(config, name)
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        return ledger.outbox.replay_dead(target_of(webhook), event_ids, ledger.unix_ms())


def select_webhooks(config: Config, name: str | None) -> list[WebhookSettings]:
    """Return one webhook by name, or all.

    Raises:
        UnknownWebhookError: The configuration has no such webhook, or none at all.
    """
    known = [webhook.name for webhook in config.webhooks]
    if not known:
        raise UnknownWebhookError("the configuration has no [[webhooks]]; docs/how-to/webhooks.md shows one")
    if name is not None and name not in known:
        similar = difflib.get_close_matches(name, known, 1, 0.5)
        question = f'did you mean "{similar[0]}"? ' if similar else ""
        raise UnknownWebhookError(
            f'there is no webhook "{name}"; {question}the configuration has {", ".join(known)}'
        )
    return [webhook for webhook in config.webhooks if name in {None, webhook.name}]


def name_receiver(webhook: WebhookSettings) -> str:
    """Return the server of a webhook. The path may hold a token and is left out."""
    return "/".join(webhook.url.split("/", 3)[:3])


def _send_test_event(config: Config, webhook: WebhookSettings) -> WebhookTest:
    event = make_event(
        target_of(webhook), EventKind.TEST, name_source(config), {}, subject="", unix_ms=unix_ms()
    )
    receiver = name_receiver(webhook)
    try:
        send_event(config, webhook, event.payload)
    except SendingError as error:
        return WebhookTest(webhook.name, receiver, event.event_id, error.cause, error.remedy)
    return WebhookTest(webhook.name, receiver, event.event_id)
