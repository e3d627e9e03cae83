"""`ingest check --connect`: each thing that may be wrong with a destination, provoked with a real program."""

import contextlib
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.checks.connect import EchoAnswer, echo_destinations
from ingest.config.faults import Fault
from ingest.config.model import TLS, Config, Destination, NodeSettings
from ingest.errors import Cause
from ingest.tls.keys import pairs
from tests.interop.orthanc import orthanc
from tests.support.nodes import eventually
from tests.support.peers import AE_TITLE, Conversation, ScriptedPeer, require_program, storescp
from tests.support.pki import Material
from tests.support.ports import free_port
from tests.support.servers import Valkey


def config(port: int, tls: TLS | None, **keys: object) -> Config:
    values = {"host": "localhost", "ae_title": AE_TITLE, "connect_seconds": 5.0, **keys}
    destination = Destination(name="pacs", port=port, tls="node" if tls else False, **values)  # type: ignore[arg-type]
    return Config(
        node=NodeSettings(data_dir=Path("/nonexistent")),
        tls={"node": tls} if tls else {},
        destinations=(destination,),
    )


def ask(port: int, tls: TLS | None, **keys: object) -> EchoAnswer | Fault:
    [result] = echo_destinations(config(port, tls, **keys))
    return result


def fault(port: int, tls: TLS | None, **keys: object) -> Fault:
    result = ask(port, tls, **keys)
    assert isinstance(result, Fault), result
    assert result.key.startswith("destinations[0].")
    assert "pacs: " in result.cause
    return result


@contextlib.contextmanager
def s_server(certificate: Path, key: Path, *options: str) -> Iterator[int]:
    """OpenSSL's own server, for what DICOM programs cannot be made to do."""
    program, port = require_program("openssl"), free_port()
    command = [
        program,
        "s_server",
        "-accept",
        str(port),
        "-cert",
        str(certificate),
        "-key",
        str(key),
        *options,
    ]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        eventually(lambda: _listens(port), 10, "s_server listens")
        yield port
    finally:
        process.kill()
        process.communicate()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        # SO_REUSEADDR lets a bind pass beside what was closed, not beside who listens.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
        return False


@pytest.fixture
def ours(material: Material) -> TLS:
    return material.tls("node")


def test_destinations_that_answer_are_said_so(material: Material, ours: TLS, tmp_path: Path) -> None:
    with storescp(tmp_path / "scp", material.tls("remote")) as port:
        result = ask(port, ours)
        assert isinstance(result, EchoAnswer)
        assert result.seconds < 5
    with orthanc(material, "remote") as server:
        assert isinstance(ask(server.dicom_port, ours, ae_title="ORTHANC"), EchoAnswer)


# -- TLS and plain


def test_tls_to_a_plain_port(ours: TLS, tmp_path: Path) -> None:
    with storescp(tmp_path / "scp", None) as port:
        found = fault(port, ours)
    assert found.key.endswith(".tls")
    assert "tls = false" in found.remedy


def test_plain_to_a_tls_port(material: Material, tmp_path: Path) -> None:
    with storescp(tmp_path / "scp", material.tls("remote")) as port:
        found = fault(port, None)
    assert found.key.endswith(".tls")
    assert "the remote has TLS" in found.remedy


# -- certificates


def test_remote_that_we_do_not_trust(material: Material, ours: TLS, tmp_path: Path) -> None:
    with storescp(tmp_path / "scp", material.tls("stranger")) as port:
        found = fault(port, ours)
    assert "verify code 18" in found.cause
    assert "[tls.node] trusted" in found.remedy


def test_remote_that_does_not_trust_us(material: Material, tmp_path: Path) -> None:
    for options in ((), ("-tls1_2",)):
        with s_server(
            material.certificate("remote"), material.key("remote"), "-Verify", "1", "-verify_return_error",
            "-CAfile", str(material.certificate("other")), *options,
        ) as port:  # fmt: skip
            found = fault(port, material.tls("peer"))
        assert "unknown ca" in found.cause
        assert "have the remote trust [tls.node] certificate" in found.remedy


def test_remote_that_dcmtk_lets_not_trust_us(material: Material, tmp_path: Path) -> None:
    suspicious = material.tls("remote").model_copy(update={"trusted": (material.certificate("other"),)})
    with storescp(tmp_path / "scp", suspicious) as port:
        assert "have the remote trust" in fault(port, material.tls("node")).remedy


def test_expired_certificate_of_the_remote(material: Material, ours: TLS, tmp_path: Path) -> None:
    with storescp(tmp_path / "scp", material.tls("expired")) as port:
        found = fault(port, ours)
    assert "expired" in found.cause
    assert "remote's certificate replaced" in found.remedy


def test_our_own_certificate_has_expired(material: Material) -> None:
    with s_server(
        material.certificate("remote"), material.key("remote"), "-Verify", "1", "-verify_return_error",
        "-CAfile", str(material.trusted),
    ) as port:  # fmt: skip
        found = fault(port, material.tls("expired"))
    assert "expired" in found.cause
    assert "replace [tls.node] certificate" in found.remedy


