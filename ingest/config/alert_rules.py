"""Rules of `[[alerts]]` and `[[webhooks]]`: addresses, files with secrets, and keys that a type needs."""

import re
import stat
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

from ingest.config.faults import Fault
from ingest.config.model import AlertSettings, Config, WebhookSettings, is_loopback

_ADDRESS: Final = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9.-]{1,253}")
_PATTERN: Final = re.compile(r"[a-z0-9_*?]{1,64}")
_WEBHOOK_KEYS: Final = ("url", "secret_file")
_EMAIL_KEYS: Final = ("host", "port", "security", "user", "password_file", "sender", "recipients")
_OTHERS_MAY: Final = stat.S_IRWXO | stat.S_IWGRP
"""Permissions that a file with a secret must not have: anything for others, and writing for its group."""


def check_alerts(config: Config, tls_sections: Collection[str]) -> Iterator[Fault]:
    """Yield every fault of the sections.

    Args:
        config: A configuration whose types are valid.
        tls_sections: Names of all `[tls.NAME]` sections, including those with faults.
    """
    yield from _check_names("alerts", config.alerts)
    for index, alert in enumerate(config.alerts):
        key = f"alerts[{index}]"
        yield from _check_selection(key, alert, config)
        yield from _check_other_keys(key, alert)
        yield from (_check_webhook if alert.type == "webhook" else _check_email)(key, alert)
        yield from _check_trust(key, alert, config, tls_sections)
        if alert.console_url and not _is_web_address(alert.console_url):
            remedy = "write https://HOST/, the address at which people open the console"
            yield Fault(f"{key}.console_url", "is not the address of a page", remedy)


def check_webhooks(config: Config, tls_sections: Collection[str]) -> Iterator[Fault]:
    """Yield every fault of `[[webhooks]]`. The arguments are those of `check_alerts`."""
    yield from _check_names("webhooks", config.webhooks)
    for index, webhook in enumerate(config.webhooks):
        key = f"webhooks[{index}]"
        if not webhook.events:
            yield Fault(f"{key}.events", "is empty, so nothing is sent", 'write events, as ["delivery.dead"]')
        yield from _check_destinations(key, webhook, config)
        yield from _check_webhook(key, webhook)
        yield from _check_trust(key, webhook, config, tls_sections)


