"""The header scanner against pydicom, on every DICOM file that pydicom and pydicom-data ship."""

import functools
import random
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import data_store
import pydicom
import pydicom.data
import pytest
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset, read_preamble
from pydicom.filewriter import write_dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from ingest.ext.errors import PeerError
from ingest.ext.header import scan

TAGS = (0x00080016, 0x00080018, 0x00080060, 0x0020000D, 0x0020000E)

# The data set is Implicit VR although the File Meta says JPEG: unreadable as its transfer syntax.
MISLABELLED = {"SC_rgb_jpeg.dcm"}
# pydicom gives an empty data set, for the file ends within a sequence item that claims more.
TOO_SHORT = {"emri_small_jpeg_2k_lossless_too_short.dcm"}


@contextmanager
def quiet() -> Iterator[None]:
    """pydicom warns of much that is wrong in these files; that is what they are for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def shipped() -> list[Path]:
    """Every file of both packages that has the DICM mark; only what is on disk, nothing is downloaded."""
    roots = [Path(pydicom.data.__file__).parent, *(Path(path) for path in data_store.__path__)]
    files = sorted(path for root in roots for path in root.rglob("*") if path.is_file())
    return [path for path in files if has_mark(path)]


def has_mark(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


@functools.lru_cache(maxsize=4)
def read(path: Path) -> tuple[str, bytes, dict[int, str]]:
    """Transfer syntax, data set as in the file, and pydicom's values of TAGS."""
    with quiet():
        with path.open("rb") as file:
            read_preamble(file, False)
            meta = read_dataset(file, False, True, stop_when=lambda tag, _vr, _length: tag.group != 2)
            syntax = str(meta.get("TransferSyntaxUID", ImplicitVRLittleEndian))
            data = file.read()
        dataset = pydicom.dcmread(path)
        values = {tag: str(dataset[tag].value or "") for tag in TAGS if tag in dataset}
    return syntax, data, values


def text(found: dict[int, bytes]) -> dict[int, str]:
    return {tag: value.rstrip(b"\x00 ").decode() for tag, value in found.items()}


FILES = shipped()
SOUND = [path for path in FILES if path.name not in MISLABELLED]


def test_there_are_files_of_every_encoding() -> None:
    syntaxes = {read(path)[0] for path in FILES}
    assert len(FILES) > 200
    assert syntaxes >= {
        ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian,
    }  # fmt: skip


@pytest.mark.parametrize("path", SOUND, ids=lambda path: path.name)
def test_attributes_are_those_that_pydicom_reads(path: Path) -> None:
    syntax, data, values = read(path)
    found = scan(data, syntax, TAGS, True)
    assert found is not None
    if path.name in TOO_SHORT:
        assert text(found).keys() == set(TAGS)
    else:
        assert text(found) == values


@pytest.mark.parametrize("path", SOUND, ids=lambda path: path.name)
def test_growing_prefix_asks_for_more_and_then_gives_the_same(path: Path) -> None:
    syntax, data, _ = read(path)
    whole = scan(data, syntax, TAGS, True)
    chance = random.Random(path.name)
    enough = False
    for size in sorted({*(chance.randrange(min(len(data), 20_000) + 1) for _ in range(60)), len(data)}):
        found = scan(data[:size], syntax, TAGS, False)
        assert found == whole or (found is None and not enough)
        enough = found is not None
        try:
            part = scan(data[:size], syntax, TAGS, True)
        except PeerError:
            assert found is None
        else:
            assert part is not None
            assert part.items() <= whole.items()


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.name in MISLABELLED], ids=lambda path: path.name
)
def test_mislabelled_data_set_is_refused(path: Path) -> None:
    syntax, data, _ = read(path)
    with pytest.raises(PeerError, match="no VR"):
        scan(data, syntax, TAGS, True)


def converted(path: Path, syntax: str) -> bytes:
    """The file's data set without its pixels, written by pydicom in another transfer syntax."""
    dataset = pydicom.dcmread(path)
    for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
        if keyword in dataset:
            del dataset[keyword]
    target = DicomBytesIO()
    target.is_implicit_VR = syntax == ImplicitVRLittleEndian
    target.is_little_endian = syntax != ExplicitVRBigEndian
    write_dataset(target, dataset)
    written = target.getvalue()
    if syntax != DeflatedExplicitVRLittleEndian:
        return written
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflater.compress(written) + deflater.flush()


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian],
    ids=lambda syntax: syntax.name,
)
def test_attributes_are_found_in_every_encoding_that_pydicom_writes(syntax: pydicom.uid.UID) -> None:
    done = 0
    for path in SOUND:
        _, _, values = read(path)
        with quiet():
            try:
                data = converted(path, syntax)
            except Exception:  # what pydicom cannot write is not for us to judge
                continue
            again = read_dataset(
                BytesIO(data), syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
            )
        found = scan(data, syntax, TAGS, True)
        assert found is not None
        assert text(found) == values, path.name
        if syntax != DeflatedExplicitVRLittleEndian:
            with quiet():
                assert text(found) == {tag: str(again[tag].value or "") for tag in TAGS if tag in again}
        done += 1
    assert done > 150
