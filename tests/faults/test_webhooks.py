"""A real node tells webhooks of images and deliveries: each change once or more, whatever dies meanwhile."""

import contextlib
import json
import os
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom import Dataset

from tests.faults.test_alerts import PLANTED, PlantedImage
from tests.faults.test_loops import command, send
from tests.support.instances import CT, EXPLICIT
from tests.support.nodes import Node, destination, eventually
from tests.support.peers import PynetdicomRemote
from tests.support.pki import Material
from tests.support.ports import free_port
from tests.support.receivers import WebServer, secret_file, server_context, web_server

Nodes = Callable[..., Node]
ALL = ["instance.stored", "instance.quarantined", "delivery.delivered", "delivery.dead"]


@pytest.fixture
def web(material: Material) -> Iterator[WebServer]:
    with web_server(server_context(material)) as server:
        yield server


def section(folder: Path, port: int, **keys: object) -> str:
    values = {
        "name": "ris",
        "url": f"https://localhost:{port}/events",
        "secret_file": str(secret_file(folder)),
        "events": ALL,
        **keys,
    }
    return "[[webhooks]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def told(web: WebServer) -> Counter[tuple[str, str]]:
    """The events by type and subject, those that were repeated counted once."""
    by_id = {one.payload["id"]: one.payload for one in web.received}
    return Counter((each["type"].removeprefix("dicom_ingest."), each["subject"]) for each in by_id.values())


def test_each_change_is_told_once_without_patient_data_though_processes_die(
    make_node: Nodes, web: WebServer, tmp_path: Path
) -> None:
    port = free_port()
    node = make_node(
        node='[node]\nae_title = "INGEST"\ndata_dir = "var"\ndrain_seconds = 10\nstable_seconds = 1',
        webhooks=section(tmp_path, web.port, timeout_seconds=2, events=[*ALL, "study.complete"]),
        destinations=destination("pacs", port, tls=False, retry_first_seconds=0.2, retry_max_seconds=1),
    ).start()
    killed = []

    def kill_sender(request: object) -> None:
        # The first answers never come: the monitor dies while the receiver has the event already.
        if len(killed) < 2:
            killed.append(node.children("ingest-monitor")[0].pid)
            os.kill(killed[-1], signal.SIGKILL)
            return
        request.send_response(204)  # type: ignore[attr-defined]
        request.end_headers()  # type: ignore[attr-defined]

    web.answer = kill_sender
    comment = Dataset()
    comment.Status, comment.ErrorComment = 0xC000, " ".join(value.decode() for value in PLANTED)
    uids = [f"1.2.3.{number}" for number in range(10, 22)]
    refused = uids[0]
    with PynetdicomRemote(
        [(CT, [EXPLICIT])], port=port, answer=lambda got: comment if got.sop_instance == refused else 0
    ):
        for number, uid in enumerate(uids):
            send(node, PlantedImage(sop=uid), tmp_path)
            if number in {3, 7}:
                node.kill_child("ingest-persist")
                node.kill_child("ingest-forward")
        send(node, PlantedImage(sop=uids[1], pixels=b"other"), tmp_path)  # a conflict
        wanted = Counter(("instance.stored", uid) for uid in uids)
        wanted += Counter(("delivery.delivered", uid) for uid in uids[1:])
        wanted += Counter([("delivery.dead", refused), ("instance.quarantined", uids[1])])

        def is_told() -> bool:
            changes = told(web)
            studies = changes.pop(("study.complete", "1.2.3"), 0)
            return len(killed) == 2 and changes == wanted and studies > 0

        eventually(is_told, 90, "every change is told")
    eventually(lambda: not node.query("SELECT 1 FROM outbox"), 30, "nothing waits")
    said = json.dumps([one.payload for one in web.received])
    assert [value for value in PLANTED if value.decode() in said + node.log] == []
    by_id: dict[str, set[str]] = {}
    for one in web.received:
        by_id.setdefault(one.payload["id"], set()).add(json.dumps(one.payload, sort_keys=True))
    assert all(len(payloads) == 1 for payloads in by_id.values())


def test_events_wait_for_a_receiver_that_is_away_and_refused_ones_can_be_replayed(
    make_node: Nodes, material: Material, tmp_path: Path
) -> None:
    port = free_port()
    node = make_node(webhooks=section(tmp_path, port, events=["instance.stored"])).start()
    for number in range(3):
        send(node, PlantedImage(sop=f"1.2.3.{number}"), tmp_path)
    eventually(lambda: node.query("SELECT 1 FROM outbox WHERE attempts > 0"), 60, "it fails")
    node.stop()
    node.start()
    with web_server(server_context(material), port=port) as server:

        def refuse_one(request: object) -> None:
            refuses = server.received[-1].payload["subject"] == "1.2.3.1"
            request.send_response(422 if refuses else 204)  # type: ignore[attr-defined]
            request.send_header("Content-Length", "0")  # type: ignore[attr-defined]
            request.end_headers()  # type: ignore[attr-defined]

        server.answer = refuse_one
        eventually(lambda: len(told(server)) == 3, 60, "the refused one holds up no other")
        first = list(dict.fromkeys(one.payload["subject"] for one in server.received))
        assert first == ["1.2.3.0", "1.2.3.1", "1.2.3.2"]
        # What the pauses of four more attempts would lead to.
        with contextlib.closing(sqlite3.connect(node.data / "ledger.db", timeout=30)) as ledger, ledger:
            ledger.execute("UPDATE outbox SET attempts = 4, next_at = 0")
        eventually(lambda: node.query("SELECT state FROM outbox") == [("dead",)], 60, "a dead letter")
        [dead] = map(json.loads, command(node, "webhooks", "events", "--json").splitlines())
        assert (dead["state"], dead["subject"]) == ("dead", "1.2.3.1")
        server.answer = None
        assert json.loads(command(node, "webhooks", "replay", "ris", "--json")) == {"replayed": 1}
        eventually(lambda: not node.query("SELECT 1 FROM outbox"), 60, "sent again")
        last = server.received[-1]
        assert (last.payload["id"], last.payload["subject"]) == (dead["event_id"], "1.2.3.1")
