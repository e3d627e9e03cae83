"""Attributes that a destination changes: what may be set, and where the file of a map is wrong."""

from pathlib import Path

import pytest

from ingest.checks.node import check_node
from ingest.config.attribute_map import find_misfits, read_attribute_map
from ingest.config.attribute_values import parse_attribute, parse_new_value
from ingest.config.reader import load_config
from ingest.errors import ConditionError, ConfigError


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("SOPInstanceUID", "is a UID"),
        ("StudyInstanceUID", "is a UID"),
        ("SeriesInstanceUID", "is a UID"),
        ("SOPClassUID", "is a UID"),
        ("PixelData", "belongs to the pixel data"),
        ("Rows", "belongs to the pixel data"),
        ("PhotometricInterpretation", "belongs to the pixel data"),
        ("SpecificCharacterSet", "how all text"),
        ("TransferSyntaxUID", "is not in the data set"),
        ("OriginalAttributesSequence", "which the node writes"),
        ("0010,0000", "is a group length"),
        ("0011,0010", "names the owner"),
        ("PatientNmae", "is no attribute"),
    ],
)
def test_attributes_that_no_destination_may_change(name: str, cause: str) -> None:
    with pytest.raises(ConditionError, match=cause):
        parse_attribute(name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PatientID", "x" * 65),
        ("PatientID", "a\nb"),
        ("PatientID", ["a", "b"]),
        ("PatientID", True),
        ("PatientID", {"a": 1}),
        ("PatientName", "a=b=c=d"),
        ("PatientBirthDate", "20260230"),
        ("PatientBirthDate", "1.1.2026"),
        ("PatientSex", "male"),
        ("PatientAge", "45"),
        ("StudyTime", "2500"),
        ("SeriesNumber", 1.5),
        ("SeriesNumber", 1 << 31),
        ("PatientWeight", "heavy"),
        ("TagAngleSecondAxis", 40_000),
        ("ReferencedPatientSequence", ""),
        ("0011,1001", "private"),
    ],
)
def test_values_that_their_vr_does_not_allow(name: str, value: object) -> None:
    with pytest.raises(ConditionError):
        parse_new_value(name, value)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("PatientID", "", ""),
        ("0010,0020", "A-1", "A-1"),
        ("PatientName", "Yamada^Tarou=山田^太郎", "Yamada^Tarou=山田^太郎"),
        ("StudyTime", "120000.123456", "120000.123456"),
        ("StudyTime", "12", "12"),
        ("PatientBirthDate", "20240229", "20240229"),
        ("PatientAge", "045Y", "045Y"),
        ("WindowCenter", [40, 80.5], "40\\80.5"),
        ("PatientComments", "a\\b\r\nc", "a\\b\r\nc"),
    ],
)
def test_values_that_are_kept_as_they_are(name: str, value: object, text: str) -> None:
    assert parse_new_value(name, value).text == text


def test_map_is_read_with_any_separator_and_empty_cells_change_nothing(tmp_path: Path) -> None:
    for separator in (",", ";", "\t"):
        path = tmp_path / "map.csv"
        lines = ["match:PatientID,PatientID,PatientName", '4711,A-1,"Müller^Jörg"', "", "0815,,B", "1,,"]
        path.write_text("\n".join(lines).replace(",", separator), encoding="utf-8-sig")
        found = read_attribute_map(path)
        assert found.matched == (0x0010_0020,)
        texts = {key: {value.tag: value.text for value in row} for key, row in found.rows.items()}
        assert texts == {
            ("4711",): {0x0010_0020: "A-1", 0x0010_0010: "Müller^Jörg"},
            ("0815",): {0x0010_0010: "B"},
            ("1",): {},
        }


