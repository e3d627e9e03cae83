"""Certificates that stand in no file of the node, since their authority is trusted: they are seen in use."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ingest.tls.keys import pairs
from tests.faults.caller import Caller
from tests.support.instances import Made
from tests.support.nodes import Node, destination, eventually
from tests.support.peers import CT, EXPLICIT, PynetdicomRemote
from tests.support.pki import Material


def test_end_of_what_peers_and_destinations_show_is_told(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    material = Material(tmp_path / "pki")
    site = pairs.issue_authority("site", key_type="ec")
    pairs.add_to_bundle(site.certificate, material.trusted)
    for name, days in (("node", 90), ("ct1", 5), ("remote", 20), ("anybody", 5), ("other", 15)):
        begin = datetime.now(UTC) - timedelta(days=1)
        made = pairs.issue_signed(name, site, names=["localhost"], key_type="ec", start=begin, days=days + 1)
        pairs.write_pair(made, material.folder / name)
    with PynetdicomRemote([(CT, [EXPLICIT])], tls=material.tls("remote")) as remote:
        node = make_node()
        node.material = material
        node.configure(
            peers='[[peers]]\nae_title = "CT1"\ncertificate = "CN=ct1"\nissuer = "CN=site"\n'
            '[[peers]]\nae_title = "OTHER"\n'
            '[[peers]]\nae_title = "*"\nissuer = "CN=site"',
            destinations=destination("remote", remote.port),
        )
        node.start()
        for calling, name in (("CT1", "ct1"), ("OTHER", "anybody"), ("NEW", "other")):
            with Caller.tls(node, name) as caller:
                caller.associate(calling=calling)
                assert caller.store(Made(sop=f"2.25.{len(name)}")).status == 0
        eventually(lambda: len(remote.stored) == 3, 30)
        ends = {(row["role"], *row["whose"], row["subject"]): row["days_left"] for row in _status(node)}
        assert {who: round(left) for who, left in ends.items() if who[0] != "trusted"} == {
            ("own", "CN=node"): 90,
            ("peer", "CT1", "CN=ct1"): 5,
            ("peer", "*", "CN=other"): 15,
            ("destination", "remote", "CN=remote"): 20,
        }
        assert "its certificate (CN=remote) ends" in _ingest(node, "check", "--connect")
    assert "peers.CT1: its certificate (CN=ct1) ends" in _ingest(node, "check")
    assert not node.events("certificate_ends")
    node.stop()
    node.start()
    eventually(lambda: len(node.events("certificate_ends")) == 3, 10)
    told = {event["key"]: (event["level"], event["within_days"]) for event in node.events("certificate_ends")}
    assert told == {
        "peers.CT1": ("warning", 7),
        "peers.*": ("warning", 30),
        "destinations.remote": ("warning", 30),
    }


def test_status_tells_what_is_in_force_and_that_files_have_changed(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    material = Material(tmp_path / "pki")
    write = {"key_type": "ec", "names": ["localhost"]}
    pairs.write_pair(pairs.issue_self_signed("old", **write), material.folder / "node")  # type: ignore[arg-type]
    material.trusted.write_bytes(material.certificate("node").read_bytes())
    node = make_node()
    node.material = material
    node.configure()
    node.start()
    assert [row["subject"] for row in _status(node)] == ["CN=old", "CN=old"]
    new = pairs.issue_self_signed("new", **write)  # type: ignore[arg-type]
    pairs.write_pair(new, material.folder / "node", force=True)
    *rows, changed = _status(node)
    assert [row["subject"] for row in rows] == ["CN=old", "CN=old"]
    assert "`ingest reload` reads them" in changed["error"]
    _ingest(node, "reload")
    assert [row["subject"] for row in _status(node)] == ["CN=new", "CN=old"]


def _ingest(node: Node, *arguments: str) -> str:
    command = [sys.executable, "-m", "ingest.cli", *arguments, "-c", str(node.config_path)]
    deadline = time.monotonic() + 20
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    while done.returncode == 2 and time.monotonic() < deadline:  # a busy node is late with its heartbeats
        time.sleep(0.5)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in {0, 1}, done.stderr
    return " ".join((done.stdout + done.stderr).split())


def _status(node: Node) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(_ingest(node, "status", "--json"))["certificates"]
    return rows
