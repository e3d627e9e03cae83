"""Commands that write into the data folder take the rights of its owner when root runs them."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from ingest.cli import main
from ingest.errors import IngestError

NOBODY = 65534


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
@pytest.mark.parametrize(
    "command",
    [
        "console",
        "console user add anna",
        "console user passwd anna",
        "console user role anna admin",
        "console user remove anna",
        "console token add scraper --role metrics",
        "console token remove scraper",
        "ledger rebuild",
        "ledger reindex",
        "quarantine release 1",
        "quarantine retry 1",
        "sweep",
        "upgrade",
    ],
)
def test_root_leaves_no_file_that_the_node_could_not_use(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(uid: int, _gid: int, _folder: Path) -> None:
        raise IngestError(f"rights of {uid} are taken")

    monkeypatch.setattr("ingest.cli._user._take_rights", refuse)
    data = tmp_path / "var"
    data.mkdir()
    os.chown(data, NOBODY, NOBODY)
    path = tmp_path / "ingest.toml"
    path.write_text(f'[node]\ndata_dir = "{data}"\n[console]\nport = 8080\n')
    arguments = command.split()
    old = os.umask(0o022)
    try:
        result = CliRunner().invoke(main, [*arguments, "-c", str(path)], input="a long password\n")
    finally:
        os.umask(old)
    assert f"rights of {NOBODY} are taken" in result.output
    assert list(data.iterdir()) == []
