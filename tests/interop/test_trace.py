"""`ingest trace`: the way of an instance that DCMTK sends over TLS, through faults, to a remote."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest.ledger import Ledger
from tests.interop import dcmtk
from tests.support.instances import CT, EXPLICIT, Made, element
from tests.support.nodes import Node, eventually
from tests.support.peers import AE_TITLE, PynetdicomRemote, Stored
from tests.support.pki import Material
from tests.support.servers import postgresql, require_postgresql

NAME, ACCESSION = "PLANTED^PATIENT", "PLANTED77"
STUDY, SOP = "1.2.826.0.1.3680043.10.1599.77", "1.2.826.0.1.3680043.10.1599.77.1.1"


def ask(node: Node, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "ingest.cli", words[0], "-c", str(node.config_path), *words[1:]],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )


def traced(node: Node, uid: str) -> dict[str, Any]:
    done = ask(node, "trace", uid, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def write_instance(folder: Path, sop: str = SOP, study: str = STUDY) -> Path:
    made = Made(sop=sop, study=study, series=f"{study}.1")
    folder.mkdir(parents=True, exist_ok=True)
    name = element(0x0010, 0x0010, "PN", NAME.encode())
    at = made.data_set.index(b"\x20\x00\x0d\x00")  # groups 0008 and 0010 come before group 0020
    name = element(0x0008, 0x0050, "SH", ACCESSION.encode()) + name
    path = folder / "one.dcm"
    path.write_bytes(made.meta + made.data_set[:at] + name + made.data_set[at:])
    return path


@contextlib.contextmanager
def open_database(kind: str) -> Iterator[dict[str, str]]:
    """Yield the section of a ledger on this database."""
    if kind == "sqlite":
        yield {}
        return
    require_postgresql()
    with postgresql() as url:
        yield {"ledger": f'[ledger]\nurl = "{url}"'}


def destination(port: int) -> str:
    return (
        f'[[destinations]]\nname = "pacs"\nae_title = "{AE_TITLE}"\nhost = "127.0.0.1"\nport = {port}\n'
        'tls = false\nretry_first_seconds = 0.5\nretry_max_seconds = 1\n[[routes]]\nname = "all CT"\n'
        'to = ["pacs"]\n'
    )


def list_events(found: dict[str, Any]) -> list[tuple[str, str]]:
    return [(event["kind"], event["text"]) for event in found["events"]]


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_timeline_names_sender_route_each_answer_and_what_happens_next(
    database: str,
    make_node: Callable[..., Node],
    material: Material,
    tmp_path: Path,
) -> None:
    is_full = True

    def answer(_: Stored) -> int:
        return 0xA700 if is_full else 0xB006

    with open_database(database) as sections, PynetdicomRemote([(CT, [EXPLICIT])], answer=answer) as remote:
        node = make_node(destinations=destination(remote.port), **sections).start()
        options = dcmtk.authenticated(material, "peer")
        done = dcmtk.storescu(node.tls_port, *options, "-aet", "CT1", files=[write_instance(tmp_path)])
        assert done.returncode == 0, done.stdout

        def has_failed() -> bool:
            return len([kind for kind, _ in list_events(traced(node, SOP)) if kind == "attempt"]) >= 1

        eventually(lambda: ask(node, "trace", SOP).returncode == 0 and has_failed(), 30, "an attempt")
        node.kill()

        def list_steps() -> list[tuple[str, str]]:
            return [(step["destination"], step["remedy"]) for step in traced(node, SOP)["next_steps"]]

        eventually(lambda: list_steps() == [("pacs", "`ingest serve`")], 10, "no worker runs any more")

        is_full = False
        node.start()
        eventually(lambda: remote.stored or "delivered" in str(list_events(traced(node, STUDY))), 30)
        eventually(lambda: list_events(traced(node, SOP))[-1][0] == "delivered", 30, "delivered")

        found = traced(node, STUDY)
        assert found["kind"] == "study"
        events = list_events(found)
        assert [kind for kind, _ in events] == ["received", "stored", "routed", "attempt", "delivered"]
        texts = dict(events)
        assert texts["received"].startswith("from CT1 at 127.0.0.1 over TLS, certificate ")
        assert texts["routed"] == "by all CT, to pacs"
        assert texts["attempt"] == "answered A700H (out of resources, tried again)"
        assert texts["delivered"] == "answered B006H (elements discarded, stored with a warning)"
        assert found["next_steps"] == []
        (delivery,) = found["instances"][0]["deliveries"]
        assert next(attempt["status"] for attempt in delivery["failed_attempts"]) == "A700"
        assert delivery["duration_ms"] is not None
        for wanted, kind in ((ACCESSION, "accession number"), (f"{STUDY}.1", "series")):
            other = traced(node, wanted)
            assert (other["kind"], list_events(other)) == (kind, events)
        # INVARIANT 9: neither the timeline nor run/ nor the log names the patient.
        assert NAME not in ask(node, "trace", STUDY).stdout
        files = [path for path in (node.data / "run").rglob("*") if path.is_file()]
        for planted in (NAME, ACCESSION):
            assert not [path for path in files if planted.encode() in path.read_bytes()]
            assert planted not in node.log


def test_instance_in_the_spool_is_found_before_a_worker_records_it(
    make_node: Callable[..., Node], material: Material, tmp_path: Path
) -> None:
    for segments in (0, 65536):
        receive = f"[receive]\nprocesses = 1\nmin_free_bytes = 0\nsegment_max_bytes = {segments}"
        node = make_node(f"node{segments}", receive=receive)
        with contextlib.closing(Ledger(f"sqlite:///{node.data}/ledger.db")) as ledger:
            ledger.migrate()
        node.command = ("listen",)
        node.start()
        options = dcmtk.authenticated(material, "peer")
        done = dcmtk.storescu(node.tls_port, *options, "-aet", "CT1", files=[write_instance(tmp_path)])
        assert done.returncode == 0, done.stdout
        for uid, kind in ((SOP, "instance"), (STUDY, "study"), (ACCESSION, "accession number")):
            found = traced(node, uid)
            assert (found["kind"], found["study_uids"]) == (kind, [STUDY])
            assert [name for name, _ in list_events(found)] == ["received", "waiting"]
            assert [step["text"] for step in found["next_steps"]] == ["waits for a persist worker"]
        node.stop()


def test_unknown_uid_is_an_error_that_says_what_to_try(make_node: Callable[..., Node]) -> None:
    node = make_node().start()
    eventually(lambda: "no study or instance" in ask(node, "trace", "1.2.3.4").stderr, 20)
    done = ask(node, "trace", "1.2.3.4")
    assert done.returncode == 1
    assert "ingest studies" in done.stderr
    assert "ingest refusals" in done.stderr
    # INVARIANT 9: an accession number is patient data, and an error may reach a log.
    assert ACCESSION not in ask(node, "trace", ACCESSION).stderr
