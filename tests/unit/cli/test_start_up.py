"""What commands import. Importing is most of the time that a short command takes."""

import subprocess
import sys
from pathlib import Path

import pytest

NODE = """
[node]
data_dir = "var"
[[listeners]]
host = "127.0.0.1"
port = 0
tls = false
[[destinations]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
tls = false
[[routes]]
to = ["pacs"]
when = { modality = "CT" }
"""

PROGRAM = """
import sys
from ingest.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print(*sorted(sys.modules), file=sys.stderr)
"""


def imported_by(*arguments: object) -> set[str]:
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return set(done.stderr.splitlines()[-1].split())


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "ingest.toml"
    path.write_text(NODE)
    return path


def test_help_imports_nothing_but_click_and_modules_of_commands() -> None:
    imported = imported_by("--help")
    slow = {"rich", "pydantic", "structlog", "sqlalchemy", "redis", "cryptography", "pydicom", "ssl"}
    assert not imported & slow
    ours = {name for name in imported if name.startswith("ingest.")}
    assert ours <= {"ingest.cli", "ingest.errors", "ingest.ext", "ingest.ext.errors"} | {
        name for name in ours if name.startswith("ingest.cli.")
    }


def test_status_imports_no_dictionary_of_dicom_and_no_worker(toml: Path) -> None:
    imported = imported_by("status", "-c", toml)
    assert "ingest.status.report" in imported
    assert not imported & {"pydicom", "pynetdicom", "numpy", "alembic", "rq", "ingest.dicom.registry"}
    assert not {name for name in imported if name.startswith(("ingest.workers", "ingest.config.orthanc"))}


def test_status_without_tls_imports_no_cryptography(toml: Path) -> None:
    assert "cryptography.x509" not in imported_by("status", "-c", toml)


@pytest.mark.parametrize("command", [("config", "show"), ("check",), ("status",)])
def test_only_an_orthanc_file_loads_its_reader(tmp_path: Path, toml: Path, command: tuple[str, ...]) -> None:
    json = tmp_path / "orthanc.json"
    json.write_text('{"StorageDirectory": "var", "DicomPort": 0}')
    reader = "ingest.config.orthanc.reader"
    assert reader not in imported_by(*command, "-c", toml)
    assert reader in imported_by(*command, "-c", json)


def test_supervisor_loads_the_dictionary_before_it_forks_and_no_reader_of_orthanc() -> None:
    code = "import sys, ingest.supervisor.supervisor; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert "ingest.dicom.registry" in imported
    assert not {name for name in imported if name.startswith("ingest.config.orthanc")}
    assert not imported & {"click", "alembic", "rq", "numpy", "sqlalchemy"}
