"""Audit messages of a real node in a real repository: DCMTK sends and receives, rsyslog collects over TLS."""

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from ingest.audit import record_application
from ingest.config.reader import load_config
from tests.interop.dcmtk import authenticated, echoscu, storescu
from tests.support.audit import Rsyslog, Said, audit_section, validate
from tests.support.instances import CT, Made
from tests.support.nodes import Node, cleaned, destination, eventually
from tests.support.peers import storescp
from tests.support.pki import Material
from tests.support.ports import free_port

TRANSFERRED, BEGIN = "DICOM Instances Transferred", "Begin Transferring DICOM Instances"


@pytest.fixture
def rsyslog(tmp_path: Path, material: Material) -> Iterator[Rsyslog]:
    repository = Rsyslog(tmp_path / "rsyslog", material)
    try:
        yield repository
    finally:
        repository.stop()


@pytest.fixture
def site(tmp_path: Path, material: Material, rsyslog: Rsyslog) -> Iterator[Node]:
    """A node that forwards to a storescp, and reports to an rsyslog that is not running yet."""
    with (
        storescp(tmp_path / "archive", material.tls("remote")) as port,
        cleaned(Node(tmp_path / "node", material)) as node,
    ):
        node.configure(audit=audit_section(rsyslog.port), destinations=destination("pacs", port))
        yield node


def send(node: Node, material: Material, folder: Path, *made: Made) -> None:
    folder.mkdir(exist_ok=True)
    files = [folder / f"{one.sop}.dcm" for one in made]
    for one, file in zip(made, files, strict=True):
        file.write_bytes(one.file)
    sent = storescu(
        node.tls_port, "-aet", "CT1", "-aec", "INGEST", *authenticated(material, "peer"), files=files
    )
    assert sent.returncode == 0, sent.stdout


def find(rsyslog: Rsyslog, event: str, study: str = "") -> list[Said]:
    return [said for said in rsyslog.said if said.event == event and (not study or study in said.objects)]


@pytest.mark.parametrize("driver", ["ossl", pytest.param("gtls", marks=pytest.mark.long)])
def test_reception_and_forwarding_reach_rsyslog_over_tls_with_both_certificates(
    driver: str, tmp_path: Path, material: Material, site: Node, rsyslog: Rsyslog
) -> None:
    rsyslog = Rsyslog(rsyslog.folder, material, driver=driver)
    site.configure(audit=audit_section(rsyslog.port))
    rsyslog.start()
    try:
        site.start()
        send(
            site,
            material,
            tmp_path / "files",
            Made(sop="1.2.3.1", study="1.2.3"),
            Made(sop="1.2.3.2", study="1.2.3"),
            Made(sop="1.2.4.1", study="1.2.4"),
        )
        eventually(lambda: len(find(rsyslog, TRANSFERRED)) == 4, 30, "four transfers")
        assert site.stop() == 0
        eventually(lambda: rsyslog.said[-1].types == ["Application Stop"], 10, "the stop")
    finally:
        rsyslog.stop()

    # One message for each association and study, and one for each destination and study.
    assert sorted(said.event for said in rsyslog.said) == sorted(
        [*["Application Activity"] * 2, *[BEGIN] * 2, *[TRANSFERRED] * 4]
    )
    received, sent = sorted(find(rsyslog, TRANSFERRED, "1.2.3"), key=lambda said: said.action)
    assert (received.action, received.classes, received.outcome) == ("C", {CT: 2}, "0")
    assert (received.users[0], received.addresses[0]) == ("CT1", "127.0.0.1")
    assert received.requestors == ["CT1"]
    assert received.root.find(".//Encrypted").text == "true"
    assert (sent.action, sent.classes) == ("R", {CT: 2})
    assert (sent.users[1], sent.addresses[1], len(sent.requestors)) == ("PACS", "localhost", 1)
    (begin,) = find(rsyslog, BEGIN, "1.2.3")
    assert begin.users == sent.users
    documents = [line.partition(b"\xef\xbb\xbf")[2] for line in rsyslog.received]
    assert validate(tmp_path, documents) == ""
    assert all(line.startswith(b"<85>1 ") and b" DICOM+RFC3881 - " in line for line in rsyslog.received)


