"""The programs that call the node over TLS, with a certificate and in a TLS version of the test's choice."""

import json
import os
import ssl
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from pynetdicom import AE

from ingest.dicom import wire
from tests.faults.caller import request
from tests.interop import dcmtk
from tests.interop.orthanc import Orthanc
from tests.support.peers import VERIFICATION, require_program
from tests.support.pki import Material

DCMJS = Path(__file__).with_name("dcmjs")
RELEASE_RQ, RELEASE_RP = (bytes((kind, 0, 0, 0, 0, 4, 0, 0, 0, 0)) for kind in (5, 6))


@dataclass(frozen=True)
class Call:
    """One attempt.

    Attributes:
        name: Whose pair of `material` the caller shows; none where it is empty.
        version: "1.2" or "1.3".
        file: What a storing caller sends.
    """

    material: Material
    name: str
    version: str
    port: int
    file: Path


@dataclass(frozen=True)
class Came:
    """What came of it, and what the program said."""

    let_in: bool
    said: str


def _dcmtk(call: Call, program: str, *files: Path) -> Came:
    options = dcmtk.authenticated(call.material, call.name) if call.name else dcmtk.anonymous(call.material)
    # B.11 ends with TLS 1.2; with B.9 the newest that both have is taken.
    profile = {"1.2": "+pz", "1.3": "+px"}[call.version]
    done = dcmtk.scu(program, call.port, *options, profile, files=files)
    return Came(done.returncode == 0, done.stdout)


def echoscu(call: Call) -> Came:
    return _dcmtk(call, "echoscu")


def storescu(call: Call) -> Came:
    return _dcmtk(call, "storescu", call.file)


def orthanc(server: Orthanc, call: Call) -> Came:
    """By an Orthanc that runs with the certificate; its TLS version is what the listener leaves it."""
    try:
        answer = server.post(f"{server.know('node', call.port)}/echo", {})
    except AssertionError as error:
        return Came(False, str(error))
    return Came(answer == {}, str(answer))


def pynetdicom(call: Call) -> Came:
    context = ssl.create_default_context(cafile=str(call.material.trusted))
    context.check_hostname = False
    context.minimum_version = context.maximum_version = ssl.TLSVersion[
        f"TLSv{call.version.replace('.', '_')}"
    ]
    if call.name:
        context.load_cert_chain(call.material.certificate(call.name), call.material.key(call.name))
    ae = AE("PYNETDICOM")
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
    ae.add_requested_context(VERIFICATION)
    association = ae.associate("127.0.0.1", call.port, ae_title="INGEST", tls_args=(context, "localhost"))
    if not association.is_established:
        return Came(False, "")
    status = association.send_c_echo()
    association.release()
    association.join(10)
    return Came(status.get("Status") == 0, str(status))


def dcmjs(call: Call) -> Came:
    if not (DCMJS / "node_modules" / "dcmjs-dimse").is_dir():
        reason = "dcmjs-dimse is not installed; run npm ci in tests/interop/dcmjs"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    version = f"TLSv{call.version}"
    options = {"port": call.port, "minVersion": version, "maxVersion": version}
    options["ca"] = str(call.material.trusted)
    if call.name:
        options["cert"] = str(call.material.certificate(call.name))
        options["key"] = str(call.material.key(call.name))
    return _run(
        [require_program("node"), str(DCMJS / "echo.js"), json.dumps(options)], lambda done: not done[0]
    )


def s_client(call: Call) -> Came:
    """It speaks no DICOM: it is given an A-ASSOCIATE-RQ and an A-RELEASE-RQ to send."""
    command = [require_program("openssl"), "s_client", "-connect", f"127.0.0.1:{call.port}", "-quiet"]
    command += ["-CAfile", str(call.material.trusted), f"-tls{call.version.replace('.', '_')}"]
    if call.name:
        certificate = str(call.material.certificate(call.name))
        command += [
            "-cert",
            certificate,
            "-key",
            str(call.material.key(call.name)),
            "-cert_chain",
            certificate,
        ]
    sent = wire.encode_associate_rq(request()) + RELEASE_RQ
    return _run(command, lambda done: done[1][:1] == b"\x02" and done[1].endswith(RELEASE_RP), sent)


def _run(command: list[str], let_in: Callable[[tuple[int, bytes]], bool], sent: bytes = b"") -> Came:
    done = subprocess.run(command, input=sent, capture_output=True, timeout=60, check=False)
    said = (done.stdout + done.stderr).decode(errors="replace")
    return Came(let_in((done.returncode, done.stdout)), said)


CALLERS = {
    "echoscu": echoscu,
    "storescu": storescu,
    "pynetdicom": pynetdicom,
    "dcmjs": dcmjs,
    "s_client": s_client,
}
"""All but Orthanc, which is a server that has to be started with its certificate."""
