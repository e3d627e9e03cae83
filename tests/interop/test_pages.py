"""The how-to pages of docs/: the commands of each run in their order, beside a running node."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.nodes import Node, cleaned, destination, eventually
from tests.support.pages import DOCS, SHELL, Walk, read_blocks
from tests.support.peers import PynetdicomRemote, require_program
from tests.support.pki import Material
from tests.support.ports import free_port
from tests.support.scenes import SOP_CLASSES, STUDIES

ELSEWHERE = {
    "install-containers.md": "tests/install/test_container.py and test_compose.py",
    "install-debian.md": "tests/install/test_deb.py",
    "install-kubernetes.md": "tests/unit/deployment/test_kubernetes_files.py",
    "install-with-pip.md": "tests/install/test_pip_road.py",
    "tls.md": "tests/interop/test_recipes.py",
    "troubleshooting.md": "tests/interop/test_troubleshooting.py",
}
"""Pages whose commands another test runs."""

PAGES = sorted(
    page
    for page in (DOCS / "how-to").glob("*.md")
    if page.name not in ELSEWHERE and any(block.language in SHELL for block in read_blocks(page))
)
README = DOCS.parent / "README.md"
EXPLICIT = "1.2.840.10008.1.2.1"


@dataclass
class Site:
    """A running node with images, in whose folder pages are followed."""

    node: Node
    ports: dict[str, int]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, material: Material) -> Iterator[Site]:
    """The node that the pages speak of: with images, destinations, a console and files to send."""
    folder = tmp_path_factory.mktemp("pages")
    console = free_port()
    contexts = [(uid, [EXPLICIT]) for uid in SOP_CLASSES.values()]
    with PynetdicomRemote(contexts) as remote, cleaned(Node(folder, material)) as node:
        names = ("archive", "pacs", "ai", "second-site")
        node.configure(
            routes="\n".join(destination(name, remote.port, tls=False) for name in names),
            console=f"[console]\nport = {console}",
            receive="[receive]\nprocesses = 1\nmin_free_bytes = 0",
        )
        _add_files(folder, material)
        node.start()
        walk = Walk(folder)
        for number, study in enumerate(STUDIES[:2]):
            files = [str(path) for path in study.write(folder / f"study-{number}", only=2)]
            walk.run(f"command ingest send localhost {node.plain_port} {' '.join(files)} -aet CT1")
        eventually(lambda: node.deliveries().get("delivered") == 16, 30, "everything is delivered")
        yield Site(node, {"2762": node.tls_port, "8080": console})


def _add_files(folder: Path, material: Material) -> None:
    (folder / "pki").mkdir()
    for name in ("node.crt", "node.key", "trusted.crt"):
        shutil.copy(material.folder / name, folder / "pki" / name)
    shutil.copy(material.trusted, folder / "trusted.crt")
    shutil.copy(DOCS.parent / "config" / "orthanc.json", folder / "orthanc.json")
    STUDIES[3].write(folder / "made", only=1)[0].rename(folder / "sample.dcm")
    (folder / "old-incoming").mkdir()
    STUDIES[2].write(folder / "old-incoming", only=2)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_the_page_run_as_they_are_printed(site: Site, page: Path) -> None:
    blocks = read_blocks(page)
    for program in ("storescu", "echoscu"):
        if any(program in block.commands for block in blocks if block.language in SHELL):
            require_program(program)
    with Walk(site.node.folder, site.ports) as walk:
        for block in blocks:
            walk.follow(block)


def test_the_readme_leads_from_nothing_to_a_stored_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = [block for block in read_blocks(README, "Five minutes") if block.language in SHELL]
    ports = {"2762": free_port(), "8080": free_port()}
    monkeypatch.setenv("INGEST_LISTENERS__0__PORT", str(ports["2762"]))
    monkeypatch.setenv("INGEST_CONSOLE__PORT", str(ports["8080"]))
    STUDIES[0].write(tmp_path / "FOLDER", only=1)
    with Walk(tmp_path, ports) as walk:
        first, second = blocks
        walk.follow(first)
        said = walk.follow(second)
        eventually(lambda: list((tmp_path / "site/var/store").rglob("*.dcm")), 20, "the image is stored")
    assert re.search(r"\b(\d+) of \1 stored", said), said
    assert "token: ingest_" in said