@pytest.mark.parametrize(
    ("text", "line", "cause"),
    [
        ("", 1, "no column to compare"),
        ("PatientID,PatientName\n", 1, "no column to compare"),
        ("match:PatientID,Nonsense\n", 1, '"Nonsense" is no attribute'),
        ("match:PatientID,SOPInstanceUID\n", 1, "is a UID"),
        ("match:PixelData,PatientID\n", 1, "has no text to compare"),
        ("match:PatientID,PatientID,PatientID\n", 1, "twice"),
        ("match:PatientID,PatientID\na,b\nc\n", 3, "has 1 cells"),
        ("match:PatientID,match:PatientName,PatientID\n, ,b\n", 2, "compares empty values only"),
        ("match:PatientID,PatientID\na,b\n\na ,c\n", 4, "the same values as line 2"),
        ("match:PatientID,PatientBirthDate\na,20260101\nb,Smith\n", 3, "VR DA does not allow"),
        ('match:PatientID,PatientID\na,"b\n', 2, "is no line of a CSV file"),
    ],
)
def test_the_wrong_line_of_a_map_is_named_without_its_values(
    tmp_path: Path, text: str, line: int, cause: str
) -> None:
    path = tmp_path / "map.csv"
    path.write_text(text)
    [(found, _)] = find_misfits(path)
    assert found.startswith(f"{path}:{line}: ")
    assert cause in found
    assert "Smith" not in found


def test_the_check_names_keys_and_lines(tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_text("match:PatientID,PatientID\nonly one\n")
    file = tmp_path / "ingest.toml"
    head = '[[destinations]]\nname = "pacs"\nae_title = "PACS"\nhost = "localhost"\ntls = false\n'
    file.write_text(
        f'{head}set = {{ PatientID = "X", StudyInstanceUID = "1.2" }}\n'
        'remove = ["PatientID", "PixelData", "PatientSex", "PatientSex"]\nmap = "other.csv"\n'
    )
    with pytest.raises(ConfigError) as refusal:
        load_config(file)
    keys = [fault.partition(": ")[0] for fault in refusal.value.faults]
    assert keys == [
        "destinations[0].set.StudyInstanceUID",
        "destinations[0].remove[0]",
        "destinations[0].remove[1]",
        "destinations[0].remove[3]",
        "destinations[0].map",
    ]
    file.write_text(f'{head}map = "map.csv"\n')
    (tmp_path / "map.csv").chmod(0o644)
    found = [fault for fault in check_node(load_config(file)) if fault.key == "destinations[0].map"]
    assert [fault.is_note for fault in found] == [False, True]
    assert f"{tmp_path / 'map.csv'}:2: has 1 cells" in found[0].cause
    assert "every user of this host can read it" in found[1].cause
    (tmp_path / "map.csv").write_text("match:PatientID,PatientID\na,b\n")
    (tmp_path / "map.csv").chmod(0o640)
    assert not [fault for fault in check_node(load_config(file)) if fault.key == "destinations[0].map"]


def test_a_note_says_that_removed_values_still_leave_the_node(tmp_path: Path) -> None:
    file = tmp_path / "ingest.toml"
    head = '[[destinations]]\nname = "pacs"\nae_title = "PACS"\nhost = "localhost"\ntls = false\n'
    for keeps in (True, False):
        file.write_text(f'{head}remove = ["PatientSex"]\noriginal_attributes = {str(keeps).lower()}\n')
        found = [fault for fault in check_node(load_config(file)) if "destinations[0].remove" in fault.key]
        assert [fault.is_note for fault in found] == [True] * keeps


@pytest.mark.parametrize(
    ("keys", "cause"),
    [
        ('transcode = "always"', 'is empty, and transcode is "always"'),
        ('preferred_transfer_syntax = "ExplicitVRLittleEndian"', 'is set, and transcode is "never"'),
        ('transcode = "if-refused"\npreferred_transfer_syntax = "JPEG"', '"JPEG" is no transfer syntax'),
    ],
)
def test_a_wrong_choice_of_transfer_syntaxes_is_refused(tmp_path: Path, keys: str, cause: str) -> None:
    file = tmp_path / "ingest.toml"
    head = '[[destinations]]\nname = "pacs"\nae_title = "PACS"\nhost = "localhost"\ntls = false\n'
    file.write_text(head + keys + "\n")
    with pytest.raises(ConfigError) as refusal:
        load_config(file)
    [fault] = refusal.value.faults
    assert fault.startswith(f"destinations[0].preferred_transfer_syntax: {cause}")