def test_nothing_is_lost_while_the_repository_is_away_and_the_node_is_killed(
    tmp_path: Path, material: Material, site: Node, rsyslog: Rsyslog
) -> None:
    site.start()
    send(site, material, tmp_path / "files", Made(sop="1.2.3.1", study="1.2.3"))
    eventually(lambda: site.deliveries() == {"delivered": 1}, 30, "the delivery")
    site.kill_child("ingest-monitor")
    eventually(lambda: len(list((site.data / "audit/messages").iterdir())) == 4, 30, "start, begin, two ends")
    for path in (site.data / "audit").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    site.kill()
    rsyslog.start()
    site.start()
    # At least once: what was on its way when a process was killed may come twice.
    eventually(lambda: len(find(rsyslog, TRANSFERRED, "1.2.3")) >= 2, 60, "both transfers")
    # The repository is killed with an open connection, and the next study is sent meanwhile.
    rsyslog.stop(signal.SIGKILL)
    send(site, material, tmp_path / "files", Made(sop="1.2.4.1", study="1.2.4"))
    eventually(lambda: site.events("audit_repository_away"), 30, "that it is away")
    rsyslog.start()
    eventually(lambda: len(find(rsyslog, TRANSFERRED, "1.2.4")) >= 2, 60, "both transfers")
    assert {said.objects[0] for said in find(rsyslog, BEGIN)} == {"1.2.3", "1.2.4"}


def test_a_repository_that_the_node_does_not_trust_gets_nothing(
    tmp_path: Path, material: Material, make_node: Callable[..., Node], rsyslog: Rsyslog
) -> None:
    stranger = Rsyslog(tmp_path / "stranger", material, name="stranger")
    node = make_node(audit=audit_section(stranger.port, away_seconds=1))
    stranger.start()
    try:
        node.start()
        eventually(lambda: (node.data / "run/alarms/audit_away").exists(), 20, "the alarm")
        assert "CN=stranger" in (node.data / "run/alarms/audit_away").read_text()
        assert stranger.received == []
        assert len(list((node.data / "audit/messages").iterdir())) == 1
    finally:
        stranger.stop()


def test_refused_callers_and_a_refused_destination_become_security_alerts(
    tmp_path: Path, material: Material, make_node: Callable[..., Node]
) -> None:
    with storescp(tmp_path / "archive", material.tls("stranger")) as port:
        node = make_node(
            audit=audit_section(free_port(), events=["security"]),
            peers='[[peers]]\nae_title = "CT1"',
            destinations=destination("pacs", port),
        ).start()
        assert echoscu(node.tls_port, "-aet", "NOBODY", *authenticated(material, "peer")).returncode
        assert echoscu(node.tls_port, "-aet", "CT1", *authenticated(material, "stranger")).returncode
        send(node, material, tmp_path / "files", Made())
        folder = node.data / "audit/messages"
        found = eventually(lambda: len(found := read_queue(folder)) == 3 and found, 30, "three alerts")
    assert {said.types[0] for said in found} == {"Node Authentication"}
    causes = {said.users[1]: said.detail for said in found}
    assert "association refused" in causes["NOBODY"]
    assert "CN=stranger" in causes["127.0.0.1"]
    assert "CN=stranger" in causes["PACS"]
    assert (
        validate(tmp_path, [path.read_bytes().partition(b"\xef\xbb\xbf")[2] for path in folder.iterdir()])
        == ""
    )


