"""`ingest routes test`: which routes would take files, and why."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ingest.cli import main
from tests.support.instances import Made

CONFIG = """
[[destinations]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
tls = false

[[routes]]
name = "from-ct"
when = { calling_ae = "CT*", SOPInstanceUID = "1.9.*" }
to = ["pacs"]

[[routes]]
name = "rest"
to = []
default = true
"""


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.log.configure_logging", lambda *_: None)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "node.toml"
    path.write_text(CONFIG)
    return path


def ask(config: Path, *arguments: object) -> Result:
    return CliRunner().invoke(main, ["routes", "test", "-c", str(config), *map(str, arguments)])


def test_files_and_folders_are_explained_condition_by_condition(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "a.dcm").write_bytes(Made(sop="1.9.1").file)
    (folder / "b.dcm").write_bytes(Made(sop="1.8.1").file)
    (folder / "readme").write_text("no DICOM")
    result = ask(config, folder, "--json")
    assert result.exit_code == 0, result.output
    first, second = json.loads(result.output)
    assert (first["destinations"], first["routed"]) == (["pacs"], "from-ct")
    assert first["routes"][0]["conditions"] == [
        {"key": "calling_ae", "values": ["CT1"], "held": True},
        {"key": "SOPInstanceUID", "values": ["1.9.1"], "held": True},
    ]
    assert (second["destinations"], second["routed"]) == ([], "rest: forwarded nowhere on purpose")
    assert [route["took"] for route in second["routes"]] == [False, True]


def test_ae_titles_may_be_supposed(config: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.dcm"
    file.write_bytes(Made(sop="1.9.1").file)
    assert "→ pacs" in ask(config, file).output
    output = ask(config, file, "--calling", "MR1").output
    assert "→ nowhere" in output
    assert "calling_ae: MR1 does not hold" in output


def test_changes_for_a_destination_are_shown_as_a_diff(config: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.dcm"
    file.write_bytes(Made(sop="1.9.1").file)
    changes = 'set = { PatientID = "[NEW]", InstitutionName = "" }\nremove = ["SeriesNumber"]\n'
    config.write_text(CONFIG.replace("tls = false\n", f"tls = false\n{changes}"))
    result = ask(config, file)
    assert result.exit_code == 0, result.output
    assert "changed for pacs:\n       + InstitutionName: \n       + PatientID: [NEW]\n" in result.output
    [found] = json.loads(ask(config, file, "--json").output)
    [changed] = found["changes"]
    assert changed["changes"][1] == {"attribute": "PatientID", "before": None, "after": "[NEW]"}
    (tmp_path / "map.csv").write_text("match:PatientID,PatientID\nA,B\n")
    config.write_text(
        CONFIG.replace("tls = false\n", 'tls = false\nmap = "map.csv"\nmap_unmatched = "dead"\n')
    )
    assert (
        "not sent to pacs: its attributes cannot be changed: no line of the map" in ask(config, file).output
    )
    (tmp_path / "map.csv").write_text("match:PatientID,PatientID\nA\n")
    result = ask(config, file)
    assert result.exit_code != 0


def test_transfer_syntaxes_that_a_destination_is_offered_are_shown(config: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.dcm"
    file.write_bytes(Made(sop="1.9.1").file)
    keys = 'transcode = "always"\npreferred_transfer_syntax = "ImplicitVRLittleEndian"\n'
    config.write_text(CONFIG.replace("tls = false\n", f"tls = false\n{keys}"))
    offered = ["ImplicitVRLittleEndian", "ExplicitVRLittleEndian"]
    assert f"  offered to pacs: {', or '.join(offered)}\n" in ask(config, file).output
    [found] = json.loads(ask(config, file, "--json").output)
    assert found["offers"] == [{"destination": "pacs", "transfer_syntaxes": offered}]


def test_file_that_cannot_be_read_is_named_and_the_rest_is_explained(config: Path, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.dcm", tmp_path / "bad.dcm"
    good.write_bytes(Made(sop="1.9.1").file)
    bad.write_text("no DICOM")
    result = ask(config, bad, good)
    assert result.exit_code == 1
    assert "bad.dcm: no DICM after a preamble" in result.output
    assert "→ pacs" in result.output


def test_destination_that_it_came_from_is_left_out_and_said(config: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.dcm"
    file.write_bytes(Made(sop="1.9.1").file)
    config.write_text(CONFIG.replace("CT*", "*"))
    assert "→ pacs" in ask(config, file, "--calling", "PACS").output
    output = ask(config, file, "--calling", "PACS", "--source", "127.0.0.1").output
    assert "→ nowhere" in output
    assert "not sent back to pacs: it came from there; return = true in the route sends it" in output
    (plain,) = json.loads(ask(config, file, "--calling", "PACS", "--source", "127.0.0.1", "--json").output)
    assert plain["routed"] == "from-ct; not sent back to pacs"
    assert plain["kept_back"] == ["not sent back to pacs"]
