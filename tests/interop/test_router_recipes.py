"""The recipes of a router in docs/how-to: nodes with the configuration of the page, and peers over TLS."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ingest.requestor.send_files import send_files
from ingest.requestor.transport import Remote
from ingest.tls.contexts import build_client_context
from tests.interop.files import by_uid
from tests.support.nodes import Node, eventually
from tests.support.pages import DOCS, Walk, read_blocks
from tests.support.peers import storescp
from tests.support.pki import Material
from tests.support.scenes import STUDIES


def read_recipe(page: str, heading: str) -> str:
    """Return the TOML of a section of a page."""
    blocks = read_blocks(DOCS / "how-to" / f"{page}.md")
    found = [block.text for block in blocks if block.heading == heading and block.language == "toml"]
    assert found, heading
    return "\n".join(found)


def write_destination(name: str, port: int) -> str:
    """Return `[[destinations]]` without a route."""
    return (
        f'[[destinations]]\nname = "{name}"\nae_title = "{name.upper()}"\nhost = "localhost"\nport = {port}\n'
    )


def send(node: Node, material: Material, paths: list[Path]) -> None:
    remote = Remote("localhost", node.tls_port, "INGEST", "TESTS", build_client_context(material.tls("peer")))
    assert not send_files(remote, paths, 2).failed_files


def count_by_destination(node: Node) -> dict[tuple[str, str], int]:
    rows = node.query("SELECT destination, state, COUNT(*) FROM deliveries GROUP BY destination, state")
    return {(name, state): count for name, state, count in rows}


@pytest.fixture
def studies(tmp_path: Path) -> list[list[Path]]:
    return [study.write(tmp_path / f"study-{number}", only=2) for number, study in enumerate(STUDIES[:2])]


def test_held_images_are_sent_when_a_person_releases_them(
    make_node: Callable[..., Node], material: Material, tmp_path: Path, studies: list[list[Path]]
) -> None:
    first, second = studies
    both = len(first) + len(second)
    with (
        storescp(tmp_path / "archive", material.tls("remote"), "--promiscuous") as archive,
        storescp(tmp_path / "second", material.tls("remote"), "--promiscuous") as site,
    ):
        node = make_node(
            destinations=write_destination("archive", archive) + write_destination("second-site", site),
            routes=read_recipe("several-destinations", "Hold images until a person releases them"),
        ).start()
        send(node, material, first + second)
        held = {("archive", "delivered"): both, ("second-site", "held"): both}
        eventually(lambda: count_by_destination(node) == held, 30, f"{count_by_destination(node)}")
        node.kill()
        node.start()
        assert count_by_destination(node) == held

        [[study]] = node.query("SELECT DISTINCT study_uid FROM instances ORDER BY id LIMIT 1")
        with Walk(node.folder) as walk:
            walk.run(f"command ingest deliveries release -c ingest.toml --study {study}")
            expected = {
                **held,
                ("second-site", "held"): len(second),
                ("second-site", "delivered"): len(first),
            }
            eventually(lambda: count_by_destination(node) == expected, 30, f"{count_by_destination(node)}")
            walk.run("command ingest drop -c ingest.toml --destination second-site --state held --yes")
        sent = [
            uid for [uid] in node.query("SELECT sop_instance_uid FROM instances WHERE study_uid = ?", study)
        ]
    assert sorted(by_uid((tmp_path / "second").iterdir())) == sorted(sent)
