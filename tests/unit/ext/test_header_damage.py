"""What is read of a damaged data set: what stands before the damage, and what can be found behind it."""

import os
import random
import resource
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from ingest.dicom.instance_header import UIDS, DataSetHeader, begins_with_file_meta, read_data_set_header
from ingest.dicom.uids import DEFLATED_EXPLICIT_LITTLE_ENDIAN, EXPLICIT_BIG_ENDIAN, EXPLICIT_LITTLE_ENDIAN

SOP_CLASS, SOP_INSTANCE, STUDY, SERIES = UIDS
MODALITY, BODY_PART = 0x0008_0060, 0x0018_0015


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr + struct.pack("<H", len(value)) + value


def long_element(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr
    return head + struct.pack("<HL", 0, len(value) if length is None else length) + value


CLASS = element(SOP_CLASS, b"UI", b"1.2\0")
INSTANCE = element(SOP_INSTANCE, b"UI", b"1.3.4\0")
MR = element(MODALITY, b"CS", b"MR")
STUDY_UID = element(STUDY, b"UI", b"1.5\0")
SERIES_UID = element(SERIES, b"UI", b"1.6\0")
ROWS = element(0x0028_0010, b"US", b"\1\0")
PIXELS = long_element(0x7FE0_0010, b"OW", bytes(100_000))

ALL = {SOP_CLASS: "1.2", SOP_INSTANCE: "1.3.4", STUDY: "1.5", SERIES: "1.6"}


def read(
    folder: Path,
    data: bytes,
    tags: Sequence[int] = UIDS,
    syntax: str = EXPLICIT_LITTLE_ENDIAN,
    most: int = 1 << 26,
) -> DataSetHeader:
    path = folder / "data"
    path.write_bytes(b"meta" + data)
    fd = os.open(path, os.O_RDONLY)
    try:
        return read_data_set_header(fd, 4, len(data), syntax, sorted(tags), most)
    finally:
        os.close(fd)


def uids(header: DataSetHeader) -> dict[int, str]:
    return {tag: header.uid(tag) for tag in UIDS}


DAMAGED = {
    "a blank VR": CLASS
    + INSTANCE
    + MR
    + element(0x0008_0070, b"  ", b"ACME")
    + STUDY_UID
    + SERIES_UID
    + PIXELS,
    "a VR of NUL": CLASS
    + INSTANCE
    + element(0x0008_0070, b"\0\0", b"ACME")
    + MR
    + STUDY_UID
    + SERIES_UID
    + PIXELS,
    "an unknown VR with a 16-bit length": CLASS
    + INSTANCE
    + MR
    + element(0x0008_0070, b"ZZ", b"ACME")
    + STUDY_UID
    + SERIES_UID,
    "an unknown VR with a 32-bit length": CLASS
    + INSTANCE
    + MR
    + long_element(0x0008_0070, b"ZZ", b"ACME")
    + STUDY_UID
    + SERIES_UID,
    "the first element with a blank VR": element(0x0008_0005, b"  ", b"ISO_IR 100")
    + CLASS
    + INSTANCE
    + MR
    + STUDY_UID
    + SERIES_UID,
    "an attribute twice": CLASS + INSTANCE + MR + STUDY_UID + element(STUDY, b"UI", b"1.9\0") + SERIES_UID,
    "elements out of order": MR + SERIES_UID + STUDY_UID + INSTANCE + CLASS + PIXELS,
    "UIDs behind the pixels": CLASS + INSTANCE + MR + ROWS + PIXELS + SERIES_UID + STUDY_UID,
    "an odd length": CLASS + INSTANCE + element(0x0008_0070, b"LO", b"ABC") + MR + STUDY_UID + SERIES_UID,
    "a stray sequence delimiter": CLASS
    + INSTANCE
    + MR
    + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    + STUDY_UID
    + SERIES_UID,
    "a length beyond the end behind them": CLASS
    + INSTANCE
    + MR
    + STUDY_UID
    + SERIES_UID
    + element(0x0028_0010, b"US", b"\1\0")[:-2],
}


@pytest.mark.parametrize("case", DAMAGED)
def test_sound_attributes_are_found_in_spite_of(tmp_path: Path, case: str) -> None:
    header = read(tmp_path, DAMAGED[case])
    assert uids(header) == ALL
    assert read(tmp_path, DAMAGED[case], [*UIDS, MODALITY]).values[MODALITY] == b"MR"


@pytest.mark.parametrize("case", DAMAGED)
def test_uids_do_not_depend_on_what_routes_ask_for(tmp_path: Path, case: str) -> None:
    for more in (
        [],
        [MODALITY],
        [BODY_PART],
        [0x7FE0_0001, 0x0002_0000],
        list(range(0x0040_0000, 0x0040_0020)),
    ):
        assert uids(read(tmp_path, DAMAGED[case], [*UIDS, *more])) == ALL


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (CLASS + INSTANCE + MR + STUDY_UID + element(SERIES, b"UI", b"1.6\0")[:-2], {**ALL, SERIES: ""}),
        (
            CLASS + INSTANCE + MR + struct.pack("<HHL", 0xFFFE, 0xE00D, 0) + STUDY_UID + SERIES_UID,
            {**ALL, STUDY: "", SERIES: ""},
        ),
        (
            CLASS + INSTANCE + MR + long_element(0x0008_1140, b"SQ", STUDY_UID, 0xFFFFFFFF) + SERIES_UID,
            {**ALL, STUDY: "", SERIES: ""},
        ),
    ],
    ids=["cut within the series", "end of an item at the top", "a sequence without items"],
)
def test_attributes_before_damage_that_ends_the_reading_count(
    tmp_path: Path, data: bytes, found: dict[int, str]
) -> None:
    header = read(tmp_path, data)
    assert uids(header) == found
    assert header.remarks