def find_open_secret(path: Path) -> str:
    """Return why a file is too open for a secret. Empty if it is not, or does not exist."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return ""
    return f"{path} has mode {stat.S_IMODE(mode):04o}, so others may read or change it" * bool(
        mode & _OTHERS_MAY
    )


def _check_names(section: str, receivers: Sequence[AlertSettings | WebhookSettings]) -> Iterator[Fault]:
    first: dict[str, int] = {}
    for index, receiver in enumerate(receivers):
        if receiver.name in first:
            cause = f'"{receiver.name}" is the name of {section}[{first[receiver.name]}] too'
            yield Fault(f"{section}[{index}].name", cause, "give each one its own name")
        first.setdefault(receiver.name, index)


def _check_selection(key: str, alert: AlertSettings, config: Config) -> Iterator[Fault]:
    if not alert.alarms:
        yield Fault(f"{key}.alarms", "is empty, so nothing is told", 'write ["*"] for all alarms')
    for number, pattern in enumerate(alert.alarms):
        if not _PATTERN.fullmatch(pattern):
            remedy = 'write a condition of docs/reference/alerts.md, or a pattern such as "disk_*"'
            yield Fault(f"{key}.alarms[{number}]", f'"{pattern}" cannot be the name of an alarm', remedy)
    yield from _check_destinations(key, alert, config)
    for number, peer in enumerate(alert.silent_peers):
        here = f"{key}.silent_peers[{number}]"
        if not peer.days:
            yield Fault(f"{here}.days", "is empty", 'write days, as ["mon", "tue"]')
        if peer.begin_hour >= peer.end_hour:
            cause = f"{peer.end_hour} is not after begin_hour, {peer.begin_hour}"
            yield Fault(f"{here}.end_hour", cause, "make it later; 24 is midnight")


def _check_destinations(
    key: str, receiver: AlertSettings | WebhookSettings, config: Config
) -> Iterator[Fault]:
    known = set(config.target_names)
    for number, name in enumerate(receiver.destinations):
        if name not in known and not set("*?[") & set(name):
            remedy = f"write one of {', '.join(sorted(known)) or 'the destinations'}, or a pattern"
            yield Fault(f"{key}.destinations[{number}]", f'there is no destination "{name}"', remedy)


def _check_other_keys(key: str, alert: AlertSettings) -> Iterator[Fault]:
    other, names = ("email", _EMAIL_KEYS) if alert.type == "webhook" else ("webhook", _WEBHOOK_KEYS)
    for name in names:
        if getattr(alert, name) != AlertSettings.model_fields[name].default:
            yield Fault(f"{key}.{name}", f'belongs to type = "{other}"', "remove it, or change type")


def _check_webhook(key: str, alert: AlertSettings | WebhookSettings) -> Iterator[Fault]:
    if not alert.url:
        yield Fault(f"{key}.url", "is missing", "write https://HOST/PATH")
    elif not _is_web_address(alert.url):
        yield Fault(f"{key}.url", "is not a web address", "write https://HOST/PATH in ASCII")
    else:
        parts = urlsplit(alert.url)
        if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            remedy = "write https; plain http is for 127.0.0.1 and ::1 only"
            yield Fault(f"{key}.url", "would send events over the network without TLS", remedy)
        if parts.username is not None or parts.password is not None:
            remedy = "remove it: the signature proves who sent an event"
            yield Fault(f"{key}.url", "holds a user or password", remedy)
    yield from _check_secret(f"{key}.secret_file", alert.secret_file, is_needed=True)


def _check_email(key: str, alert: AlertSettings) -> Iterator[Fault]:
    if not alert.host or not alert.host.isascii() or not alert.host.isprintable() or " " in alert.host:
        yield Fault(f"{key}.host", "names no mail server", "write its name or address")
    if not _ADDRESS.fullmatch(alert.sender):
        yield Fault(f"{key}.sender", "is not an e-mail address", "write it as node@hospital.example")
    if not alert.recipients:
        yield Fault(f"{key}.recipients", "is empty", 'write addresses, as ["pacs@hospital.example"]')
    for number, address in enumerate(alert.recipients):
        if not _ADDRESS.fullmatch(address):
            remedy = "write it as pacs@hospital.example"
            yield Fault(f"{key}.recipients[{number}]", "is not an e-mail address", remedy)
    yield from _check_login(key, alert)


def _check_login(key: str, alert: AlertSettings) -> Iterator[Fault]:
    if alert.security == "none":
        if alert.host and not is_loopback(alert.host):
            remedy = 'write "starttls" or "tls"; "none" is for a server on this machine only'
            yield Fault(f"{key}.security", "would send mails over the network without TLS", remedy)
        if alert.user:
            remedy = 'write security = "starttls" or "tls", or remove user'
            yield Fault(f"{key}.user", "would send the password without TLS", remedy)
    if alert.user and not (alert.user.isascii() and alert.user.isprintable()):
        yield Fault(f"{key}.user", "is not printable ASCII", "write the name that the mail server knows")
    if alert.password_file is not None and not alert.user:
        yield Fault(f"{key}.user", "is missing for password_file", "write the name to log in with")
    yield from _check_secret(f"{key}.password_file", alert.password_file, is_needed=bool(alert.user))


def _check_secret(key: str, path: Path | None, *, is_needed: bool) -> Iterator[Fault]:
    if path is None:
        if is_needed:
            remedy = "name a file of mode 0600 (`(umask 077; openssl rand -hex 32 > FILE)` makes a secret)"
            yield Fault(key, "is missing", remedy)
    elif not path.is_file():
        yield Fault(key, f"{path} does not exist or is no file", "create it with mode 0600")
    elif cause := find_open_secret(path):
        yield Fault(key, cause, f"run `chmod 600 {path}`")


def _check_trust(
    key: str, alert: AlertSettings | WebhookSettings, config: Config, tls_sections: Collection[str]
) -> Iterator[Fault]:
    if not alert.needs_tls:
        return
    if alert.tls not in tls_sections:
        remedy = "add that section with trusted, the authorities of the server"
        yield Fault(f"{key}.tls", f"there is no [tls.{alert.tls}]", remedy)
    elif (section := config.tls.get(alert.tls)) is not None and not section.trusted:
        remedy = f"name the authorities of the server in [tls.{alert.tls}] trusted"
        yield Fault(f"{key}.tls", f"[tls.{alert.tls}] trusts nobody", remedy)


def _is_web_address(url: str) -> bool:
    if not url.isascii() or not url.isprintable() or " " in url:
        return False
    try:
        parts: SplitResult = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
