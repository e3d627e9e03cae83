"""Mails: SMTP with STARTTLS or TLS from the first byte, by the standard library.

smtplib has a timeout for each read, and its lookup of the name has no deadline. A server that answers one
byte at a time would hold the sender for ever. The connection here comes from `ingest.network.dialer`, and a
second descriptor of it ends it at the deadline, even while smtplib waits.

The text is for a person who is woken at night: the alarm, its begin, the affected part, and the remedy. Texts
in headers may come from a peer, such as an AE title or the subject of a certificate. Control characters are
escaped, so they cannot add a header or a recipient (RFC 5322 2.2).
"""

import contextlib
import smtplib
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from email.utils import format_datetime
from typing import Any, Final

from ingest import threads
from ingest.config.faults import escape_unprintable
from ingest.config.model import TLS, AlertSettings, is_loopback
from ingest.errors import ConfigError, SendingError
from ingest.events.failure import explain_failure
from ingest.events.secret_files import read_secret
from ingest.events.trust import create_client_context
from ingest.network.dialer import dial_host

_SUBJECT_MAX: Final = 180
_TITLES: Final = {"alarm": "ALARM", "reminder": "STILL", "recovery": "OVER", "test": "TEST"}


def send_mail(alert: AlertSettings, payload: Mapping[str, Any], tls: TLS | None) -> None:
    """Send an event as a mail.

    Args:
        alert: Settings of type "email".
        payload: The values of `ingest.events.event.describe_event`.
        tls: The section that verifies the server; None for a server on this machine without TLS.

    Raises:
        SendingError: The server did not accept the mail.
    """
    server = f"{alert.host}:{alert.smtp_port}"
    try:
        context = create_client_context(tls) if tls is not None else None
        password = read_secret(alert.password_file) if alert.user and alert.password_file else b""
        message = compose_mail(alert, payload)
        with _end_at_deadline(alert.timeout_seconds) as deadline:
            _deliver(alert, message, context, password, deadline)
    except smtplib.SMTPException as error:
        raise _explain_refusal(error, server) from error
    except (OSError, ConfigError) as error:
        raise explain_failure(error, server, alert.tls) from error


def compose_mail(alert: AlertSettings, payload: Mapping[str, Any]) -> EmailMessage:
    """Write the mail of an event: plain text, one line for each fact."""
    node = _clean(payload["node"]["name"])
    mail = EmailMessage(SMTP_POLICY)
    mail["From"] = alert.sender
    mail["To"] = ", ".join(alert.recipients)
    mail["Subject"] = f"[{node}] {_TITLES[payload['type']]}: {_write_headline(payload)}"[:_SUBJECT_MAX]
    mail["Date"] = format_datetime(datetime.fromisoformat(payload["time"]))
    domain = alert.sender.rpartition("@")[2]
    mail["Message-ID"] = f"<{payload['id']}@{domain}>"
    if payload["incident"] != payload["id"]:
        # Mail programs show the messages about one incident together.
        mail["In-Reply-To"] = mail["References"] = f"<{payload['incident']}@{domain}>"
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: no answers from absent people
    mail["X-Ingest-Event"] = payload["id"]
    mail.set_content("\n".join(_write_lines(payload)) + "\n")
    return mail


def _write_headline(payload: Mapping[str, Any]) -> str:
    if payload["type"] == "test":
        return "a test of this alert"
    shown = payload["ended"] if payload["type"] == "recovery" else payload["alarms"]
    more = f" (and {len(shown) - 1} more)" if len(shown) > 1 else ""
    return _clean(shown[0]["cause"]) + more if shown else _clean(payload["subject"])


def _write_lines(payload: Mapping[str, Any]) -> Iterator[str]:
    node = payload["node"]
    if payload["type"] == "test":
        yield "This is a test. Mails of this alert arrive."
    if payload["ended"]:
        yield "These alarms have ended:"
        for alarm in payload["ended"]:
            yield f"  - {_clean(alarm['cause'])}"
            yield f"    began {_write_time(alarm['since'])}"
        yield ""
    if payload["alarms"]:
        yield "These alarms stand:" if payload["type"] != "recovery" else "These alarms still stand:"
    for alarm in payload["alarms"]:
        yield ""
        yield f"What:     {_clean(alarm['cause'])}"
        yield f"Since:    {_write_time(alarm['since'])}"
        if alarm["effect"]:
            yield f"Affected: {alarm['effect']}"
        yield f"To do:    {_clean(alarm['remedy'])}"
        yield f"Alarm:    {_clean(alarm['name'])} ({alarm['severity']})"
    if payload["repeats"]:
        yield ""
        yield f"Meanwhile this began and ended {payload['repeats']} times without a mail."
    yield ""
    yield f"Node {_clean(node['name'])} (AE title {_clean(node['ae_title'])}) on {_clean(node['host'])}."
    if payload["console_url"]:
        yield f"Console: {payload['console_url']}"
    yield "See everything with `ingest status` on that machine."
    yield f"Sent by [[alerts]] {payload['alert']}, event {payload['id']}."