def test_a_sound_data_set_has_no_remarks(tmp_path: Path) -> None:
    header = read(tmp_path, CLASS + INSTANCE + MR + STUDY_UID + SERIES_UID + ROWS + PIXELS)
    assert (uids(header), header.remarks, header.is_whole) == (ALL, [], True)


def test_spaces_in_a_uid_are_left_out_as_dcmtk_does(tmp_path: Path) -> None:
    assert (
        read(tmp_path, CLASS + INSTANCE + MR + element(STUDY, b"UI", b" 1.5 ") + SERIES_UID).uid(STUDY)
        == "1.5"
    )


def test_values_are_read_in_windows_of_any_alignment(tmp_path: Path) -> None:
    rng = random.Random(3)
    for size in [*range(16_300, 16_420, 2), *(rng.randrange(0, 200_000) for _ in range(40))]:
        filler = long_element(0x0009_1010, b"OB", bytes(size))
        assert (
            uids(
                read(
                    tmp_path,
                    CLASS + INSTANCE + MR + filler + STUDY_UID + SERIES_UID + PIXELS,
                    [*UIDS, BODY_PART],
                )
            )
            == ALL
        ), size


def test_a_huge_value_costs_no_memory(tmp_path: Path) -> None:
    path, huge = tmp_path / "data", 1 << 29
    head = CLASS + INSTANCE + MR + long_element(STUDY, b"UT", b"", huge)
    with path.open("wb") as file:
        file.write(head)
        file.seek(huge, os.SEEK_CUR)
        file.write(SERIES_UID)
    fd = os.open(path, os.O_RDONLY)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        header = read_data_set_header(
            fd, 0, len(head) + huge + len(SERIES_UID), EXPLICIT_LITTLE_ENDIAN, sorted(UIDS), 1 << 26
        )
    finally:
        os.close(fd)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000, "kilobytes"
    assert header.uid(SERIES) == "1.6"
    assert len(header.values[STUDY]) == 16 << 10
    assert "a value is too long; its beginning counts" in header.remarks


def deflated(data: bytes) -> bytes:
    squeezer = zlib.compressobj(9, wbits=-15)
    return squeezer.compress(data) + squeezer.flush()


def test_a_deflated_data_set_is_read_to_its_bound_only(tmp_path: Path) -> None:
    bomb = deflated(long_element(0x0008_0001, b"UN", bytes(90_000_000)) + CLASS + INSTANCE)
    header = read(tmp_path, bomb, syntax=DEFLATED_EXPLICIT_LITTLE_ENDIAN, most=1 << 20)
    assert (header.values, header.is_whole) == ({}, False)
    sound = deflated(DAMAGED["elements out of order"])
    assert uids(read(tmp_path, sound, syntax=DEFLATED_EXPLICIT_LITTLE_ENDIAN)) == ALL
    noisy = CLASS + INSTANCE + MR + STUDY_UID + SERIES_UID + random.Random(1).randbytes(9000)
    wanted = [*UIDS, BODY_PART]
    cut = read(tmp_path, deflated(noisy)[:60], wanted, DEFLATED_EXPLICIT_LITTLE_ENDIAN)
    assert "it cannot be inflated" in cut.remarks


