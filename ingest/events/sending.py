"""The one door for events: send a payload to a configured target now, or explain why not."""

import json

from ingest.config.model import AlertSettings, Config
from ingest.errors import ConfigError
from ingest.events.failure import explain_failure
from ingest.events.mail import send_mail
from ingest.events.secret_files import read_secret
from ingest.events.webhook import Webhook


def send_to_alert(config: Config, alert: AlertSettings, payload: str) -> None:
    """Send an event to the receiver of an alert, within `timeout_seconds`.

    Args:
        config: The configuration, for the `[tls.NAME]` of the alert.
        alert: The alert.
        payload: JSON of `ingest.events.event.describe_event`.

    Raises:
        SendingError: The receiver did not accept the event.
    """
    tls = config.tls.get(alert.tls) if alert.needs_tls else None
    values = json.loads(payload)
    try:
        if alert.needs_tls and tls is None:
            raise ConfigError([f"there is no [tls.{alert.tls}]"])
        if alert.type == "email":
            send_mail(alert, values, tls)
            return
        if alert.secret_file is None:
            raise ConfigError(["secret_file is missing"])
        webhook = Webhook(
            url=alert.url,
            secret=read_secret(alert.secret_file),
            tls=tls,
            section=alert.tls,
            seconds=alert.timeout_seconds,
        )
        webhook.post(payload.encode(), values["id"])
    except ConfigError as error:
        raise explain_failure(error, alert.name, alert.tls) from error
