"""One configuration for both: Orthanc starts with it, and a node in its place serves the same senders."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import AE

from ingest.config.reader import load_config
from tests.interop import dcmtk
from tests.interop.files import data_set, made_uid, write_made
from tests.support.nodes import Node, cleaned, eventually
from tests.support.peers import require_program
from tests.support.pki import Material
from tests.support.ports import free_port


@dataclass
class OrthancNode(Node):
    """A node whose configuration is Orthanc's."""

    settings: dict[str, Any] = field(default_factory=dict)
    file: str = "orthanc.json"

    @property
    def config_path(self) -> Path:
        return self.folder / self.file

    @property
    def data(self) -> Path:
        return self.folder / "OrthancStorage"

    def configure(self, **sections: str) -> None:
        """Write the file; keys of a node are none of Orthanc's."""
        assert not sections
        if self.file.endswith(".json"):
            self.folder.mkdir(parents=True, exist_ok=True)
            body = json.dumps(self.settings, indent=2)
            self.config_path.write_text(f"// of an Orthanc\n{body}\n/* the end */")


@pytest.fixture
def make_orthanc_node(tmp_path: Path, material: Material, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes nodes with files as the guide names them, not started yet; ends them after the test."""
    monkeypatch.setenv("INGEST_RECEIVE__MIN_FREE_BYTES", "0")
    monkeypatch.setenv("INGEST_LOG__FORMAT", "json")
    nodes = []

    def make_one(**settings: Any) -> OrthancNode:
        defaults = {"DicomPort": free_port(), "HttpPort": free_port(), "StorageDirectory": "OrthancStorage"}
        node = OrthancNode(tmp_path / "orthanc", material, settings={**defaults, **settings})
        node.configure()
        for name, source in (("orthanc", "node"), ("dcmtk", "peer")):
            for suffix in ("crt", "key"):
                origin = material.folder / f"{source}.{suffix}"
                (node.folder / f"{name}.{suffix}").write_bytes(origin.read_bytes())
        nodes.append(node)
        return node

    yield make_one
    for node in nodes:
        with cleaned(node):
            pass


TLS = {"DicomTlsEnabled": True, "DicomTlsCertificate": "orthanc.crt", "DicomTlsPrivateKey": "orthanc.key"}
WITH_CERTIFICATES = {**TLS, "DicomTlsTrustedCertificates": "dcmtk.crt"}
WITHOUT = {**TLS, "DicomTlsTrustedCertificates": "orthanc.crt", "DicomTlsRemoteCertificateRequired": False}


@contextlib.contextmanager
def orthanc_in_its_place(node: OrthancNode) -> Iterator[None]:
    """Orthanc itself takes the file, and knows what stands in it."""
    port = node.settings["HttpPort"]
    with (node.folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen(
            [require_program("Orthanc"), str(node.config_path)],
            cwd=node.folder,  # where Orthanc looks for the files of TLS
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )

    def answer() -> Any:
        assert process.poll() is None, (node.folder / "orthanc.log").read_text()[-2000:]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/system", timeout=5) as reply:
                return json.load(reply)
        except OSError:
            return None

    try:
        system = eventually(answer, 30, "Orthanc answers")
        assert system["DicomPort"] == node.settings["DicomPort"]
        yield
    finally:
        process.kill()
        process.wait(20)


def store(node: OrthancNode, path: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    return dcmtk.storescu(node.settings["DicomPort"], *options, files=[path])


def credentials(node: OrthancNode, name: str) -> list[str]:
    key, certificate = node.folder / f"{name}.key", node.folder / f"{name}.crt"
    return ["+tls", str(key), str(certificate), "+cf", str(node.folder / "orthanc.crt")]


def held(node: OrthancNode, uid: str) -> bytes:
    return data_set(eventually(lambda: node.stored().get(uid), what="the instance in the store"))


@pytest.mark.parametrize("settings", [WITH_CERTIFICATES, WITHOUT], ids=["certificates", "none"])
def test_set_ups_of_the_guide_serve_dcmtk_from_the_file_that_orthanc_takes(
    make_orthanc_node: Callable[..., OrthancNode],
    material: Material,
    tmp_path: Path,
    settings: dict[str, Any],
) -> None:
    modality = {"Host": "localhost", "Port": free_port(), "AET": "DCMTK", "UseDicomTls": True}
    node = make_orthanc_node(**settings, DicomModalities={"dcmtk": modality})
    with orthanc_in_its_place(node):
        pass
    node.start()
    assert node.tls_port == node.settings["DicomPort"]
    made = write_made(tmp_path / "made", 1)[0]
    anonymous = ["--anonymous-tls", "+cf", str(node.folder / "orthanc.crt")]
    if settings is WITHOUT:
        assert store(node, made, *anonymous).returncode == 0
    else:
        assert store(node, made, *credentials(node, "dcmtk")).returncode == 0
        assert store(node, made, *anonymous).returncode != 0
    # Whatever is asked for: a certificate that is presented must be trusted.
    stranger = dcmtk.authenticated(material, "stranger", node.folder / "orthanc.crt")
    assert store(node, made, *stranger).returncode != 0
    assert held(node, made_uid(0)) == data_set(made)
    notices = {event["key"]: event["cause"] for event in node.events("notice")}
    assert "HttpPort" in notices["Orthanc"]
    assert "without a route" in notices["DicomModalities"]
    assert [event["key"] for event in node.events("notice")].count("Orthanc") == 1


def test_imported_toml_serves_as_the_json_does(
    make_orthanc_node: Callable[..., OrthancNode], tmp_path: Path
) -> None:
    node = make_orthanc_node(**WITH_CERTIFICATES)
    node.start()
    first = write_made(tmp_path / "first", 1)[0]
    assert store(node, first, *credentials(node, "dcmtk")).returncode == 0
    held(node, made_uid(0))
    assert node.stop() == 0
    ingest = [sys.executable, "-m", "ingest.cli", "config", "import-orthanc", str(node.config_path)]
    root = Path(__file__).parents[2]
    subprocess.run(
        [*ingest, "-o", str(node.folder / "node.toml")], check=True, cwd=root, timeout=60, capture_output=True
    )
    node.file = "node.toml"
    node.start()
    second = write_made(tmp_path / "second", 1, first=1)[0]
    assert store(node, second, *credentials(node, "dcmtk")).returncode == 0
    assert held(node, made_uid(1)) == data_set(second)
    assert held(node, made_uid(0)) == data_set(first)


def test_callers_are_let_in_as_orthanc_does(
    make_orthanc_node: Callable[..., OrthancNode], tmp_path: Path
) -> None:
    modalities = {"ct": ["CT1", "127.0.0.1", 104], "far": ["FAR", "10.255.0.1", 104]}
    node = make_orthanc_node(
        DicomModalities=modalities,
        DicomAlwaysAllowStore=False,
        DicomCheckModalityHost=True,
        DicomCheckCalledAet=True,
        RejectedSopClasses=["1.2.840.10008.5.1.4.1.1.4"],
    )
    node.start()
    port, made = node.settings["DicomPort"], write_made(tmp_path / "made", 1)[0]
    called = ["-aec", "orthanc"]  # capitals do not count, for Orthanc
    assert dcmtk.echoscu(port, *called, "-aet", "ANYBODY").returncode == 0
    assert dcmtk.echoscu(port, "-aec", "OTHER", "-aet", "CT1").returncode != 0
    assert store(node, made, *called, "-aet", "ANYBODY").returncode != 0
    assert store(node, made, *called, "-aet", "FAR").returncode != 0
    assert store(node, made, *called, "-aet", "ct1").returncode == 0
    assert held(node, made_uid(0)) == data_set(made)


def answers(node: OrthancNode, made: Path) -> dict[str, str]:
    """What callers get: the instance stored, an echo, an association and nothing, or none."""
    found = {}
    for title in ("CT", "MR", "NONE", "FAR", "*", "OTHER"):
        stored = store(node, made, "-aet", title)
        if "Calling AE Title Not Recognized" in stored.stdout:
            found[title] = "rejected"
        elif stored.returncode == 0:
            found[title] = "stored"
        else:
            echoed = dcmtk.echoscu(node.settings["DicomPort"], "-aet", title)  # its exit code is 0 if aborted
            found[title] = "echoed" if "Received Echo Response (Success)" in echoed.stdout else "nothing"
    return found


def taken(node: OrthancNode, syntaxes: Sequence[str]) -> set[str]:
    caller = AE("CT")
    for syntax in syntaxes:
        caller.add_requested_context("1.2.840.10008.5.1.4.1.1.2", syntax)
    association = caller.associate("127.0.0.1", node.settings["DicomPort"], ae_title="ORTHANC")
    assert association.is_established
    found = {context.transfer_syntax[0] for context in association.accepted_contexts}
    association.release()
    return {str(syntax) for syntax in found}


def test_callers_and_transfer_syntaxes_get_from_both_what_one_file_says(
    make_orthanc_node: Callable[..., OrthancNode], tmp_path: Path
) -> None:
    here: dict[str, Any] = {"Host": "127.0.0.1", "Port": 104}
    modalities = {
        "a": {**here, "AET": "CT", "AllowStore": False},
        "b": ["CT", "127.0.0.1", 105],  # of several at one address any may allow
        "c": {**here, "AET": "MR", "AllowStore": False},
        "d": {**here, "AET": "NONE", "AllowStore": False, "AllowEcho": False},
        "e": ["FAR", "10.255.0.1", 104],
        "f": ["*", "127.0.0.1", 104],
    }
    arc = "1.2.840.10008.1.2"
    node = make_orthanc_node(
        DicomModalities=modalities,
        DicomAlwaysAllowEcho=False,
        DicomAlwaysAllowStore=False,
        DicomCheckModalityHost=True,
        AcceptedTransferSyntaxes=[f"{arc}.1", f"{arc}.4.9*", "1.2.3*"],
        JpegTransferSyntaxAccepted=True,
        RleTransferSyntaxAccepted=True,
        Jpeg2000TransferSyntaxAccepted=False,
    )
    made = write_made(tmp_path / "made", 1)[0]
    proposed = [
        arc,
        *(f"{arc}.{end}" for end in ("1", "2", "1.99", "4.50", "4.70", "4.80", "4.90", "4.94", "5")),
    ]
    proposed += ["1.2.3.4"]
    with orthanc_in_its_place(node):
        theirs = answers(node, made), taken(node, proposed)
    node.start()
    ours = answers(node, made)
    assert ours["*"] == "rejected"  # it would stand for everybody in [[peers]]
    assert (ours | {"*": "stored"}, taken(node, proposed)) == theirs
    assert theirs[0] == {
        "CT": "stored", "MR": "echoed", "NONE": "nothing",
        "FAR": "rejected", "*": "stored", "OTHER": "rejected",
    }  # fmt: skip
    assert theirs[1] == {f"{arc}.{end}" for end in ("1", "4.50", "4.70", "4.94", "5")}


def test_a_reload_reads_the_json_again(make_orthanc_node: Callable[..., OrthancNode]) -> None:
    node = make_orthanc_node(DicomAet="ONE", DicomCheckCalledAet=True)
    node.start()
    port = node.settings["DicomPort"]
    assert dcmtk.echoscu(port, "-aec", "ONE").returncode == 0
    node.settings["DicomAet"] = "TWO"
    node.configure()
    assert node.process is not None
    os.kill(node.process.pid, signal.SIGHUP)
    eventually(lambda: node.events("reloaded"), what="the reload")
    assert dcmtk.echoscu(port, "-aec", "TWO").returncode == 0
    assert dcmtk.echoscu(port, "-aec", "ONE").returncode != 0
    node.config_path.write_text('{ "DicomPort" : "x" }')
    os.kill(node.process.pid, signal.SIGHUP)
    eventually(lambda: "DicomPort: is not a whole number" in node.log, what="the refusal")
    assert dcmtk.echoscu(port, "-aec", "TWO").returncode == 0


def test_variables_and_what_jsoncpp_lets_pass_are_read_as_orthanc_reads_them(tmp_path: Path) -> None:
    port = free_port()
    text = (
        '// c\n{ "Name" : "${A}|${NONE}|${NONE:-fall back}|${A:-x}|${NONE:-\'q q\'}|${EMPTY:-x}",\n'
        '/* "Name" : "" */'
        f'"HttpPort" : ${{PORT:-{port}}}, "DicomServerEnabled" : false, "DicomAet" : "A", "DicomAet" : "B",\n'
        '"Plugins" : [ ], "AcceptedTransferSyntaxes" : [ "1.2.840.10008.1.*", ], } end'
    )
    (tmp_path / "orthanc.json").write_text(text)
    environ = {"A": "one", "EMPTY": ""}
    process = subprocess.Popen(
        [require_program("Orthanc"), str(tmp_path / "orthanc.json")],
        cwd=tmp_path,
        env={**os.environ, **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def answer() -> Any:
        assert process.poll() is None
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/system", timeout=5) as reply:
                return json.load(reply)
        except OSError:
            return None

    try:
        system = eventually(answer, 30, "Orthanc answers")
    finally:
        process.kill()
        process.wait(20)
    config = load_config(tmp_path / "orthanc.json", environ=environ)
    assert (config.node.name, config.node.ae_title) == (system["Name"], system["DicomAet"])
    assert re.fullmatch(r"one\|\|fall back\|one\|q q\|", config.node.name)