def test_person_sends_a_test_message_and_sees_what_waits(
    tmp_path: Path, material: Material, make_node: Callable[..., Node], rsyslog: Rsyslog
) -> None:
    node = make_node(audit=audit_section(rsyslog.port))
    away = command(node, "audit", "send-test", code=1)
    assert f"the audit repository at localhost:{rsyslog.port}" in away
    assert "audit.host" in command(node, "check", "--connect", code=1)
    rsyslog.start()
    assert "look for it there" in command(node, "audit", "send-test")
    (said,) = eventually(lambda: rsyslog.said)
    assert (said.event, said.outcome, said.detail) == (
        "Security Alert",
        "0",
        "this is a test of the audit trail",
    )
    assert validate(tmp_path, [rsyslog.received[0].partition(b"\xef\xbb\xbf")[2]]) == ""
    node.data.mkdir()
    record_application(load_config(node.config_path), started=True)
    status = json.loads(command(node, "audit", "status", "--json"))
    assert (status["waiting"], status["dropped"], status["error"]) == (1, 0, "")


def test_messages_go_over_udp_only_on_demand(
    material: Material, make_node: Callable[..., Node], rsyslog: Rsyslog
) -> None:
    node = make_node(audit=audit_section(rsyslog.port, tls=False))
    assert "audit.tls" in command(node, "check", code=2)
    node.configure(audit=audit_section(rsyslog.port, tls=False, allow_plain=True))
    rsyslog.start()
    node.start()
    eventually(lambda: [said.types for said in rsyslog.said] == [["Application Start"]], 20, "the start")
    notices = [event["key"] for event in node.events("notice")]
    assert "audit.allow_plain" in notices


def read_queue(folder: Path) -> list[Said]:
    """The messages that wait."""
    return [Said.of_syslog(path.read_bytes()) for path in folder.glob("[!.]*")]


def command(node: Node, *arguments: str, code: int = 0) -> str:
    """What a command prints; it must exit with `code`."""
    done = subprocess.run(
        [sys.executable, "-m", "ingest.cli", *arguments, "-c", node.config_path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200"},
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_patient_is_named_as_the_index_allows_and_nowhere_else(
    tmp_path: Path, material: Material, site: Node, rsyslog: Rsyslog
) -> None:
    rsyslog.start()
    site.start(ledger='[ledger]\nindex = "full"')
    name, patient, accession = "Yamada^Tarou=山田^太郎=やまだ^たろう", "<script>x</script>", "A\"&'1"
    send_file(site, material, tmp_path, "1.2.3", name, patient, accession)
    found = eventually(lambda: len(found := find(rsyslog, TRANSFERRED, "1.2.3")) == 2 and found, 30, "both")
    found += find(rsyslog, BEGIN, "1.2.3")
    assert {(said.objects[1], said.names[1]) for said in found} == {(patient, name)}
    assert [said.accessions for said in found] == [[accession], [accession], []]
    assert validate(tmp_path, [line.partition(b"\xef\xbb\xbf")[2] for line in rsyslog.received]) == ""
    places = [site.folder / "log", *(path for path in (site.data / "run").rglob("*") if path.is_file())]
    spilled = [path for path in places for word in ("Yamada", "<script>", "山田") if word in read_text(path)]
    assert spilled == []

    site.configure(ledger='[ledger]\nindex = "none"')
    command(site, "reload")
    send_file(site, material, tmp_path, "1.2.4", name, patient, accession)
    found = eventually(lambda: len(found := find(rsyslog, TRANSFERRED, "1.2.4")) == 2 and found, 30, "both")
    assert {(said.objects[1], said.names[1], *said.accessions) for said in found} == {("", "")}


def send_file(node: Node, material: Material, folder: Path, study: str, *patient: str) -> None:
    """Send a file with a patient: name, ID and accession number in a multi-byte character set."""
    data = Dataset()
    data.SpecificCharacterSet = ["ISO 2022 IR 6", "ISO 2022 IR 87"]
    data.PatientName, data.PatientID, data.AccessionNumber = patient
    data.SOPClassUID, data.SOPInstanceUID = CT, f"{study}.1.1"
    data.StudyInstanceUID, data.SeriesInstanceUID = study, f"{study}.1"
    file = folder / f"{study}.dcm"
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.save_as(file, enforce_file_format=True)
    options = ["-aet", "CT1", *authenticated(material, "peer")]
    assert storescu(node.tls_port, *options, files=[file]).returncode == 0


def read_text(path: Path) -> str:
    """The text of a file, whatever it is."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
