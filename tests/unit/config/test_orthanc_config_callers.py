"""Who may call with an Orthanc configuration, and what, as Orthanc decides it."""

import json
from pathlib import Path
from typing import Any

import pytest

from ingest.config.model import PeerSettings
from ingest.config.reader import load_config, read_notes
from ingest.dicom.admission import Admission, admit

CLOSED = {"DicomAlwaysAllowEcho": False, "DicomAlwaysAllowStore": False}


def peers(folder: Path, **values: Any) -> tuple[PeerSettings, ...]:
    (folder / "orthanc.json").write_text(json.dumps(values))
    return load_config(folder / "orthanc.json", environ={}).peers


def said(folder: Path) -> dict[str, str]:
    return {note.key: f"{note.cause}; {note.remedy}" for note in read_notes(folder / "orthanc.json", {})}


def test_what_is_always_allowed_needs_no_entry(tmp_path: Path) -> None:
    modality = {"AET": "A", "Host": "10.0.0.1", "Port": 1, "AllowStore": False, "AllowEcho": False}
    assert peers(tmp_path, DicomModalities={"a": modality}, DicomCheckModalityHost=True) == ()


def test_listed_modalities_may_what_their_entry_allows_and_others_what_is_always_allowed(
    tmp_path: Path,
) -> None:
    modalities = {"a": ["A", "10.0.0.1", 1], "b": {"AET": "B", "Host": "h", "Port": 1, "AllowStore": False}}
    found = peers(tmp_path, DicomModalities=modalities, DicomAlwaysAllowStore=False)
    assert found == (
        PeerSettings(ae_title="A"),
        PeerSettings(ae_title="B", allow=("echo",)),
        PeerSettings(ae_title="*", allow=("echo",)),
    )
    nobody = peers(tmp_path, **CLOSED)
    assert nobody == (PeerSettings(ae_title="*", allow=()),)


def test_one_ae_title_of_several_modalities_may_what_all_of_them_may(tmp_path: Path) -> None:
    modalities = {
        "a": {"AET": "CT", "Host": "10.0.0.1", "Port": 1, "AllowEcho": False},
        "b": {"AET": "ct", "Host": "10.0.0.2", "Port": 1},
    }
    assert peers(tmp_path, DicomModalities=modalities, **CLOSED)[:-1] == (
        PeerSettings(ae_title="CT", allow=("store",)),
    )
    strict = peers(tmp_path, DicomModalities=modalities, StrictAetComparison=True, **CLOSED)
    assert [(peer.ae_title, peer.allow) for peer in strict[:-1]] == [
        ("CT", ("store",)),
        ("ct", ("echo", "store")),
    ]


def test_hosts_are_checked_when_asked_and_a_name_is_nobodys_address(tmp_path: Path) -> None:
    listed = {"AET": "A", "Host": "10.0.0.1", "Port": 1, "AllowEcho": False}  # which everybody may
    modalities = {"a": listed, "b": ["B", "scanner", 1]}
    values = {"DicomModalities": modalities, "DicomCheckModalityHost": True, "DicomAlwaysAllowStore": False}
    assert peers(tmp_path, **values) == (
        PeerSettings(ae_title="A", hosts=("10.0.0.1",)),
        PeerSettings(ae_title="A", allow=("echo",)),
        PeerSettings(ae_title="B", allow=("echo",)),
        PeerSettings(ae_title="*", allow=("echo",)),
    )
    assert "address" in said(tmp_path)["DicomModalities.b.Host"]


def test_several_modalities_at_one_address_may_what_any_of_them_may(tmp_path: Path) -> None:
    modalities = {
        "a": {"AET": "CT", "Host": "2001:db8::1", "Port": 104, "AllowStore": False},
        "b": {"AET": "CT", "Host": "2001:DB8:0::1", "Port": 105, "AllowEcho": False},
        "c": {"AET": "CT", "Host": "10.0.0.1", "Port": 105, "AllowEcho": False},
    }
    values = {"DicomModalities": modalities, "DicomCheckModalityHost": True, **CLOSED}
    assert peers(tmp_path, **values) == (
        PeerSettings(ae_title="CT", hosts=("2001:db8::1",)),
        PeerSettings(ae_title="CT", hosts=("10.0.0.1",), allow=("store",)),
        PeerSettings(ae_title="*", allow=()),
    )


@pytest.mark.parametrize("title", ["*", " * "])
def test_a_modality_named_as_everybody_lets_nobody_in(tmp_path: Path, title: str) -> None:
    modalities = {"a": [title, "10.0.0.1", 104], "b": ["CT", "10.0.0.1", 104]}
    found = peers(tmp_path, DicomModalities=modalities, **CLOSED)
    assert found == (PeerSettings(ae_title="CT"), PeerSettings(ae_title="*", allow=()))
    assert "everybody" in said(tmp_path)["DicomModalities.a.AET"]


@pytest.mark.parametrize(
    ("title", "address", "let_in"),
    [
        ("NONE", "10.0.0.1", True),  # listed, with no right at all
        ("NONE", "10.0.0.2", False),
        ("OTHER", "10.0.0.1", False),
        ("NAMED", "10.0.0.1", False),
    ],
)
def test_who_is_not_listed_is_refused_where_nothing_is_always_allowed(
    tmp_path: Path, title: str, address: str, let_in: bool
) -> None:
    none = {"AET": "NONE", "Host": "10.0.0.1", "Port": 104, "AllowStore": False, "AllowEcho": False}
    modalities = {"a": none, "b": ["NAMED", "scanner", 104]}
    found = peers(tmp_path, DicomModalities=modalities, DicomCheckModalityHost=True, **CLOSED)
    assert isinstance(admit(title, address, found, lambda _: None), Admission) is let_in