def _write_time(since: str | None) -> str:
    if since is None:
        return "unknown"
    at = datetime.fromisoformat(since)
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S %Z} ({at.astimezone(UTC):%H:%M} UTC)"


def _clean(text: str) -> str:
    """Return any text of a peer as one printable line."""
    return escape_unprintable(text)


class _Deadline:
    """The deadline of one mail: it ends the connection from outside.

    Attributes:
        at: A value of time.monotonic().
    """

    def __init__(self, seconds: float) -> None:
        self.at = time.monotonic() + seconds
        self.is_over = threading.Event()
        self._twin: socket.socket | None = None

    def guard(self, sock: socket.socket) -> None:
        # The descriptor of the socket may be wrapped by TLS or closed by smtplib. A twin stays valid.
        self._twin = sock.dup()

    def watch(self) -> None:
        """Thread body: shut the connection down at the deadline, unless the mail was sent before."""
        if not self.is_over.wait(max(0.0, self.at - time.monotonic())) and self._twin is not None:
            with contextlib.suppress(OSError):
                self._twin.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        if self._twin is not None:
            self._twin.close()


@contextlib.contextmanager
def _end_at_deadline(seconds: float) -> Iterator[_Deadline]:
    deadline = _Deadline(seconds)
    watcher = threads.start_task("mail-deadline", deadline.watch)
    try:
        yield deadline
    except (OSError, smtplib.SMTPException) as error:
        if time.monotonic() >= deadline.at:
            raise TimeoutError from error
        raise
    finally:
        deadline.is_over.set()
        watcher.join()
        deadline.close()


class _DialedSMTP(smtplib.SMTP):
    """A client whose connection is dialed with a deadline."""

    def __init__(self, alert: AlertSettings, context: ssl.SSLContext | None, deadline: _Deadline) -> None:
        self._deadline = deadline
        self._first_context = context if alert.security == "tls" else None
        # Without an explicit name smtplib looks up the name of this machine, without a deadline.
        name = socket.gethostname()
        own = name if name.isascii() and name.replace("-", "").replace(".", "").isalnum() else "localhost"
        super().__init__(alert.host, alert.smtp_port, local_hostname=own, timeout=alert.timeout_seconds)

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        sock = dial_host(host, port, max(0.001, self._deadline.at - time.monotonic()))
        sock.settimeout(timeout)
        self._deadline.guard(sock)
        if self._first_context is None:
            return sock
        return self._first_context.wrap_socket(sock, server_hostname=host)


def _deliver(
    alert: AlertSettings,
    message: EmailMessage,
    context: ssl.SSLContext | None,
    password: bytes,
    deadline: _Deadline,
) -> None:
    client = _DialedSMTP(alert, context, deadline)
    try:
        if context is None and not is_loopback(client.sock.getpeername()[0]):  # type: ignore[union-attr]
            remedy = 'write security = "starttls" or "tls"'
            raise SendingError(f"{alert.host} is not this machine", remedy)
        if alert.security == "starttls":
            client.starttls(context=context)
        if password:
            client.login(alert.user, _decode_password(alert, password))
        client.send_message(message, alert.sender, list(alert.recipients))
    finally:
        # QUIT is a courtesy, and a server that hangs there has the mail already.
        client.close()


def _decode_password(alert: AlertSettings, password: bytes) -> str:
    try:
        return password.decode("ascii")
    except UnicodeDecodeError:
        cause = f"{alert.password_file}: the password is not ASCII, which SMTP demands"
        raise ConfigError([f"{cause}; choose another password"]) from None


def _explain_refusal(error: smtplib.SMTPException, server: str) -> SendingError:
    cause, remedy = f"{server}: {type(error).__name__}", "read the log of the server"
    match error:
        case smtplib.SMTPNotSupportedError():
            cause = f"{server}: {error}"
            remedy = 'write security = "tls" and its port, or have the server offer STARTTLS and login'
        case smtplib.SMTPAuthenticationError():
            cause = f"{server} refuses the login: {_describe_code(error)}"
            remedy = "correct user and the password in password_file"
        case smtplib.SMTPSenderRefused():
            cause = f"{server} refuses the sender: {_describe_code(error)}"
            remedy = "have the server accept sender from this machine, or log in"
        case smtplib.SMTPRecipientsRefused():
            refused = ", ".join(f"{address} ({code})" for address, (code, _) in error.recipients.items())
            cause, remedy = f"{server} refuses every recipient: {refused}", "correct recipients"
        case smtplib.SMTPServerDisconnected():
            cause = f"{server} closed the connection"
        case smtplib.SMTPResponseException():
            cause = f"{server} answers {_describe_code(error)}"
    return SendingError(cause, remedy)


def _describe_code(error: smtplib.SMTPResponseException) -> str:
    text = (
        error.smtp_error.decode(errors="replace") if isinstance(error.smtp_error, bytes) else error.smtp_error
    )
    return escape_unprintable(f"{error.smtp_code} {text}")[:200]
