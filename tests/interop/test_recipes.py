"""The recipes of docs/how-to/tls.md, each command as it is printed there."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ingest.dicom import dimse, uids, wire
from ingest.ext.encode import encode_p_data
from tests.interop.files import write_made
from tests.support.pages import Walk, read_blocks, serving
from tests.support.peers import require_program
from tests.support.ports import free_port

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "tls.md"
BLOCK = re.compile(r"```(sh|toml)\n(.*?)```", re.DOTALL)


class Recipe:
    """A folder in which one section of the page is followed, on ports of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {"2762": str(free_port()), "11112": str(free_port())}
        folder.mkdir(exist_ok=True)
        write_made(folder / "made", 1)[0].rename(folder / "sample.dcm")

    def blocks(self, title: str) -> list[tuple[str, str]]:
        """Language and text of each block of a section; what is TOML is written to the file that it names."""
        section = PAGE.read_text().partition(f"### {title}\n")[2]
        assert section, title
        found = BLOCK.findall(re.split(r"\n##+ ", section)[0])
        assert found, title
        return [(language, self._with_ports(text)) for language, text in found]

    def write(self, text: str) -> Path:
        path = self.folder / re.match(r"# (\S+)\n", text)[1]  # type: ignore[index]
        path.write_text(text)
        return path

    def run(self, text: str, expect: int = 0) -> str:
        """All commands of a block, by bash; stops at the first that fails."""
        environment = os.environ | {"PATH": f"{os.environ['PATH']}:{Path(sys.executable).parent}"}
        done = subprocess.run(
            ["bash", "-ec", text], cwd=self.folder, env=environment, capture_output=True, text=True,
            errors="replace", timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout + done.stderr

    @contextmanager
    def serving(self, configuration: Path) -> Iterator[None]:
        """The node, as the page says."""
        command = [sys.executable, "-m", "ingest.cli", "serve", "-c", str(configuration)]
        with (self.folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("ready"), (self.folder / "log").read_text()
            yield
        finally:
            process.terminate()
            process.communicate(timeout=60)

    def _with_ports(self, text: str) -> str:
        for printed, ours in self.ports.items():
            text = text.replace(printed, ours)
        return text


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    for program in ("openssl", "echoscu", "storescu", "storescp"):
        require_program(program)
    return Recipe(tmp_path / "recipe")


def followed(recipe: Recipe) -> list[tuple[str, str]]:
    """The pairs and the configuration of the first recipe, which the others go on with."""
    blocks = recipe.blocks("DCMTK, both sides with certificates")
    (_, pairs), (_, configuration), *rest = blocks
    recipe.run(pairs)
    recipe.write(configuration)
    return rest


def test_dcmtk_with_certificates_in_both_directions(recipe: Recipe) -> None:
    (_, there), (_, back) = followed(recipe)
    with recipe.serving(recipe.folder / "node.toml"):
        said = recipe.run(there)
        assert said.count("Received Echo Response (Success)") == 1
        assert "Received Store Response (Success)" in said
        said = recipe.run(back)
    assert "answered in" in said
    assert "1 of 1 stored" in said


def test_without_a_client_certificate(recipe: Recipe) -> None:
    followed(recipe)
    (_, configuration), (_, calls) = recipe.blocks("Without a client certificate")
    with recipe.serving(recipe.write(configuration)):
        assert recipe.run(calls).count("Received Echo Response (Success)") == 2
        port = recipe.ports["2762"]
        recipe.run(
            'openssl req -x509 -nodes -newkey rsa:2048 -keyout x.key -out x.crt -subj "/CN=x"\n'
            f"! echoscu localhost {port} +tls x.key x.crt +cf node.crt"
        )


def test_orthanc_with_certificates_in_both_directions(recipe: Recipe) -> None:
    for program in ("Orthanc", "curl"):
        require_program(program)
    followed(recipe)
    configuration, node, calls = read_blocks(PAGE, "Orthanc")
    with Walk(recipe.folder) as walk:
        walk.follow(configuration)
        walk.follow(node)
        with serving(walk.folder, node.file_name):
            said = walk.follow(calls)
    assert "answered in" in said
    assert "1 of 1 stored" in said
    assert '"InstancesCount" : 1' in said
    assert '"FailedInstancesCount" : 0' in said


def test_dcm4che_as_far_as_java_goes(recipe: Recipe) -> None:
    for program in ("java", "keytool"):
        require_program(program)
    followed(recipe)
    [(_, stores)] = recipe.blocks("dcm4che")
    assert "trustedCertEntry" in recipe.run(stores)
    request = wire.AssociateRequest(
        called_ae="INGEST",
        calling_ae="DCM4CHE",
        contexts=(wire.ProposedContext(1, uids.VERIFICATION, (uids.IMPLICIT_LITTLE_ENDIAN,)),),
        max_pdu_length=16384,
    )
    pdus = [
        wire.encode_associate_rq(request),
        encode_p_data(1, dimse.encode_echo_request(1), 16384),
        wire.RELEASE_RQ,
    ]
    program = Path(__file__).with_name("Echo.java")
    with recipe.serving(recipe.folder / "node.toml"):
        for version in ("TLSv1.2", "TLSv1.3"):
            told = recipe.run(
                f"java '{program}' {recipe.ports['2762']} dcm4che.p12 trust.p12 changeit {version} "
                + " ".join(pdu.hex() for pdu in pdus)
            ).splitlines()
            assert told[0].startswith(f"{version} TLS_")
            # A-ASSOCIATE-AC, P-DATA-TF, A-RELEASE-RP
            assert [line[:2] for line in told[1:]] == ["02", "04", "06"]


def test_key_material_is_made_and_converted_as_printed(recipe: Recipe) -> None:
    [(_, commands)] = recipe.blocks("Make and convert")
    said = recipe.run(commands)
    assert "trusted localhost" in said
    assert "belongs to CN=localhost" in said
    certificates = (recipe.folder / "trusted.crt").read_text().count("BEGIN CERTIFICATE")
    assert certificates == 3  # ct1, the authority, the node
    assert (recipe.folder / "copy.crt").read_bytes() == (recipe.folder / "node.crt").read_bytes()
    assert "PRIVATE" not in (recipe.folder / "trusted.crt").read_text()
