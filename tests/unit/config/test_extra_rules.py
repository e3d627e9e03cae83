"""A configuration that needs an extra which is not installed."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ingest.checks.node import check_node
from ingest.cli import main
from ingest.config.reader import load_config
from ingest.errors import ConfigError

CONSOLE = '[node]\ndata_dir = "var"\n[console]\nport = 8090\n'
POSTGRESQL = '[node]\ndata_dir = "var"\n[ledger]\nurl = "postgresql+psycopg://u@localhost/d"\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ingest.toml"


def faults(path: Path, text: str, *roles: str) -> list[str]:
    path.write_text(text)
    try:
        load_config(path, roles=roles)
    except ConfigError as error:
        return list(error.faults)
    return []


def test_console_without_its_extra_is_a_fault_for_the_role_that_serves_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert faults(path, CONSOLE, "console") == []
    monkeypatch.setitem(sys.modules, "starlette", None)
    (fault,) = faults(path, CONSOLE, "persist", "console")
    assert fault == (
        "console: needs the extra `console`, which is not installed: no starlette; "
        "pip install './dicom_ingest-….whl[console]', or remove [console]"
    )
    assert faults(path, CONSOLE, "persist") == []
    assert faults(path, CONSOLE) == []


def test_postgresql_without_its_extra_is_a_fault_for_roles_that_open_the_ledger(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    (fault,) = faults(path, POSTGRESQL, "persist")
    assert fault.startswith("ledger.url: needs the extra `postgresql`")
    assert faults(path, POSTGRESQL.replace("+psycopg", "+psycopg2"), "persist") == []


def test_compression_without_its_codec_is_a_fault_for_the_role_that_sends(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = '[node]\ndata_dir = "var"\n[[destinations]]\nname = "far"\nae_title = "FAR"\n'
    wanted = head + 'host = "h"\ntls = false\n' + 'transcode = "always"\npreferred_transfer_syntax = "{}"\n'
    assert faults(path, wanted.format("JPEG2000Lossless"), "forward") == []
    monkeypatch.setitem(sys.modules, "openjpeg", None)
    (fault,) = faults(path, wanted.format("JPEG2000Lossless"), "forward")
    assert fault == (
        "destinations[0].preferred_transfer_syntax: needs the extra `transcode`, which is not installed: "
        "no openjpeg; pip install './dicom_ingest-….whl[transcode]', "
        "or name a transfer syntax without compression"
    )
    assert faults(path, wanted.format("JPEG2000Lossless"), "persist") == []
    assert faults(path, wanted.format("RLELossless"), "forward") == []
    found = [each for each in check_node(load_config(path)) if each.key == "destinations[0].transcode"]
    assert [each.is_note for each in found] == [True]


def test_extra_whose_library_the_system_lacks_is_a_fault_with_the_package_to_install(path: Path) -> None:
    path.write_text(POSTGRESQL)
    # Given a system on which psycopg finds no libpq
    without_libpq = (
        "import ctypes.util, sys\n"
        "find = ctypes.util.find_library\n"
        "ctypes.util.find_library = lambda name: None if name == 'pq' else find(name)\n"
        "sys.modules |= dict.fromkeys(('psycopg_binary', 'psycopg_c'))\n"
        "from ingest.cli import main\n"
        "main()\n"
    )

    def call(command: str) -> str:
        words = [sys.executable, "-c", without_libpq, command, "-c", str(path)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        return done.stdout + done.stderr

    # Then `check` says so once, and so does a command that opens the ledger
    checked = call("check")
    assert (
        "ledger.url: needs libpq, the client library of PostgreSQL, which is not installed; "
        "apt-get install libpq5, or leave the key empty for SQLite"
    ) in checked
    assert checked.count("ledger.url") == 1
    assert "[ledger] url needs libpq" in call("instances")


def test_command_that_needs_an_extra_names_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(POSTGRESQL)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    listed = CliRunner().invoke(main, ["instances", "-c", str(path)])
    assert listed.exit_code == 1
    assert "[ledger] url needs the extra `postgresql`" in listed.output
    monkeypatch.setitem(sys.modules, "argon2", None)
    monkeypatch.delitem(sys.modules, "ingest.console.auth.users", raising=False)
    listed = CliRunner().invoke(main, ["console", "user", "list", "-c", str(path)])
    assert listed.exit_code == 2
    assert "this command needs the extra `console`" in listed.output
