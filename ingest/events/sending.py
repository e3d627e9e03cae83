"""The one door for events: send a payload to a configured target now, or explain why not."""

import json
from typing import Final

from ingest.config.model import AlertSettings, Config, WebhookSettings
from ingest.errors import ConfigError
from ingest.events.failure import explain_failure
from ingest.events.mail import send_mail
from ingest.events.secret_files import read_secret
from ingest.events.webhook import Webhook

ALERT_TYPE: Final = "application/json"
CLOUD_EVENT_TYPE: Final = "application/cloudevents+json"
"""Media type of the structured mode of the HTTP binding of CloudEvents 1.0."""

Receiver = AlertSettings | WebhookSettings
"""The section of a receiver of events."""


def send_event(config: Config, receiver: Receiver, payload: str) -> None:
    """Send an event to its receiver, within `timeout_seconds`.

    Args:
        config: The configuration, for the `[tls.NAME]` of the receiver.
        receiver: The alert or webhook.
        payload: JSON of `ingest.events.event.describe_event` or `ingest.ledger.announcements`.

    Raises:
        SendingError: The receiver did not accept the event.
    """
    tls = config.tls.get(receiver.tls) if receiver.needs_tls else None
    values = json.loads(payload)
    try:
        if receiver.needs_tls and tls is None:
            raise ConfigError([f"there is no [tls.{receiver.tls}]"])
        if isinstance(receiver, AlertSettings) and receiver.type == "email":
            send_mail(receiver, values, tls)
            return
        if receiver.secret_file is None:
            raise ConfigError(["secret_file is missing"])
        webhook = Webhook(
            url=receiver.url,
            secret=read_secret(receiver.secret_file),
            tls=tls,
            section=receiver.tls,
            seconds=receiver.timeout_seconds,
            content_type=ALERT_TYPE if isinstance(receiver, AlertSettings) else CLOUD_EVENT_TYPE,
        )
        webhook.post(payload.encode(), values["id"])
    except ConfigError as error:
        raise explain_failure(error, receiver.name, receiver.tls) from error
