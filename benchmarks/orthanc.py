"""Orthanc as a receiver: its own folders and ports; counted and cleared through its REST interface."""

import base64
import contextlib
import json
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.accounting import Group
from benchmarks.peers import LARGEST_PDU, find_program, said_by
from benchmarks.receivers import (
    Durability,
    Facts,
    Pki,
    Receiver,
    Target,
    Unavailable,
    free_port,
    target_of,
    wait_until,
)

USER, PASSWORD = "benchmark", "benchmark"
FORWARD = """
function OnStoredInstance(instanceId, tags, metadata)
  SendToModality(instanceId, 'next')
end
"""
HTTP_SECONDS = 120
PAGE = 1000


@dataclass(frozen=True, slots=True)
class OrthancReceiver:
    """A running Orthanc; `http_port` is that of its REST interface."""

    facts: Facts
    target: Target
    group: Group
    folder: Path
    http_port: int

    def stored(self) -> int:
        """How many instances it counts."""
        return int(self.ask("/statistics")["CountInstances"])

    def missing(self, uids: Iterable[str]) -> list[str]:
        """Those that its index does not name."""
        there: set[str] = set()
        while page := self.ask(f"/instances?expand&since={len(there)}&limit={PAGE}"):
            there.update(each["MainDicomTags"]["SOPInstanceUID"] for each in page)
        return [uid for uid in uids if uid not in there]

    def clear(self) -> None:
        """Delete every patient, and so everything below."""
        for patient in self.ask("/patients"):
            self.ask(f"/patients/{patient}", method="DELETE")

    def ask(self, path: str, *, method: str = "GET") -> Any:
        """Return the JSON answer to a request.

        Raises:
            OSError: It does not answer or answers a failure.
        """
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}", method=method)
        credentials = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        request.add_header("Authorization", f"Basic {credentials}")
        with urllib.request.urlopen(request, timeout=HTTP_SECONDS) as answer:
            return json.loads(answer.read())


@contextlib.contextmanager
def orthanc(base: Path, keys: Pki, *, durability: Durability) -> Iterator[Receiver]:
    """Orthanc with SQLite; `SyncStorageArea` (on by itself) is what it offers as durability."""
    with _orthanc("orthanc", base, keys, {}, durability) as receiver:
        yield receiver


@contextlib.contextmanager
def orthanc_nodelay(base: Path, keys: Pki, *, durability: Durability) -> Iterator[Receiver]:
    """Run Orthanc with TCP_NODELAY=1 in its environment, which the DCMTK inside reads."""
    with _orthanc("orthanc-nodelay", base, keys, {"TCP_NODELAY": "1"}, durability) as receiver:
        yield receiver


@contextlib.contextmanager
def orthanc_forwarding(base: Path, keys: Pki, *, durability: Durability, to: Target) -> Iterator[Receiver]:
    """Run `orthanc_nodelay` with a script that sends each stored instance on."""
    with _orthanc("orthanc-nodelay", base, keys, {"TCP_NODELAY": "1"}, durability, to) as receiver:
        yield receiver


@contextlib.contextmanager
def _orthanc(  # noqa: PLR0917 - one call site a receiver
    name: str,
    base: Path,
    keys: Pki,
    variables: dict[str, str],
    durability: Durability,
    to: Target | None = None,
) -> Iterator[Receiver]:
    program = _program()
    storage = base / "storage"
    storage.mkdir(parents=True, exist_ok=True)
    version = said_by(program, "--version").split()[1]
    http_port, dicom_port = free_port(), free_port()
    path = base / "orthanc.json"
    configuration = _configuration(storage, keys, http_port, dicom_port, durability)
    if to is not None:
        script = base / "forward.lua"
        script.write_text(FORWARD)
        modality = {"AET": to.called_ae, "Host": to.host, "Port": to.port, "UseDicomTls": True}
        configuration |= {"LuaScripts": [str(script)], "DicomModalities": {"next": modality}}
    path.write_text(json.dumps(configuration, indent=2))
    facts = Facts(name, version, durable=durability == "fsync")
    log = base / "log"
    # Otherwise a variable of whoever runs the benchmark would decide about Nagle's algorithm.
    environment = {key: value for key, value in os.environ.items() if key != "TCP_NODELAY"} | variables
    with Group(name) as group:
        with log.open("wb") as output:
            process = group.popen(
                [program, str(path)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=base,
                env=environment,
            )
        receiver = OrthancReceiver(facts, target_of(keys, dicom_port), group, base, http_port)
        wait_until(lambda: _answers(receiver), process, log)
        yield receiver


def _program() -> str:
    """Its name on the PATH, which differs by packager."""
    with contextlib.suppress(Unavailable):
        return find_program("Orthanc")
    return find_program("orthanc")


def _configuration(
    storage: Path, keys: Pki, http_port: int, dicom_port: int, durability: Durability
) -> dict[str, object]:
    return {
        "Name": "benchmark",
        "StorageDirectory": str(storage),
        "IndexDirectory": str(storage),
        "Plugins": [],
        "HttpPort": http_port,
        "RemoteAccessAllowed": False,
        "RegisteredUsers": {USER: PASSWORD},
        "DicomAet": "ANY-SCP",
        "DicomPort": dicom_port,
        "DicomThreadsCount": 64,  # 4 by itself; more associations than that would have to wait
        "MaximumPduLength": LARGEST_PDU,
        "DicomTlsEnabled": True,
        "DicomTlsCertificate": str(keys.certificate),
        "DicomTlsPrivateKey": str(keys.key),
        "DicomTlsTrustedCertificates": str(keys.trusted),
        "DicomTlsRemoteCertificateRequired": True,
        "DicomAlwaysAllowStore": True,
        "DicomCheckCalledAet": False,
        "SyncStorageArea": durability == "fsync",
    }


def _answers(receiver: OrthancReceiver) -> bool:
    try:
        return bool(receiver.ask("/system"))
    except OSError:
        return False
