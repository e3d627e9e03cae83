"""Orthanc as a process: DICOM over TLS in both roles, its REST interface, own folders and ports."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.nodes import eventually
from tests.support.peers import require_program
from tests.support.pki import Material
from tests.support.ports import free_port

USER, PASSWORD = "tests", "tests"
BOOT_SECONDS = 30


@dataclass
class Orthanc:
    """A running Orthanc.

    Attributes:
        folder: Holds its configuration, its log and its storage.
        dicom_port: Where it takes DICOM over TLS.
    """

    folder: Path
    dicom_port: int
    http_port: int

    def get(self, path: str) -> Any:
        """What `GET path` answers, as JSON."""
        return json.loads(self.request(path))

    def post(self, path: str, body: Any) -> Any:
        """What `POST path` answers, as JSON."""
        return json.loads(self.request(path, json.dumps(body).encode()))

    def upload(self, path: Path) -> str:
        """Give it a Part 10 file; returns Orthanc's own name for the instance."""
        return str(json.loads(self.request("/instances", path.read_bytes()))["ID"])

    def know(self, name: str, port: int, *, tls: bool = True) -> str:
        """Tell it of a modality; returns its path."""
        modality = {"AET": "INGEST", "Host": "127.0.0.1", "Port": port, "UseDicomTls": tls}
        self.request(f"/modalities/{name}", json.dumps(modality).encode(), "PUT")
        return f"/modalities/{name}"

    def request(self, path: str, body: bytes | None = None, method: str | None = None) -> bytes:
        """One HTTP request; a status that is no success raises with what Orthanc says."""
        url = f"http://127.0.0.1:{self.http_port}{path}"
        request = urllib.request.Request(url, data=body, method=method)
        credentials = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        request.add_header("Authorization", f"Basic {credentials}")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{path}: {error.code} {error.read()!r}\n{self.log[-3000:]}") from None

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def files(self, folder: Path) -> dict[str, Path]:
        """All that it holds, fetched as files into `folder`, by SOP instance UID."""
        folder.mkdir()
        found = {}
        for name in self.get("/instances"):
            uid = self.get(f"/instances/{name}")["MainDicomTags"]["SOPInstanceUID"]
            found[uid] = folder / f"{name}.dcm"
            found[uid].write_bytes(self.request(f"/instances/{name}/file"))
        return found

    def count(self) -> int:
        """How many instances it holds."""
        return int(self.get("/statistics")["CountInstances"])


@contextlib.contextmanager
def orthanc(material: Material, name: str, **settings: object) -> Iterator[Orthanc]:
    """Run Orthanc with the key pair `name`; `settings` are keys of its configuration."""
    program = require_program("Orthanc")
    folder = Path(tempfile.mkdtemp(prefix="orthanc"))
    server = Orthanc(folder, free_port(), free_port())
    configuration = {
        "Name": "tests",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [],
        "HttpPort": server.http_port,
        "RemoteAccessAllowed": False,
        "RegisteredUsers": {USER: PASSWORD},
        "DicomAet": "ORTHANC",
        "DicomPort": server.dicom_port,
        "DicomTlsEnabled": True,
        "DicomTlsCertificate": str(material.certificate(name)),
        "DicomTlsPrivateKey": str(material.key(name)),
        "DicomTlsTrustedCertificates": str(material.trusted),
        "DicomTlsRemoteCertificateRequired": True,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowEcho": True,
        "DicomCheckCalledAet": False,
        "UnknownSopClassAccepted": True,
        "StableAge": 1,
        **settings,
    }
    (folder / "storage").mkdir()
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, "--verbose", str(folder / "orthanc.json")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            # Without it every small write of the DCMTK inside waits for the acknowledgement of the last.
            env={**os.environ, "TCP_NODELAY": "1"},
        )
    try:
        eventually(lambda: _answers(server, process), BOOT_SECONDS, "Orthanc answers HTTP")
        yield server
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _answers(server: Orthanc, process: "subprocess.Popen[bytes]") -> bool:
    if process.poll() is not None:
        raise AssertionError(f"Orthanc ended with {process.returncode}\n{server.log[-3000:]}")
    try:
        return bool(server.get("/system"))
    except OSError:
        return False
