"""Lists of callers and refusals: real callers that are let in or refused, and a listener that dies."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ingest.tls.keys.pairs import read_identities
from tests.interop import dcmtk
from tests.interop.files import write_made
from tests.support.nodes import Node, eventually
from tests.support.pki import Material

PEERS = """
[[peers]]
ae_title = "CT1"
allow = ["store", "echo"]

[[peers]]
ae_title = "MR1"
hosts = ["192.0.2.1"]
"""


def ask(node: Node, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "ingest.cli", words[0], "-c", str(node.config_path), *words[1:]],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "NO_COLOR": "1"},
    )
    return done.stdout


def read_list(node: Node, command: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ask(node, command, "--json").splitlines()]


def fingerprint_of(material: Material, name: str) -> str:
    return read_identities(material.certificate(name), None)[0].fingerprint


def test_callers_and_refusals_by_cause_survive_a_listener_that_is_killed(
    make_node: Callable[..., Node], material: Material, tmp_path: Path
) -> None:
    receive = "[receive]\nprocesses = 1\nmin_free_bytes = 0\ncheck_called_ae = true"
    node = make_node(peers=PEERS, receive=receive).start()
    good = dcmtk.authenticated(material, "peer")
    files = write_made(tmp_path, 2)
    sent = dcmtk.storescu(node.tls_port, *good, "-aet", "CT1", "-aec", "INGEST", files=files)
    assert sent.returncode == 0, sent.stdout
    for options in (
        [*good, "-aet", "EVIL", "-aec", "INGEST"],
        [*good, "-aet", "MR1", "-aec", "INGEST"],
        [*good, "-aet", "CT1", "-aec", "OTHER"],
        [*dcmtk.authenticated(material, "stranger"), "-aet", "CT1"],
        [*dcmtk.authenticated(material, "expired"), "-aet", "CT1"],
        [*dcmtk.anonymous(material), "-aet", "CT1"],
        ["-aet", "CT1"],  # without TLS
    ):
        assert dcmtk.echoscu(node.tls_port, *options).returncode != 0
    assert dcmtk.echoscu(node.plain_port, *good, "-aet", "CT1").returncode != 0

    expected = {
        ("association", "calling_ae"),
        ("association", "host"),
        ("association", "called_ae"),
        ("tls", "unknown_ca"),
        ("tls", "expired"),
        ("tls", "no_certificate"),
        ("tls", "not_tls"),
        ("connection", "tls_to_plain"),
    }

    def find_causes() -> set[tuple[str, str]]:
        return {(group["kind"], group["cause"]) for group in read_list(node, "refusals")}

    eventually(lambda: expected <= find_causes(), 15, "all refusals are written")
    (listener,) = node.children("ingest-listen")
    os.kill(listener.pid, signal.SIGKILL)
    eventually(lambda: {each.pid for each in node.children("ingest-listen")} - {listener.pid}, 20)
    eventually(
        lambda: (
            dcmtk.echoscu(node.tls_port, *good, "-aet", "EVIL", "-aec", "INGEST").returncode != 0
            and next(group for group in read_list(node, "refusals") if group["cause"] == "calling_ae")[
                "count"
            ]
            >= 2
        ),
        30,
        "the successor goes on counting",
    )

    groups = {group["cause"]: group for group in read_list(node, "refusals")}
    assert expected <= find_causes()
    assert all(group["text"] and group["remedy"] for group in groups.values())
    (evil,) = groups["calling_ae"]["callers"]
    assert (evil["network"], evil["calling_ae"]) == ("127.0.0.1", "EVIL")
    assert evil["fingerprint"] == fingerprint_of(material, "peer")
    (stranger,) = groups["unknown_ca"]["callers"]
    assert stranger["fingerprint"] == fingerprint_of(material, "stranger")
    assert stranger["subject"] == "CN=stranger"
    assert groups["expired"]["remedy"].startswith("have its certificate replaced")
    page = ask(node, "refusals")
    assert "its certificate has ended: 1" in page
    assert fingerprint_of(material, "expired") in page

    def find_caller() -> dict[str, Any]:
        return next(each for each in read_list(node, "callers") if each["calling_ae"] == "CT1")

    caller = find_caller()
    assert (caller["network"], caller["associations"]) == ("127.0.0.1", 1)
    assert (caller["subject"], caller["fingerprint"]) == ("CN=peer", fingerprint_of(material, "peer"))
    assert caller["days_left"] > 1
    assert caller["refusals"] == 1  # it called another AE title
    # The ledger has the certificate, its title and the fingerprint of each instance.
    eventually(lambda: node.query("SELECT calling_ae FROM caller_titles") == [("CT1",)], 20)
    assert node.query("SELECT fingerprint, subject, issuer FROM caller_certificates") == [
        (fingerprint_of(material, "peer"), "CN=peer", "CN=peer")
    ]
    assert node.query("SELECT DISTINCT certificate FROM instances") == [(fingerprint_of(material, "peer"),)]
