"""What a node takes with an Orthanc configuration, and with how many processes."""

import json
from pathlib import Path
from typing import Any

import pytest

from ingest.config.model import Config
from ingest.config.reader import load_config, read_notes


def read(folder: Path, **values: Any) -> Config:
    (folder / "orthanc.json").write_text(json.dumps(values))
    return load_config(folder / "orthanc.json", environ={})


def said(folder: Path, **values: Any) -> dict[str, str]:
    read(folder, **values)
    return {note.key: note.cause for note in read_notes(folder / "orthanc.json", {})}


@pytest.mark.parametrize(
    ("patterns", "switches", "expected"),
    [
        (["4.9*"], {}, "4.90 4.91 4.92 4.93 4.94 4.95"),
        (["1", "4.9*"], {"Jpeg2000": False, "Rle": True}, "1 4.94 4.95 5"),
        (["1"], {"JpegLossless": True, "Jpip": True, "H265": True}, "1 4.80 4.81 4.94 4.95 4.107 4.108"),
        (["1", "1.99"], {"Deflated": False, "Mpeg2": True}, "1 4.100 4.100.1 4.101 4.101.1"),
        (["1", "4.5*"], {"Jpeg": False}, "1"),
    ],
)
def test_patterns_choose_among_known_transfer_syntaxes_and_groups_come_or_go(
    tmp_path: Path, patterns: list[str], switches: dict[str, bool], expected: str
) -> None:
    arc = "1.2.840.10008.1.2."
    values = {f"{name}TransferSyntaxAccepted": value for name, value in switches.items()}
    config = read(tmp_path, AcceptedTransferSyntaxes=[arc + pattern for pattern in patterns], **values)
    assert config.receive.transfer_syntaxes == tuple(arc + end for end in expected.split())


def test_a_group_is_taken_from_all_that_dicom_defines(tmp_path: Path) -> None:
    every = read(tmp_path, JpegTransferSyntaxAccepted=True).receive.transfer_syntaxes
    assert every == ("*",)
    rest = read(tmp_path, Mpeg4TransferSyntaxAccepted=False).receive.transfer_syntaxes
    assert "*" not in rest
    assert "1.2.840.10008.1.2" in rest
    assert not any(uid.startswith("1.2.840.10008.1.2.4.102") for uid in rest)
    assert (
        "matches no" in said(tmp_path, AcceptedTransferSyntaxes=["1.2.3*", "*"])["AcceptedTransferSyntaxes"]
    )


def test_more_threads_than_cores_are_one_process_a_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.config.orthanc.reader.usable_cores", lambda: 8)
    assert read(tmp_path, DicomThreadsCount=8).receive.processes == 8
    assert "DicomThreadsCount" not in said(tmp_path, DicomThreadsCount=8)
    assert read(tmp_path, DicomThreadsCount=100_000).receive.processes == 0
    assert "cores" in said(tmp_path, DicomThreadsCount=100_000)["DicomThreadsCount"]
