"""Commands that read the ledger close it, also where a page of them runs in one process."""

import gc
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from ingest.cli import main
from ingest.ledger import Ledger

COMMANDS = [
    ("studies",),
    ("instances",),
    ("deliveries",),
    ("status", "--json"),
    ("retry", "--all"),
    ("drop", "--all", "--yes", "--reason", "a test"),
    ("quarantine", "list"),
    ("quarantine", "drop", "--yes", "1"),
    ("retention", "--dry-run"),
]


def held(folder: Path) -> list[str]:
    """The files below a folder that this process has open."""
    links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)]
    return [link for link in links if link.startswith(f"{folder}/ledger.db")]


def _is_open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_leaves_no_connection_to_the_ledger_open(tmp_path: Path, command: tuple[str, ...]) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    ledger.migrate()
    assert held(tmp_path), "an open ledger is seen"
    ledger.close()
    assert not held(tmp_path)
    path = tmp_path / "node.toml"
    path.write_text(
        f'[node]\ndata_dir = "{tmp_path}"\n[queue]\nurl = "redis://127.0.0.1:1"\n[retention]\nkeep_days = 1\n'
    )
    gc.collect()
    gc.disable()
    try:
        result = CliRunner().invoke(
            main,
            [*command[:2], "-c", str(path), *command[2:]]
            if command[0] == "quarantine"
            else [command[0], "-c", str(path), *command[1:]],
        )
        assert "Usage" not in result.output, result.output
        assert not held(tmp_path)
    finally:
        gc.enable()
