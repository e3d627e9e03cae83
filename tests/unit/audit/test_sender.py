"""The sender of audit messages: what it does when a repository dies at the worst moment."""

import contextlib
import socket
import ssl
import struct
import threading
import time

import pytest

from ingest.alarms import standing_alarms
from ingest.audit import AuditTrail, record_application
from ingest.audit.sender_state import read_sender_state
from ingest.config.model import Config
from ingest.workers.monitor import audit_sender
from ingest.workers.monitor.audit_sender import AuditSender
from tests.support.nodes import eventually
from tests.support.ports import free_port


class Repository:
    """A TLS server that plays one act for each connection, and then reads to the end."""

    def __init__(self, material, port, *acts):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(material.certificate("remote"), material.key("remote"))
        context.load_verify_locations(material.trusted)
        context.verify_mode = ssl.CERT_REQUIRED
        self.received = []
        self.connections = 0
        self._context, self._acts = context, list(acts)
        self._listening = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listening.accept()
                self.connections += 1
                threading.Thread(target=self._play, args=(sock,), daemon=True).start()

    def _play(self, sock):
        act = self._acts.pop(0) if self._acts else self.read
        with contextlib.suppress(OSError), self._context.wrap_socket(sock, server_side=True) as tls:
            act(tls)

    def read(self, tls):
        data = b""
        while block := tls.recv(65536):
            data += block
            while (length := data.partition(b" ")[0]).isdigit() and len(data) > len(length) + int(length):
                start = len(length) + 1
                self.received.append(data[start : start + int(length)])
                data = data[start + int(length) :]

    def close(self):
        self._listening.close()


def die_with_unread_data(tls):
    """What a killed process does: the kernel has acknowledged the bytes, and nobody reads them."""
    time.sleep(0.3)
    tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    socket.socket(fileno=tls.detach()).close()


@pytest.fixture
def config(tmp_path, material):
    values = {
        "node": {"name": "node", "data_dir": tmp_path},
        "tls": {"node": material.tls("node")},
        "audit": {"host": "127.0.0.1", "port": free_port(), "away_seconds": 0.001},
    }
    return Config.model_validate(values)


@pytest.fixture
def sender(config):
    made = AuditSender(config, AuditTrail.open(config), settle_seconds=0.6)
    yield made
    made.close()


def turn_until(sender, condition, seconds=15.0):
    def turn():
        sender.run()
        return condition()

    return eventually(turn, seconds)


def test_message_that_a_dying_repository_had_acknowledged_is_sent_again(
    config, sender, material, monkeypatch
):
    monkeypatch.setattr(audit_sender, "FIRST_PAUSE_SECONDS", 0.1)
    repository = Repository(material, config.audit.port, die_with_unread_data)
    record_application(config, started=True)
    queue = AuditTrail.open(config).queue
    turn_until(sender, lambda: repository.received)
    assert repository.connections == 2
    turn_until(sender, lambda: not queue.list_names())
    assert len(repository.received) == 1
    assert queue.read_usage().bytes == 0
    state = read_sender_state(queue.folder)
    assert (state.sent, state.error, state.failing_since) == (1, "", 0)
    repository.close()


def test_repository_that_ends_every_connection_is_away_and_is_not_hammered(config, sender, material):
    # With TLS 1.3 a repository that refuses our certificate does this.
    repository = Repository(material, config.audit.port, *[die_with_unread_data] * 10)
    record_application(config, started=True)
    queue = AuditTrail.open(config).queue
    turn_until(sender, lambda: read_sender_state(queue.folder).failing_since)
    until = time.monotonic() + 0.9  # the first pause is a second
    while time.monotonic() < until:
        sender.run()
        time.sleep(0.02)
    assert repository.connections == 1
    assert len(queue.list_names()) == 1
    repository.close()


def test_connection_stays_open_for_later_messages_and_an_idle_end_is_no_failure(config, sender, material):
    ended = threading.Event()

    def read_and_end(tls):
        tls.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            while not ended.is_set():
                with contextlib.suppress(TimeoutError):
                    repository.received.append(tls.recv(65536))

    repository = Repository(material, config.audit.port, read_and_end)
    queue = AuditTrail.open(config).queue
    for _ in range(2):
        record_application(config, started=True)
        turn_until(sender, lambda: not queue.list_names())
    assert repository.connections == 1
    ended.set()
    time.sleep(0.5)
    sender.run()
    record_application(config, started=False)
    turn_until(sender, lambda: not queue.list_names())
    assert repository.connections == 2
    assert standing_alarms(config.run_dir) == []
    repository.close()


def test_away_repository_raises_an_alarm_with_growing_pauses_until_it_is_back(config, sender, material):
    record_application(config, started=True)
    queue = AuditTrail.open(config).queue
    sender.run()
    time.sleep(0.01)
    for _ in range(50):
        sender.run()  # the pause holds: no second attempt
    assert read_sender_state(queue.folder).failing_since
    pauses = [sender._pause_seconds]
    for _ in range(8):
        sender._try_at = 0.0
        sender.run()
        pauses.append(sender._pause_seconds)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert [alarm.name for alarm in standing_alarms(config.run_dir)] == ["audit_away"]
    repository = Repository(material, config.audit.port)
    sender._try_at = 0.0
    turn_until(sender, lambda: not queue.list_names())
    assert standing_alarms(config.run_dir) == []
    repository.close()


def test_two_monitors_send_a_message_once(config, sender, material):
    other = AuditSender(config, AuditTrail.open(config), settle_seconds=0.1)
    repository = Repository(material, config.audit.port)
    record_application(config, started=True)
    queue = AuditTrail.open(config).queue

    def both():
        other.run()
        return not queue.list_names()

    sender.run()
    turn_until(sender, both)
    assert len(repository.received) == 1
    other.close()
    repository.close()


def test_unusable_certificate_is_a_failure_that_is_told_and_ends(config, sender, material, tmp_path):
    missing = material.tls("node").model_copy(update={"certificate": tmp_path / "none.crt"})
    broken = config.model_copy(update={"tls": {"node": missing}})
    failing = AuditSender(broken, AuditTrail.open(broken))
    record_application(config, started=True)
    failing.run()
    assert "tls.node" in read_sender_state(tmp_path / "audit").error
    assert len(AuditTrail.open(config).queue.list_names()) == 1
    failing.close()
