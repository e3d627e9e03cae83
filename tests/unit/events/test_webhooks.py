"""Webhooks arrive signed and verified, or fail in time with a remedy."""

import socket
import threading
import time

import pytest

from ingest.config.model import Config
from ingest.errors import SendingError
from ingest.events.event import Announcement, EventType, describe_event
from ingest.events.sending import send_event
from tests.support.receivers import server_context, trusting, web_server, webhook


def payload(alert, event_id="id-1"):
    told = Announcement(
        type=EventType.TEST, event_id=event_id, incident=event_id, unix_ms=1000, subject="test"
    )
    return describe_event(Config(), alert, told)


@pytest.fixture
def send(tmp_path, material):
    def send(port, *, host="localhost", scheme="https", tls=None, **changes):
        alert = webhook(tmp_path, f"{scheme}://{host}:{port}/events", **changes)
        config = Config(tls={"node": tls or trusting(material)})
        send_event(config, alert, payload(alert))

    return send


@pytest.fixture
def server(material):
    with web_server(server_context(material)) as running:
        yield running


def test_event_arrives_signed_with_its_id(server, send):
    send(server.port)
    (one,) = server.received  # the server has checked the signature
    assert one.payload["id"] == one.headers["Idempotency-Key"] == one.headers["X-Ingest-Event"] == "id-1"
    assert one.payload["type"] == "test"
    assert one.headers["Content-Type"] == "application/json"


def test_certificate_of_the_section_is_shown_to_a_server_that_asks(material, send):
    with web_server(server_context(material, wants_certificate=True)) as server:
        send(server.port, tls=material.tls("peer"))
        assert server.received[0].peer["subject"] == ((("commonName", "peer"),),)
        with pytest.raises(SendingError):
            send(server.port)
    assert len(server.received) == 1


@pytest.mark.parametrize(
    ("name", "host", "words"),
    [
        ("stranger", "localhost", "add its authority to [tls.node] trusted"),
        ("expired", "localhost", "have the certificate of the server replaced"),
        ("node", "127.0.0.2", "use an address that its certificate has"),
    ],
)
def test_server_that_cannot_prove_itself_gets_nothing(material, send, name, host, words):
    address = "127.0.0.1" if host == "localhost" else host
    with (
        web_server(server_context(material, name), address) as server,
        pytest.raises(SendingError) as raised,
    ):
        send(server.port, host=host)
    assert words in raised.value.remedy
    assert server.received == []


@pytest.mark.parametrize(
    ("status", "blames_target", "words"),
    [
        (500, True, "HTTP status 500"),
        (503, True, "HTTP status 503"),
        (403, True, "has the secret"),
        (422, False, "HTTP status 422"),
    ],
)
def test_refusal_is_a_failure_of_the_target_or_of_the_event(server, send, status, blames_target, words):
    server.answer = lambda request: (request.send_response(status), request.end_headers())
    with pytest.raises(SendingError, match=words) as raised:
        send(server.port)
    assert raised.value.blames_target is blames_target


def test_redirect_is_not_followed(material, server, send):
    with web_server(server_context(material)) as other:

        def redirect(request):
            request.send_response(307)
            request.send_header("Location", f"https://localhost:{other.port}/")
            request.end_headers()

        server.answer = redirect
        with pytest.raises(SendingError, match="redirect"):
            send(server.port)
    assert len(server.received) == 1
    assert other.received == []


def test_endless_body_after_success_costs_nothing(server, send):
    ended = threading.Event()

    def flood(request):
        request.send_response(200)
        request.send_header("Content-Length", str(1 << 40))
        request.end_headers()
        try:
            while True:
                request.wfile.write(bytes(1 << 16))
        except OSError:
            ended.set()

    server.answer = flood
    began = time.monotonic()
    send(server.port)
    assert time.monotonic() - began < 3
    assert ended.wait(5)


def test_server_that_trickles_its_response_is_left_at_the_deadline(server, send):
    def trickle(request):
        for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 200:
            request.wfile.write(bytes([byte]))
            request.wfile.flush()
            time.sleep(0.05)

    server.answer = trickle
    began = time.monotonic()
    with pytest.raises(SendingError, match="did not answer in time"):
        send(server.port, timeout_seconds=0.7)
    assert 0.5 < time.monotonic() - began < 2


def test_server_that_never_shakes_hands_is_left_at_the_deadline(send):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        began = time.monotonic()
        with pytest.raises(SendingError, match="did not answer in time"):
            send(mute.getsockname()[1], timeout_seconds=0.5)
    assert time.monotonic() - began < 2


def test_name_server_that_does_not_answer_is_left_at_the_deadline(send, monkeypatch):
    from ingest.network import dialer
    from ingest.network.resolver import Resolver

    stuck = threading.Event()
    resolver = Resolver(lambda *_: stuck.wait(20) or [])
    monkeypatch.setattr(dialer.dial_host, "__kwdefaults__", {"resolver": resolver})
    began = time.monotonic()
    try:
        with pytest.raises(SendingError, match="has no address"):
            send(443, host="receiver.example", timeout_seconds=0.5)
        assert time.monotonic() - began < 3
    finally:
        stuck.set()


def test_huge_head_of_a_response_is_refused(server, send):
    def boast(request):
        request.send_response(200)
        for number in range(4000):
            request.send_header(f"X-{number}", "x" * 100)
        request.end_headers()

    server.answer = boast
    with pytest.raises(SendingError):
        send(server.port)


def test_plain_http_reaches_this_machine_only(send, tmp_path):
    with web_server(None) as server:
        send(server.port, scheme="http", host="127.0.0.1")
        assert len(server.received) == 1


def test_secret_that_others_may_read_is_not_used(server, tmp_path, material):
    alert = webhook(tmp_path, f"https://localhost:{server.port}/")
    (tmp_path / "secret").chmod(0o644)
    with pytest.raises(SendingError, match="mode 0644"):
        send_event(Config(tls={"node": trusting(material)}), alert, payload(alert))
    assert server.received == []


def test_nobody_listens_says_so(send):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(SendingError, match="nobody listens at localhost"):
        send(port)
