"""A real node tells by webhook and mail what happens to it, whatever dies meanwhile."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom import Dataset

from tests.faults.test_loops import command, send
from tests.support.instances import CT, EXPLICIT, Made, element
from tests.support.nodes import Node, destination, eventually
from tests.support.peers import PynetdicomRemote
from tests.support.pki import Material
from tests.support.ports import free_port
from tests.support.receivers import (
    MailServer,
    WebServer,
    mail_server,
    secret_file,
    server_context,
    web_server,
)
from tests.support.servers import Valkey, recorded_commands

Nodes = Callable[..., Node]
PLANTED = (b"PLANTED^NAME", b"PLANTED-ID", b"PLANTED-ACCESSION")


@dataclass(frozen=True)
class PlantedImage(Made):
    """An instance with values of a patient."""

    @property
    def data_set(self) -> bytes:
        name, patient_id, accession = PLANTED
        rows = [
            (0x0008, 0x0016, "UI", CT.encode()),
            (0x0008, 0x0018, "UI", self.sop.encode()),
            (0x0008, 0x0050, "SH", accession),
            (0x0010, 0x0010, "PN", name),
            (0x0010, 0x0020, "LO", patient_id),
            (0x0020, 0x000D, "UI", b"1.2.3"),
            (0x0020, 0x000E, "UI", b"1.2.3.1"),
            (0x7FE0, 0x0010, "OB", self.pixels),
        ]
        return b"".join(element(*row) for row in rows)


@pytest.fixture
def web(material: Material) -> Iterator[WebServer]:
    with web_server(server_context(material)) as server:
        yield server


@pytest.fixture
def mail(material: Material) -> Iterator[MailServer]:
    with mail_server(server_context(material)) as server:
        yield server


def webhook_section(folder: Path, port: int, **keys: object) -> str:
    values = {
        "name": "hook",
        "type": "webhook",
        "url": f"https://localhost:{port}/events",
        "secret_file": str(secret_file(folder)),
        "destination_down_minutes": 0,
        "interval_minutes": 0.001,
        **keys,
    }
    return "[[alerts]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def mail_section(port: int, **keys: object) -> str:
    values = {
        "name": "mail",
        "type": "email",
        "host": "localhost",
        "port": port,
        "sender": "node@example.org",
        "recipients": ["pacs@example.org"],
        "destination_down_minutes": 0,
        **keys,
    }
    return "[[alerts]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


@pytest.fixture
def queue_commands(redis_server: Valkey) -> Iterator[Callable[[], bytes]]:
    with recorded_commands(redis_server) as read:
        yield read


def test_destination_that_goes_and_comes_back_gives_one_mail_and_one_recovery(
    make_node: Nodes,
    web: WebServer,
    mail: MailServer,
    redis_server: Valkey,
    queue_commands: Callable[[], bytes],
    tmp_path: Path,
) -> None:
    port = free_port()
    node = make_node(
        queue=f'[queue]\nurl = "{redis_server.url}"',
        alerts=webhook_section(tmp_path, web.port) + mail_section(mail.port, alarms=["destination_*"]),
        destinations=destination("pacs", port, tls=False, retry_first_seconds=0.2, retry_max_seconds=1),
    ).start()
    send(node, PlantedImage(), tmp_path)
    eventually(lambda: "alarm" in web.types("pacs"), 60, "the webhook tells of it")
    eventually(lambda: mail.mails, 60, "the mail tells of it")
    problems = json.loads(command(node, "status", "--json"))["problems"]
    assert "destination_down.pacs" in {problem["name"] for problem in problems}

    # The remote refuses a second image and repeats values of its patient in the error comment.
    comment = Dataset()
    comment.Status, comment.ErrorComment = 0xC000, " ".join(value.decode() for value in PLANTED)
    with PynetdicomRemote(
        [(CT, [EXPLICIT])], port=port, answer=lambda got: comment if got.sop_instance == "1.2.3.5" else 0
    ):
        eventually(lambda: node.deliveries() == {"delivered": 1}, 60, "delivered")
        eventually(lambda: len(mail.mails) == 2, 60, "the mail tells of the end")
        eventually(lambda: web.types("pacs")[-1] == "recovery", 60, "the webhook too")
        send(node, PlantedImage(sop="1.2.3.5"), tmp_path)
        eventually(lambda: "deliveries_dead.pacs" in str(web.received), 60, "told of the dead delivery")

    assert PLANTED[0].decode() in str(node.query("SELECT last_error FROM deliveries"))

    begin, end = mail.mails
    assert begin["Subject"].startswith("[INGEST] ALARM: pacs: its circuit is")
    assert end["Subject"].startswith("[INGEST] OVER: pacs: its circuit is")
    assert end["In-Reply-To"] == begin["Message-ID"]
    told = json.dumps([one.payload for one in web.received]) + "".join(map(str, mail.mails))
    places = {"alerts": told.encode(), "log": node.log.encode(), "queue and jobs": queue_commands()}
    assert b"deliveries_dead" in places["alerts"]
    assert b"1.2.3.5" in places["log"]
    assert b"rq:job:" in places["queue and jobs"]
    assert b"pacs" in places["queue and jobs"]
    assert {place: [value for value in PLANTED if value in said] for place, said in places.items()} == {
        place: [] for place in places
    }
    eventually(
        lambda: command(node, "alerts", "list", "--json").count('"waiting": 0') == 2, 60, "nothing waits"
    )


def test_killed_monitor_loses_nothing_and_repeats_only_with_the_same_id(
    make_node: Nodes, web: WebServer, tmp_path: Path
) -> None:
    """Kill it while it decides, records and sends: each change arrives, and each id has one payload."""
    node = make_node(
        alerts=webhook_section(tmp_path, web.port, timeout_seconds=2),
        destinations=destination(
            "pacs", free_port(), tls=False, retry_first_seconds=0.2, retry_max_seconds=1
        ),
    ).start()
    # The first answers never come: the monitor is killed while the receiver has the event already.
    killed = []

    def kill_sender(request: object) -> None:
        if len(killed) < 3:
            pid = node.children("ingest-monitor")[0].pid
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)
            return
        request.send_response(204)  # type: ignore[attr-defined]
        request.end_headers()  # type: ignore[attr-defined]

    web.answer = kill_sender
    send(node, Made(), tmp_path)
    eventually(lambda: len(killed) == 3, 60, "three monitors died")
    eventually(lambda: "alarm" in web.types("pacs"), 60, "sent by a later monitor")
    by_id: dict[str, set[str]] = {}
    for one in web.received:
        by_id.setdefault(one.payload["id"], set()).add(json.dumps(one.payload, sort_keys=True))
    assert all(len(payloads) == 1 for payloads in by_id.values())
    pacs = {one.payload["id"] for one in web.received if one.payload["subject"] == "pacs"}
    assert len(pacs) == 1
    eventually(
        lambda: set(node.query("SELECT DISTINCT state FROM outbox")) == {("sent",)}, 60, "nothing waits"
    )


def test_receiver_that_is_away_gets_everything_later(
    make_node: Nodes, material: Material, tmp_path: Path
) -> None:
    port = free_port()
    node = make_node(
        alerts=webhook_section(tmp_path, port),
        destinations=destination(
            "pacs", free_port(), tls=False, retry_first_seconds=0.2, retry_max_seconds=1
        ),
    ).start()
    send(node, Made(), tmp_path)
    eventually(
        lambda: node.query("SELECT 1 FROM outbox WHERE attempts > 0 AND state = 'waiting'"), 60, "it fails"
    )
    assert "nobody listens" in node.query("SELECT last_error FROM outbox")[0][0]
    node.stop()
    with web_server(server_context(material), port=port) as server:
        node.start()
        eventually(lambda: "alarm" in server.types("pacs"), 60, "it arrives after a restart")


def test_missing_ledger_is_told_all_the_same(make_node: Nodes, web: WebServer, tmp_path: Path) -> None:
    """The ledger is away, so the event cannot be recorded: it is sent from memory."""
    node = make_node(alerts=webhook_section(tmp_path, web.port, not_ready_minutes=0.01)).start()
    eventually(lambda: (node.data / "run/watched-alarms.json").exists(), 60, "the monitor looks")
    ledger = node.data / "ledger.db"
    eventually(ledger.exists, 60, "there is a ledger")
    ledger.rename(tmp_path / "gone.db")
    eventually(lambda: "alarm" in web.types("ledger_away"), 60, "told without the ledger")
    (tmp_path / "gone.db").rename(ledger)
    eventually(lambda: "recovery" in web.types("ledger_away"), 60, "told of the end")
    assert web.types("ledger_away") == ["alarm", "recovery"]