def test_name_that_the_certificate_does_not_have(material: Material, tmp_path: Path) -> None:
    pairs.write_pair(
        pairs.issue_self_signed("elsewhere", names=["elsewhere.example.org"]), tmp_path / "elsewhere"
    )
    named = TLS(
        certificate=material.certificate("node"),
        private_key=material.key("node"),
        trusted=(tmp_path / "elsewhere.crt",),
        check_server_name=True,
    )
    with s_server(tmp_path / "elsewhere.crt", tmp_path / "elsewhere.key") as port:
        found = fault(port, named)
    assert found.key.endswith(".host")
    assert "check_server_name" in found.remedy


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_certificate_that_we_do_not_have(material: Material, version: str) -> None:
    anonymous = TLS(trusted=(material.trusted,))
    with s_server(material.certificate("remote"), material.key("remote"), "-Verify", "1", version) as port:
        found = fault(port, anonymous)
    assert "set certificate and private_key in [tls.node]" in found.remedy


# -- versions and ciphers


def test_no_common_version(material: Material, ours: TLS) -> None:
    new = ours.model_copy(update={"profile": "custom", "minimum_version": "TLSv1.3"})
    with s_server(material.certificate("remote"), material.key("remote"), "-tls1_2") as port:
        found = fault(port, new)
    assert "minimum_version" in found.remedy


def test_no_common_cipher(material: Material, ours: TLS) -> None:
    options = ("-tls1_2", "-cipher", "AES128-SHA256")
    with s_server(material.certificate("remote"), material.key("remote"), *options) as port:
        found = fault(port, ours)
    assert "none is common to both" in found.remedy


# -- the network, and DICOM


def test_nobody_there(ours: TLS) -> None:
    assert "start the remote" in fault(free_port(), ours).remedy


def test_name_that_nobody_knows(ours: TLS) -> None:
    assert "correct the name" in fault(104, ours, host="nobody.invalid").remedy


def test_remote_that_takes_the_connection_and_says_nothing(ours: TLS) -> None:
    with ScriptedPeer(lambda peer: peer.read(10_000) and None) as peer:
        found = fault(peer.port, ours, connect_seconds=1.0)
    assert found.key.endswith(".tls")


def test_called_ae_title_that_the_remote_has_not(material: Material, ours: TLS) -> None:
    with orthanc(material, "remote", DicomCheckCalledAet=True) as server:
        found = fault(server.dicom_port, ours, ae_title="OTHER")
    assert found.key.endswith(".ae_title")
    assert "use the AE title that the remote has" in found.remedy


def test_calling_ae_title_that_the_remote_does_not_know(material: Material, ours: TLS) -> None:
    strict = {"DicomAlwaysAllowEcho": False, "DicomAlwaysAllowStore": False}
    with orthanc(material, "remote", **strict) as server:
        found = fault(server.dicom_port, ours, ae_title="ORTHANC")
    assert "enter our AE title INGEST" in found.remedy


def test_remote_without_verification() -> None:
    def script(peer: Conversation) -> None:
        peer.accept(refuse=lambda *_: True)
        peer.serve()

    with ScriptedPeer(script) as peer:
        assert "Verification" in fault(peer.port, None).remedy


# -- the command


def test_command_says_who_answers_and_fails_for_who_does_not(
    material: Material, tmp_path: Path, redis_server: Valkey
) -> None:
    from click.testing import CliRunner

    from ingest.cli import main

    path = tmp_path / "node.toml"
    with storescp(tmp_path / "scp", material.tls("remote")) as port:
        destinations = "".join(
            f'[[destinations]]\nname = "{name}"\nae_title = "{AE_TITLE}"\nhost = "localhost"\n'
            f"port = {number}\n"
            for name, number in (("there", port), ("away", free_port()))
        )
        path.write_text(
            f'[node]\ndata_dir = "{tmp_path}/var"\n[queue]\nurl = "{redis_server.url}"\n[tls.node]\n'
            f"certificate = {json.dumps(str(material.certificate('node')))}\n"
            f"private_key = {json.dumps(str(material.key('node')))}\n"
            f"trusted = [{json.dumps(str(material.trusted))}]\n{destinations}"
        )
        result = CliRunner().invoke(main, ["check", "--connect", "-c", str(path)], env={"COLUMNS": "300"})
    assert result.exit_code == 1
    assert "there: " in result.output
    assert "answered in" in result.output
    assert "destinations[1].port" in result.output
    # There is no listener: a warning.
    assert "1 fault, 1 warning\n" in result.output


def test_every_cause_has_a_remedy() -> None:
    from ingest.checks.connect import _REMEDIES

    # These say what happened and not why, so the remedy is to look at the remote.
    unspecific = {Cause.NO_RESPONSE, Cause.ABORTED, Cause.REJECTED, Cause.RELEASED, Cause.PROTOCOL_ERROR}
    assert set(_REMEDIES) == set(Cause) - {Cause.CLOSED} - unspecific
