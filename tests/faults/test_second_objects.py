"""A second object of a SOP instance UID on real nodes: none gets Success and then has no way out."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.faults.test_loops import command, send
from tests.support.instances import Made
from tests.support.nodes import Node, destination, eventually

Nodes = Callable[..., Node]
IMAGE = Made(sop="1.2.3.4")


def test_images_that_came_first_are_delivered_once_there_is_a_route(make_node: Nodes, tmp_path: Path) -> None:
    remote, node = make_node("remote").start(), make_node("node").start()
    send(node, IMAGE, tmp_path)
    eventually(lambda: node.stored(), 20, "stored")
    node.configure(destinations=destination("remote", remote.tls_port))
    command(node, "reload")
    assert command(node, "deliver", "--to", "remote", "--all") == "remote: 1 to be delivered\n"
    eventually(lambda: remote.stored().keys() == {IMAGE.sop}, 20, "the remote has it")
    # The remote loses it; it is sent again, since a person says so.
    remote.stop()
    for path in remote.store.rglob("*.dcm"):
        path.unlink()
    remote.start()
    assert "1 to be delivered again" in command(
        node, "deliver", "--to", "remote", "--sop", IMAGE.sop, "--again"
    )
    eventually(lambda: [*remote.store.rglob("*.dcm")], 20, "the remote has it again")


def test_corrected_image_in_quarantine_is_an_alarm(make_node: Nodes, tmp_path: Path) -> None:
    node = make_node("node").start()
    send(node, IMAGE, tmp_path)
    send(node, Made(sop=IMAGE.sop, pixels=b"corrected!"), tmp_path)
    eventually(lambda: node.query("SELECT 1 FROM instances WHERE state = 'quarantined'"), 20, "set aside")
    (alarm,) = json.loads(command(node, "status", "--json"))["alarms"]
    assert alarm["name"] == "set_aside"
    assert "ingest quarantine list" in alarm["remedy"]