def test_the_listener_reads_no_more_than_its_bound(tmp_path: Path) -> None:
    nested = long_element(0x0008_0006, b"SQ", b"", 0xFFFFFFFF)
    nested += struct.pack("<HHL", 0xFFFE, 0xE000, 0) * 100_000 + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    header = read(tmp_path, nested + CLASS + INSTANCE, [SOP_CLASS, SOP_INSTANCE], most=65_536)
    assert (header.values, header.is_whole) == ({}, False)
    assert read(tmp_path, nested + CLASS + INSTANCE, [SOP_CLASS, SOP_INSTANCE]).uid(SOP_INSTANCE) == "1.3.4"


def test_a_file_that_is_shorter_than_it_was_is_an_error_of_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(CLASS + INSTANCE)
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="shorter"):
            read_data_set_header(fd, 0, 1000, EXPLICIT_LITTLE_ENDIAN, sorted(UIDS), 1 << 20)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("data", "syntax", "begins"),
    [
        (b"\2\0\3\0UI", EXPLICIT_LITTLE_ENDIAN, True),
        (b"\0\2\0\3UI", EXPLICIT_BIG_ENDIAN, True),
        (b"\2\0\3\0\0\0", DEFLATED_EXPLICIT_LITTLE_ENDIAN, False),
        (b"\x08\0\3\0UI", EXPLICIT_LITTLE_ENDIAN, False),
        (b"", EXPLICIT_LITTLE_ENDIAN, False),
    ],
)
def test_a_data_set_that_begins_with_file_meta_is_told(
    tmp_path: Path, data: bytes, syntax: str, begins: bool
) -> None:
    path = tmp_path / "data"
    path.write_bytes(data)
    with path.open("rb") as file:
        assert begins_with_file_meta(file.fileno(), 0, syntax) is begins


# --- optional attributes

PATIENT = 0x0010_0020
NUMBER = 0x0020_0011
WHOLE = CLASS + INSTANCE + element(PATIENT, b"LO", b"P1") + STUDY_UID + SERIES_UID


def read_optional(folder: Path, data: bytes, *optional: int) -> DataSetHeader:
    path = folder / "data"
    path.write_bytes(b"meta" + data)
    fd = os.open(path, os.O_RDONLY)
    try:
        tags = sorted({*UIDS, *optional})
        return read_data_set_header(fd, 4, len(data), EXPLICIT_LITTLE_ENDIAN, tags, 1 << 26, optional)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("behind", "found"),
    [
        (element(NUMBER, b"IS", b"12") + PIXELS, b"12"),
        (PIXELS, None),
        (b"", None),
        # Behind its place it is not searched for.
        (ROWS + element(NUMBER, b"IS", b"12"), None),
        # Damage behind the last required attribute was never looked at, and is no damage of the header.
        (element(NUMBER, b"IS", b"12")[:-1], None),
        (element(NUMBER, b"IS", b"12") + b"\x00\x00\x00", b"12"),
        (b"\xfe\xff\x0d\xe0\0\0\0\0" + PIXELS, None),
    ],
)
def test_optional_attribute_is_read_in_its_place_only(
    tmp_path: Path, behind: bytes, found: bytes | None
) -> None:
    header = read_optional(tmp_path, WHOLE + behind, PATIENT, NUMBER)
    assert uids(header) == ALL
    assert header.values[PATIENT] == b"P1"
    assert header.values.get(NUMBER) == found
    assert (header.damage, header.is_whole) == (0, True)


def test_missing_optional_attribute_does_not_read_the_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    pread = os.pread
    monkeypatch.setattr(
        "ingest.dicom.instance_header.os.pread",
        lambda fd, size, offset: reads.append(size) or pread(fd, size, offset),
    )
    read_optional(tmp_path, WHOLE + ROWS + PIXELS, PATIENT, NUMBER)
    assert len(reads) == 1
