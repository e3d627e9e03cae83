"""`ingest send --to` and `ingest echo --to`: real nodes and DCMTK, with mutual TLS."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from pydicom.data import get_testdata_file

from ingest.cli import main
from tests.support.nodes import Node, eventually
from tests.support.peers import AE_TITLE, storescp
from tests.support.pki import Material
from tests.support.ports import free_port

CT = Path(str(get_testdata_file("CT_small.dcm")))

DESTINATION = """
[[destinations]]
name = "{name}"
ae_title = "{ae_title}"
host = "localhost"
port = {port}
calling_ae_title = "SENDER"
connect_seconds = 3
tls = {tls}
"""


@pytest.fixture
def write(tmp_path: Path, material: Material) -> Callable[..., Path]:
    """Writes a configuration of a sender with a certificate, and a destination for each given port."""

    def write_destinations(**ports: int) -> Path:
        path = tmp_path / "sender.toml"
        text = (
            f'[node]\nae_title = "NODE"\ndata_dir = "var"\n[tls.peer]\ncheck_server_name = true\n'
            f'certificate = "{material.certificate("peer")}"\nprivate_key = "{material.key("peer")}"\n'
            f'trusted = ["{material.trusted}"]\n'
        )
        path.write_text(
            text
            + "".join(
                DESTINATION.format(name=name, port=port, ae_title=AE_TITLE, tls='"peer"')
                for name, port in ports.items()
            )
        )
        return path

    return write_destinations


def run(*words: object, **environ: str) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], env={"COLUMNS": "300", **environ})


def test_files_go_to_a_destination_with_its_certificate_and_titles(
    make_node: Callable[..., Node], write: Callable[..., Path], material: Material
) -> None:
    # The node admits only this AE title, and only with this certificate.
    fingerprint = _fingerprint(material.certificate("peer"))
    node = make_node(
        peers=f'[[peers]]\nae_title = "SENDER"\ncertificate = "{fingerprint}"',
        receive="[receive]\nprocesses = 1\nmin_free_bytes = 0\ncheck_called_ae = true",
        node=f'[node]\nae_title = "{AE_TITLE}"\ndata_dir = "var"',
    ).start()
    path = write(node=node.tls_port)
    answered = run("echo", "--to", "node", INGEST_CONFIG=str(path))
    assert (answered.exit_code, "answered the C-ECHO" in answered.stdout) == (0, True), answered.output
    sent = run("send", "-c", path, "--to", "node", CT)
    assert (sent.exit_code, "1 of 1 stored" in sent.stdout) == (0, True), sent.output
    eventually(node.stored, 20, "it is stored")
    # The old form has none of that, and is refused.
    words = ("localhost", node.tls_port, "--tls-trusted", material.trusted)
    assert run("echo", *words).exit_code == 1
    assert run("send", *words, CT).exit_code == 1


def _fingerprint(path: Path) -> str:
    from ingest.tls.keys.pairs import read_identities

    return read_identities(path)[0].fingerprint


def test_dcmtk_takes_files_from_a_folder_that_are_sent_by_name(
    write: Callable[..., Path], material: Material, tmp_path: Path
) -> None:
    (tmp_path / "study").mkdir()
    for name in ("a.dcm", "b.dcm"):
        (tmp_path / "study" / name).write_bytes(CT.read_bytes())
    with storescp(tmp_path / "scp", material.tls("remote")) as port:
        path = write(dcmtk=port, away=free_port())
        assert run("echo", "-c", path, "--to", "dcmtk").exit_code == 0
        sent = run("send", "-c", path, "--to", "dcmtk", "-j", "2", tmp_path / "study")
        assert (sent.exit_code, "2 of 2 stored" in sent.stdout) == (0, True), sent.output
    assert [*(tmp_path / "scp").iterdir()]


def test_destination_that_does_not_answer_is_told_with_key_and_remedy(write: Callable[..., Path]) -> None:
    path = write(there=free_port(), away=free_port())
    result = run("echo", "-c", path, "--to", "away")
    assert result.exit_code == 1
    assert "destinations[1].port" in result.stdout
    assert "start the remote" in result.stdout


def test_unknown_name_lists_the_known_ones(write: Callable[..., Path]) -> None:
    path = write(archive=free_port(), pacs=free_port())
    for command in (["echo"], ["send", CT]):
        result = run(*command, "-c", path, "--to", "pac")
        assert result.exit_code == 1
        assert 'no destination "pac"' in result.stderr
        assert "archive, pacs" in result.stderr


def test_broken_files_of_another_section_do_not_matter(
    write: Callable[..., Path], material: Material, tmp_path: Path
) -> None:
    with storescp(tmp_path / "scp", material.tls("remote")) as port:
        path = write(dcmtk=port)
        (tmp_path / "broken.crt").write_text("no certificate")
        broken = DESTINATION.format(name="broken", port=104, ae_title="B", tls='"broken"')
        path.write_text(path.read_text() + f'{broken}[tls.broken]\ntrusted = ["broken.crt"]\n')
        assert run("echo", "-c", path, "--to", "dcmtk").exit_code == 0
        assert run("echo", "-c", path, "--to", "broken").exit_code == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["echo", "--to", "pacs", "localhost", "104"], "localhost 104 and --to exclude each other"),
        (["send", "--to", "pacs", "localhost", "104", str(CT)], "localhost 104 and --to exclude each other"),
        (["echo", "--to", "pacs", "-aec", "PACS"], "leave -aec out"),
        (["echo", "--to", "pacs", "--tls-no-verify", "-aet", "A"], "leave -aet, --tls-no-verify out"),
        (["send", "--to", "pacs"], "name FILES"),
        (["send", "localhost", "104"], "name FILES"),
        (["send"], "name HOST, PORT and FILES, or a destination"),
        (["echo"], "name HOST and PORT, or a destination"),
        (["echo", "localhost", "0"], "'0' is no port"),
        (["echo", "localhost", "104", "105"], "105 is too much"),
    ],
)
def test_address_and_name_are_not_mixed(write: Callable[..., Path], words: list[str], said: str) -> None:
    result = run(*words, INGEST_CONFIG=str(write(pacs=free_port())))
    assert result.exit_code == 2
    assert said in result.stderr


def test_name_and_configuration_need_each_other(write: Callable[..., Path]) -> None:
    path = write(pacs=free_port())
    assert "needs the name of a destination" in run("echo", "-c", path, "localhost", "104").stderr
    environ = {name: value for name, value in os.environ.items() if name != "INGEST_CONFIG"}
    command = [sys.executable, "-m", "ingest.cli", "echo", "--to", "pacs"]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60)
    assert (done.returncode, "-c FILE" in done.stderr) == (2, True)
