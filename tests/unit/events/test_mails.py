"""Mails arrive over verified TLS, or fail in time with a remedy; their headers are nobody else's."""

import socket
import time

import pytest

from ingest.alarms import Alarm
from ingest.config.model import Config
from ingest.errors import SendingError
from ingest.events.event import Announcement, EventType, describe_event
from ingest.events.sending import send_event
from tests.support.receivers import (
    PASSWORD,
    USER,
    mail_alert,
    mail_server,
    secret_file,
    server_context,
    trusting,
)

DOWN = Alarm(
    "destination_down.PACS",
    "PACS: its circuit is open, 7 wait: nobody listens",
    "see `ingest check --connect`",
    since_ms=1_700_000_000_000,
)


def payload(alert, *, alarms=(DOWN,), ended=(), kind=EventType.ALARM, incident="id-1"):
    told = Announcement(
        type=kind,
        event_id="id-1",
        incident=incident,
        unix_ms=1_700_000_600_000,
        subject="PACS",
        alarms=alarms,
        ended=ended,
    )
    return describe_event(Config(), alert, told)


@pytest.fixture
def send(material):
    def send(port, told=None, tls=None, **changes):
        alert = mail_alert(port, **changes)
        config = Config(tls={"node": tls or trusting(material)})
        send_event(config, alert, told or payload(alert))

    return send


@pytest.fixture
def server(material):
    with mail_server(server_context(material)) as running:
        yield running


def test_mail_says_what_since_when_what_is_affected_and_what_to_do(server, send):
    send(server.port, console_url="https://console.example.org/")
    (mail,) = server.mails
    assert mail["Subject"] == "[INGEST] ALARM: PACS: its circuit is open, 7 wait: nobody listens"
    assert mail["Message-ID"] == "<id-1@example.org>"
    assert mail["Auto-Submitted"] == "auto-generated"
    text = mail.get_content()
    assert "What:     PACS: its circuit is open, 7 wait: nobody listens" in text
    assert "Since:    2023-11-1" in text
    assert "Affected: Instances for this destination wait" in text
    assert "To do:    see `ingest check --connect`" in text
    assert "Console: https://console.example.org/" in text
    assert server.envelopes[0].rcpt_tos == ["pacs@example.org", "night@example.org"]


def test_recovery_answers_the_mail_that_told_of_the_begin(server, send):
    told = payload(
        mail_alert(server.port), alarms=(), ended=(DOWN,), kind=EventType.RECOVERY, incident="id-0"
    )
    send(server.port, told)
    (mail,) = server.mails
    assert mail["Subject"].startswith("[INGEST] OVER: PACS")
    assert mail["In-Reply-To"] == "<id-0@example.org>"
    assert "These alarms have ended:" in mail.get_content()


def test_text_of_a_peer_adds_no_header_and_no_recipient(server, send):
    evil = Alarm(
        "peer_silent.CT\r\nBcc: thief@example.com",
        "CT\r\nBcc: thief@example.com\r\n\r\nbody has sent nothing",
        "ask\r\n.\r\nRCPT TO:<thief@example.com>",
    )
    send(server.port, payload(mail_alert(server.port), alarms=(evil,)))
    (mail,) = server.mails
    assert "Bcc" not in mail
    assert "thief" not in str(server.envelopes[0].rcpt_tos)
    assert r"CT\r\nBcc: thief@example.com" in mail["Subject"]
    assert all(not line.startswith("Bcc:") for line in mail.get_content().splitlines())


def test_tls_from_the_first_byte_and_a_login(material, send, tmp_path):
    with mail_server(server_context(material), implicit=True, login=True) as server:
        login = {"security": "tls", "user": USER, "password_file": secret_file(tmp_path, PASSWORD.encode())}
        send(server.port, **login)
        assert len(server.mails) == 1
        wrong = secret_file(tmp_path, b"wrong")
        with pytest.raises(SendingError, match="refuses the login: 535") as raised:
            send(server.port, **{**login, "password_file": wrong})
        assert "password_file" in raised.value.remedy
        assert PASSWORD not in str(raised.value)
        with pytest.raises(SendingError, match="530"):
            send(server.port, security="tls")


def test_login_after_starttls(material, send, tmp_path):
    with mail_server(server_context(material), login=True) as server:
        send(server.port, user=USER, password_file=secret_file(tmp_path, PASSWORD.encode()))
        assert len(server.mails) == 1


@pytest.mark.parametrize("implicit", [False, True])
def test_server_with_a_strange_certificate_gets_neither_password_nor_mail(material, send, tmp_path, implicit):
    with mail_server(server_context(material, "stranger"), implicit=implicit, login=True) as server:
        with pytest.raises(SendingError, match="is not trusted"):
            send(
                server.port,
                security="tls" if implicit else "starttls",
                user=USER,
                password_file=secret_file(tmp_path, PASSWORD.encode()),
            )
        assert server.mails == []


def test_server_without_starttls_gets_nothing(send):
    with mail_server(None) as server:
        with pytest.raises(SendingError, match="STARTTLS"):
            send(server.port)
        assert server.mails == []
        send(server.port, security="none", host="127.0.0.1")
        assert len(server.mails) == 1


def test_refusal_names_the_answer_of_the_server(server, send):
    server.refusal = "554 5.7.1 no mail from nodes"
    with pytest.raises(SendingError, match=r"554 5\.7\.1 no mail from nodes"):
        send(server.port)


def test_server_that_hangs_is_left_at_the_deadline(server, send):
    server.hangs = True
    began = time.monotonic()
    with pytest.raises(SendingError, match="did not answer in time"):
        send(server.port, timeout_seconds=0.6)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("greeting", [b"2", b""])
def test_server_that_trickles_its_greeting_is_left_at_the_deadline(send, greeting):
    import threading

    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def trickle():
            with listener.accept()[0] as connection:
                while not over.wait(0.05):
                    try:
                        connection.sendall(greeting)
                    except OSError:
                        return

        thread = threading.Thread(target=trickle)
        thread.start()
        began = time.monotonic()
        with pytest.raises(SendingError, match="did not answer in time"):
            send(listener.getsockname()[1], timeout_seconds=0.5)
        assert time.monotonic() - began < 2
        over.set()
        thread.join()


def test_server_that_dies_in_the_middle_says_so(send):
    import threading

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def die():
            with listener.accept()[0] as connection:
                connection.sendall(b"220 here\r\n")
                connection.recv(100)

        thread = threading.Thread(target=die)
        thread.start()
        with pytest.raises(SendingError, match="closed the connection"):
            send(listener.getsockname()[1])
        thread.join()
