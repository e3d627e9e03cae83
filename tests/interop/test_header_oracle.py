"""What is read of damaged data sets, compared with DCMTK's reading of the same files."""

import os
import random
import re
import struct
import subprocess
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_files
from pydicom.dataelem import RawDataElement

from ingest.dicom.instance_header import UIDS, read_data_set_header
from ingest.dicom.part10 import read_file_meta
from ingest.dicom.uids import DEFLATED, EXPLICIT_BIG_ENDIAN, IMPLICIT_LITTLE_ENDIAN
from ingest.errors import PeerError
from tests.support.peers import require_program

pytestmark = pytest.mark.interop

LARGEST_BYTES = 60_000
LONG = {"OB", "OW", "OF", "OD", "OL", "OV", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"}
LINE = re.compile(r"\((\w{4},\w{4})\) (..) (.*?) *# *(?:\d+|u/l), *\d+ ")
BLANK = (b"  ", b"\0\0", b"??", b"--", b"a1", b"\xff\xff")
PRIVATE = (0x0009_1001, 0x0008_0000, 0x0002_0010, 0x0007_0010, 0x7FE1_0010, 0x0000_0002)


@dataclass(frozen=True)
class Sample:
    """A real file, and where its top-level elements lie: start, end, tag, bytes of the header."""

    name: str
    data: bytes
    offset: int
    syntax: str
    elements: tuple[tuple[int, int, int, int], ...]

    def element(self, tag: int, vr: bytes, value: bytes) -> bytes:
        order = ">" if self.syntax == EXPLICIT_BIG_ENDIAN else "<"
        head = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
        if self.syntax == IMPLICIT_LITTLE_ENDIAN:
            return head + struct.pack("<L", len(value)) + value
        return head + vr + struct.pack(f"{order}H", len(value)) + value


def samples() -> list[Sample]:
    found = []
    for path in map(Path, sorted(get_testdata_files())):
        if path.suffix != ".dcm" or path.stat().st_size > LARGEST_BYTES:
            continue
        try:
            with path.open("rb") as file, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                meta, offset = read_file_meta(file.fileno())
                elements = tuple(_elements(pydicom.dcmread(path), offset))
        except Exception:  # what pydicom cannot read has no known places to change
            continue
        if meta.transfer_syntax_uid not in DEFLATED and len(elements) > 6:
            found.append(Sample(path.name, path.read_bytes(), offset, meta.transfer_syntax_uid, elements))
    return found


def _elements(data_set: pydicom.Dataset, offset: int) -> list[tuple[int, int, int, int]]:
    found = []
    for tag in list(data_set._dict):
        raw = data_set.get_item(tag)
        if isinstance(raw, RawDataElement) and raw.length != 0xFFFF_FFFF and raw.value_tell > offset:
            head = 12 if not raw.is_implicit_VR and raw.VR in LONG else 8
            found.append((raw.value_tell - head, raw.value_tell + raw.length, int(tag), head))
    return sorted(found)


def other_vr(rng: random.Random, one: Sample) -> bytes:
    start, _, _, _ = rng.choice(one.elements)
    if one.syntax == IMPLICIT_LITTLE_ENDIAN:
        return one.data
    vr = rng.choice([*BLANK, b"ZZ", b"OX"])
    return one.data[: start + 4] + vr + one.data[start + 6 :]


def twice(rng: random.Random, one: Sample) -> bytes:
    start, end, _, _ = rng.choice(one.elements)
    return one.data[:end] + one.data[start:end] + one.data[end:]


def another_uid(rng: random.Random, one: Sample) -> bytes:
    at = rng.choice(one.elements)[rng.choice([0, 1])]
    return one.data[:at] + one.element(rng.choice(UIDS), b"UI", b"1.9.9.9\0") + one.data[at:]


def later(rng: random.Random, one: Sample) -> bytes:
    moved = [element for element in one.elements if element[2] == rng.choice(UIDS)]
    if not moved:
        return one.data
    start, end, _, _ = moved[0]
    at = max(rng.choice(one.elements)[1], end) if rng.random() < 0.7 else len(one.data)
    return one.data[:start] + one.data[end:at] + one.data[start:end] + one.data[at:]


def stranger(rng: random.Random, one: Sample) -> bytes:
    at = rng.choice(one.elements)[0]
    element = one.element(
        rng.choice(PRIVATE), rng.choice([b"LO", b"UL", b"  ", b"SH"]), b"abcd"[: rng.choice([3, 4])]
    )
    return one.data[:at] + element + one.data[at:]


def other_length(rng: random.Random, one: Sample) -> bytes:
    start, _, _, head = rng.choice(one.elements)
    short = head == 8 and one.syntax != IMPLICIT_LITTLE_ENDIAN
    changed = bytearray(one.data)
    changed[start + (head - 2 if short else head - 4) + rng.randrange(2)] ^= rng.choice([1, 2, 4, 8, 255])
    return bytes(changed)


def delimiter(rng: random.Random, one: Sample) -> bytes:
    order = ">" if one.syntax == EXPLICIT_BIG_ENDIAN else "<"
    at = rng.choice(one.elements)[0]
    what = struct.pack(f"{order}HHL", 0xFFFE, rng.choice([0xE00D, 0xE0DD, 0xE000]), 0)
    return one.data[:at] + what + one.data[at:]


def flips(rng: random.Random, one: Sample) -> bytes:
    changed = bytearray(one.data)
    for _ in range(rng.randrange(1, 4)):
        changed[rng.randrange(one.offset, min(len(changed), one.offset + 900))] = rng.randrange(32, 127)
    return bytes(changed)


MUTATIONS: list[Callable[[random.Random, Sample], bytes]] = [
    other_vr, twice, another_uid, later, stranger, other_length, delimiter, flips,
]  # fmt: skip


def dcmtk_reads(path: Path) -> dict[int, str] | None:
    """The UIDs as DCMTK with its default options reads them; None where it cannot read the file."""
    command = [require_program("dcmdump"), "-q", "-Un", "+L", str(path)]
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        return None
    found: dict[str, str] = {}
    _, _, dumped = done.stdout.decode("latin-1").partition("# Dicom-Data-Set")
    for line in dumped.splitlines():
        # Elements of items are indented.
        if (match := LINE.match(line)) and match[1] not in found:
            found[match[1]] = _text(match[2], match[3])
    return {tag: found.get(f"{tag >> 16:04x},{tag & 0xFFFF:04x}", "") for tag in UIDS}


def _text(vr: str, value: str) -> str:
    if value == "(no value available)":
        return ""
    if value.startswith("["):
        return value[1 : value.rindex("]")].rstrip("\0 ") if "]" in value else value[1:]
    if re.fullmatch(r"([0-9a-f]{2}\\)*[0-9a-f]{2}", value):  # of VR UN
        return bytes.fromhex(value.replace("\\", "")).decode("latin-1").rstrip("\0 ")
    return f"\0 printed as {vr}"  # as a number


def we_read(path: Path) -> dict[int, str]:
    with path.open("rb") as file:
        meta, offset = read_file_meta(file.fileno())
        size = os.fstat(file.fileno()).st_size - offset
        header = read_data_set_header(
            file.fileno(), offset, size, meta.transfer_syntax_uid, sorted(UIDS), 1 << 26
        )
    return {tag: header.uid(tag) for tag in UIDS}


def comparable(text: str) -> bool:
    """Whether dcmdump prints a value as it is."""
    return text.isascii() and text.isprintable() and "]" not in text


# Each mutation costs a run of dcmdump.
@pytest.mark.parametrize("mutations", [60, pytest.param(300, marks=pytest.mark.long)])
def test_uids_are_those_that_dcmtk_reads_also_of_damaged_files(tmp_path: Path, mutations: int) -> None:
    rng, path = random.Random(20261130), tmp_path / "damaged.dcm"
    originals, compared, unreadable = samples(), 0, 0
    assert len(originals) > 40
    for _ in range(mutations):
        one, mutate = rng.choice(originals), rng.choice(MUTATIONS)
        path.write_bytes(mutate(rng, one))
        expected = dcmtk_reads(path)
        try:
            found = we_read(path)
        except PeerError:  # of the File Meta, which mutations leave alone
            pytest.fail(f"{one.name}, {mutate.__name__}: not read")
        if expected is None:
            unreadable += 1
        elif all(map(comparable, [*found.values(), *expected.values()])):
            compared += 1
            assert found == expected, f"{one.name}, {mutate.__name__}"
    assert compared > mutations * 0.6
    assert unreadable > 0, "some of them end DCMTK's reading"
