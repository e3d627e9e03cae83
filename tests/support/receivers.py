"""Receivers of events: an HTTPS server and an SMTP server, whose faults a test chooses."""

import asyncio
import contextlib
import email
import email.policy
import hashlib
import hmac
import http.server
import json
import logging
import os
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from ingest.config.model import TLS, AlertSettings
from tests.support.pki import Material

SECRET = b"the key of the signature"
USER, PASSWORD = "node", "letmein"


def server_context(
    material: Material, name: str = "node", *, wants_certificate: bool = False
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(material.certificate(name), material.key(name))
    if wants_certificate:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(material.trusted)
    return context


@dataclass
class Received:
    """One request of a webhook, or one mail."""

    payload: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)
    peer: dict[str, Any] | None = None


@dataclass
class WebServer:
    """A web server; `answer` writes the response of each request, and the default is 204."""

    port: int = 0
    received: list[Received] = field(default_factory=list)
    answer: Callable[[http.server.BaseHTTPRequestHandler], None] | None = None

    def types(self, subject: str = "") -> list[str]:
        return [one.payload["type"] for one in self.received if subject in {"", one.payload["subject"]}]


def is_signed(headers: dict[str, str], body: bytes) -> bool:
    """The check that docs/reference/alerts.md shows to receivers."""
    signed = headers["X-Ingest-Timestamp"].encode() + b"." + body
    expected = "sha256=" + hmac.new(SECRET, signed, hashlib.sha256).hexdigest()
    is_recent = abs(time.time() - int(headers["X-Ingest-Timestamp"])) < 300
    return is_recent and hmac.compare_digest(headers["X-Ingest-Signature"], expected)


@contextlib.contextmanager
def web_server(context: ssl.SSLContext | None, host: str = "127.0.0.1", port: int = 0) -> Iterator[WebServer]:
    server = WebServer()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = dict(self.headers)
            assert is_signed(headers, body)
            peer = self.connection.getpeercert() if isinstance(self.connection, ssl.SSLSocket) else None
            server.received.append(Received(json.loads(body), headers, peer))
            if server.answer is not None:
                server.answer(self)
                return
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Say nothing: handshakes and connections that fail are what is tested."""

        def finish_request(self, request: Any, client_address: Any) -> None:
            request.settimeout(10)
            if context is None:
                super().finish_request(request, client_address)
                return
            with context.wrap_socket(request, server_side=True) as wrapped:
                super().finish_request(wrapped, client_address)

    with Quiet((host, port), Handler) as listening:
        server.port = listening.server_address[1]
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            listening.shutdown()
            thread.join()


@dataclass
class MailServer:
    """An SMTP server; `refusal` is its answer to the data of each mail, instead of 250."""

    port: int = 0
    mails: list[EmailMessage] = field(default_factory=list)
    envelopes: list[Envelope] = field(default_factory=list)
    refusal: str = ""
    hangs: bool = False

    async def handle_DATA(self, _server: SMTP, session: Session, envelope: Envelope) -> str:
        if self.hangs:
            await asyncio.Event().wait()
        if self.refusal:
            return self.refusal
        assert isinstance(envelope.content, bytes)
        parsed = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(parsed, EmailMessage)
        self.envelopes.append(envelope)
        self.mails.append(parsed)
        return "250 OK"


@contextlib.contextmanager
def mail_server(
    context: ssl.SSLContext | None, *, implicit: bool = False, login: bool = False
) -> Iterator[MailServer]:
    logging.getLogger("mail.log").setLevel(logging.CRITICAL)
    server = MailServer()

    def check(_s: SMTP, _session: Session, _e: Envelope, _mechanism: str, data: object) -> AuthResult:
        assert isinstance(data, LoginPassword)
        good = (data.login, data.password) == (USER.encode(), PASSWORD.encode())
        return AuthResult(success=good, handled=False)

    options: dict[str, Any] = {"hostname": "receiver.example"}
    if login:
        options |= {"authenticator": check, "auth_required": True, "auth_require_tls": not implicit}
    if context is not None and not implicit:
        options |= {"tls_context": context, "require_starttls": True}

    def make_protocol() -> SMTP:
        with warnings.catch_warnings():
            # aiosmtpd does not see that the connection has TLS from its first byte.
            warnings.simplefilter("ignore")
            return SMTP(server, loop=loop, **options)

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)
    first = context if implicit else None
    listening = loop.run_until_complete(loop.create_server(make_protocol, "127.0.0.1", 0, ssl=first))
    server.port = listening.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        listening.close()
        loop.run_until_complete(_cancel_tasks())
        loop.close()


async def _cancel_tasks() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.sleep(0.02)  # transports close in the next turns of the loop


def secret_file(folder: Path, content: bytes = SECRET) -> Path:
    path = folder / "secret"
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    os.write(descriptor, content + b"\n")
    os.close(descriptor)
    return path


def webhook(folder: Path, url: str, **changes: Any) -> AlertSettings:
    """`[[alerts]]` of a webhook."""
    values = {"name": "hook", "type": "webhook", "url": url, "secret_file": secret_file(folder)}
    return AlertSettings(**{**values, "timeout_seconds": 5.0, **changes})


def mail_alert(port: int, **changes: Any) -> AlertSettings:
    """`[[alerts]]` of mails."""
    values = {
        "name": "mail",
        "type": "email",
        "host": "localhost",
        "port": port,
        "sender": "node@example.org",
        "recipients": ("pacs@example.org", "night@example.org"),
    }
    return AlertSettings(**{**values, "timeout_seconds": 5.0, **changes})


def trusting(material: Material, **changes: Any) -> TLS:
    """A `[tls.NAME]` that trusts the servers, without a certificate of its own."""
    return TLS(trusted=(material.trusted,), **changes)
