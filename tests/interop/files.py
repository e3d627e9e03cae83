"""Part 10 files for the interop tests: what pydicom and pydicom-data ship, what we make, how to read them."""

import hashlib
import importlib.util
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pydicom

from ingest.dicom.part10 import FileMeta, encode_file_meta, read_file_meta
from ingest.dicom.uids import DEFLATED
from ingest.requestor.send_files import SendableFile, find_files
from tests.support.instances import CT, EXPLICIT, element
from tests.support.peers import require_program

REFUSED = {
    "bad_sequence.dcm": 0xA900,  # its SOP Instance UID is a hash in hexadecimal; the File Meta has another
    "SC_rgb_jpeg.dcm": 0xC000,  # JPEG Baseline, says its File Meta, but the VR is implicit
}
"""Part 10 files that are shipped but cannot be stored, and the status that says why."""
CUT_SHORT = frozenset(
    {"MR_truncated.dcm", "rtplan_truncated.dcm", "emri_small_jpeg_2k_lossless_too_short.dcm"}
)
"""Those whose last element lacks bytes: stored as they came, but dcmdump says that they end too early."""
CUT_SHORT_AND_ODD = "rtplan_truncated.dcm"
"""The one of them that has an odd length: no sender of ours can pad it, since no value ends where it does."""

ROOT = "1.2.826.0.1.3680043.10.1599"
"""Below it lie the UIDs of what these tests make."""


def folders() -> tuple[Path, ...]:
    """Where pydicom and pydicom-data keep their files."""
    found = []
    for package in ("pydicom", "data_store"):
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        found.append(Path(spec.origin).parent / "data")
    return tuple(found)


def storable() -> list[SendableFile]:
    """All files that they ship and that can be stored, in a fixed order."""
    found, unusable, _ = find_files(folders())
    assert not unusable
    return [item for item in found if item.path.name not in REFUSED]


def distinct(items: Iterable[SendableFile], among: Counter[str] | None = None) -> list[SendableFile]:
    """Of those that share a SOP instance UID, the first."""
    seen = among if among is not None else Counter()
    kept = []
    for item in items:
        if not seen[item.sop_instance_uid]:
            kept.append(item)
        seen[item.sop_instance_uid] += 1
    return kept


def honest(item: SendableFile) -> bool:
    """Whether the File Meta names the same UIDs as the data set; many senders believe it."""
    meta, _ = read(item.path)
    return (meta.sop_class_uid, meta.sop_instance_uid) == (item.sop_class_uid, item.sop_instance_uid)


def read(path: Path) -> tuple[FileMeta, bytes]:
    """File Meta and data set."""
    with path.open("rb") as file:
        meta, offset = read_file_meta(file.fileno())
        file.seek(offset)
        return meta, file.read()


def data_set(path: Path) -> bytes:
    return read(path)[1]


def by_uid(paths: Iterable[Path]) -> dict[str, Path]:
    """Paths by their Media Storage SOP Instance UID."""
    paths = list(paths)
    found = {read(path)[0].sop_instance_uid: path for path in paths}
    assert len(found) == len(paths)
    return found


def digest(path: Path) -> str:
    """SHA-256 of the data set, read in pieces."""
    with path.open("rb") as file:
        _, offset = read_file_meta(file.fileno())
        file.seek(offset)
        return hashlib.file_digest(file, "sha256").hexdigest()


def on_the_wire(item: SendableFile) -> bytes:
    """What our sender makes of a file: its data set, and after an odd deflate stream a zero."""
    found = data_set(item.path)
    return found + b"\0" * (len(found) % 2 if item.transfer_syntax_uid in DEFLATED else 0)


def unreadable_by_dcmdump(paths: Sequence[Path]) -> list[Path]:
    """Those that DCMTK does not take for Part 10 files, or cannot read to their end."""
    program = require_program("dcmdump")

    def fails(some: Sequence[Path]) -> bool:
        command = [program, "-q", "+fo", "-M", *map(str, some)]
        return subprocess.run(command, stdout=subprocess.DEVNULL, timeout=60).returncode != 0

    # Of a command line of hundreds of files only one exit code comes back; hardly ever is it bad.
    return [path for path in paths if fails([path])] if paths and fails(paths) else []


def assert_read_by_others(paths: Iterable[Path]) -> None:
    """dcmdump and pydicom read each of these Part 10 files."""
    paths = list(paths)
    assert not unreadable_by_dcmdump(paths)
    for path in paths:
        read_with_pydicom(path)


def read_with_pydicom(path: Path) -> pydicom.FileDataset:
    """As a Part 10 file, File Meta checked; with every element of the top level converted."""
    with pydicom.config.disable_value_validation():
        found = pydicom.dcmread(path, force=False)
        pydicom.dataset.validate_file_meta(found.file_meta, enforce_standard=True)
        for element in found:
            assert element.tag is not None
    return found


def made(number: int, size: int = 256, *, study: str | None = "1", sop_class: str = CT) -> bytes:
    """A synthetic Part 10 file in Explicit VR Little Endian; `size` is that of its pixels, in bytes."""
    uids = [(0x0008, 0x0016, sop_class), (0x0008, 0x0018, made_uid(number))]
    if study is not None:
        uids += [(0x0020, 0x000D, f"{ROOT}.1.{study}"), (0x0020, 0x000E, f"{ROOT}.2.{study}.{number % 10}")]
    meta = encode_file_meta(FileMeta(sop_class, made_uid(number), EXPLICIT))
    pixels = number.to_bytes(8, "little") * (size // 8)
    parts = [element(group, tag, "UI", uid.encode()) for group, tag, uid in uids]
    parts.insert(2, element(0x0010, 0x0020, "LO", b"TESTS"))
    return b"".join([meta, *parts, element(0x7FE0, 0x0010, "OB", pixels)])


def made_uid(number: int) -> str:
    """The SOP instance UID of `made(number)`."""
    return f"{ROOT}.3.{number}"


def write_made(folder: Path, count: int, size: int = 256, first: int = 0) -> list[Path]:
    """Files of `count` synthetic instances."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(first, first + count):
        path = folder / f"{number}.dcm"
        path.write_bytes(made(number, size))
        paths.append(path)
    return paths
