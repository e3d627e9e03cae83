"""Compressed pixel data: a second decoder finds the same pixels in every frame."""

import json
import re
import signal
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy
import psutil
import pydicom
import pytest

from ingest.codecs.frame import FrameJob, FrameLayout
from ingest.codecs.pool import CodecPool
from ingest.dicom.part10 import FileMeta, encode_file_meta
from ingest.dicom.transcoding import DECODED, ENCODED, NATIVE, TranscodeMode, TranscodingRule
from ingest.errors import RewriteError
from ingest.outgoing import pixels
from ingest.outgoing.data_set import FileParts, FileRange
from ingest.outgoing.elements import Element
from ingest.outgoing.plan import OutgoingPlan
from ingest.outgoing.transcoding import Transcoding
from tests.interop.files import storable
from tests.unit.outgoing.test_coercion import stored_at
from tests.unit.outgoing.test_transcoding import EXPLICIT, encode, make_file, syntax_of, write

pytest.importorskip("jpeg_ls", reason="pyjpegls has no wheel for this Python")

JPEG_LS, JPEG_2000, RLE = ENCODED
DECODERS = {
    JPEG_LS: ["dcmdjpls"],
    RLE: ["dcmdrle"],
    "1.2.840.10008.1.2.4.57": ["dcmdjpeg", "+cn"],
    "1.2.840.10008.1.2.4.70": ["dcmdjpeg", "+cn"],
}
"""Programs of DCMTK for the transfer syntaxes. GDCM decodes JPEG 2000."""


@pytest.fixture(scope="module")
def codecs() -> Iterator[CodecPool]:
    pool = CodecPool(1)
    yield pool
    pool.close()


def plan(codecs: CodecPool) -> OutgoingPlan:
    rule = TranscodingRule(TranscodeMode.IF_REFUSED, codecs=DECODED)
    return OutgoingPlan((), Transcoding(rule, codecs))


def transcode(codecs: CodecPool, path: Path, target: str) -> bytes:
    with stored_at(path) as stored:
        made = plan(codecs).make_data_set(stored, accepted=[target])
        assert made is not None
        parts = FileParts(stored.fd, made.parts)
        assert made.length in {None, parts.length}
        meta = FileMeta(made.sop_class_uid, made.sop_instance_uid, target, "A", "B", None)
        return encode_file_meta(meta) + parts.read(0, parts.length)


def decode(path: Path, folder: Path) -> numpy.ndarray:
    """The pixels of a file, color by pixel, by a decoder that is not ours."""
    syntax = syntax_of(path)
    if syntax in DECODERS:
        target = folder / "decoded.dcm"
        program, *options = DECODERS[syntax]
        subprocess.run(
            [program, *options, str(path), str(target)], check=True, timeout=60, capture_output=True
        )
        path = target
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data_set = pydicom.dcmread(path)
        data_set.pixel_array_options(raw=True, decoding_plugin="gdcm" if syntax == JPEG_2000 else "")
        return data_set.pixel_array


COMPARE = """
import json, sys
from pathlib import Path
import numpy
from tests.unit.outgoing.test_codecs import decode
folder, count, stored, wanted = Path(sys.argv[1]), 0, None, None
for before, after in json.load(sys.stdin):
    if before != stored:
        stored, wanted = before, decode(Path(before), folder)
    found = decode(Path(after), folder)
    if found.shape != wanted.shape or not (found == wanted).all():
        print("differs:", before, after)
    count += 1
print(count, "compared")
"""

UNREADABLE = "emri_small_jpeg_2k_lossless_too_short.dcm"
"""pydicom finds no attribute of this damaged file."""

SOME = re.compile(r"MR_small|emri_small|SC_rgb|JPGLossless|JPEG-LL|US1_|color-p|OT-PAL|examples_")
"""Names of files of each kind. The others are further images of the same kinds."""


@pytest.mark.interop
@pytest.mark.parametrize(
    "among", [SOME, pytest.param(re.compile(""), marks=pytest.mark.long)], ids=["some", "all"]
)
def test_every_frame_of_shipped_files_keeps_its_pixels(
    codecs: CodecPool, tmp_path: Path, among: re.Pattern[str]
) -> None:
    made_of: dict[str, int] = dict.fromkeys([*ENCODED, EXPLICIT], 0)
    refused: dict[str, str] = {}
    pairs: list[tuple[str, str]] = []
    for item in storable():
        path, stored = item.path, item.transfer_syntax_uid
        is_known = stored in NATIVE or stored in DECODED
        if not is_known or not among.match(path.name) or path.name == UNREADABLE:
            continue
        for target in made_of:
            if target == stored or (stored in NATIVE and target in NATIVE):
                continue
            try:
                made = transcode(codecs, path, target)
            except RewriteError as error:
                refused[path.name] = str(error).partition("cannot be transcoded: ")[2].partition("; let")[0]
                continue
            made_of[target] += 1
            write(tmp_path / f"{len(pairs)}.dcm", made)
            pairs.append((str(path), str(tmp_path / f"{len(pairs)}.dcm")))
    assert min(made_of.values()) > 10
    # In this process pydicom may have been imported without numpy (`ingest.dicom.registry`).
    command = [sys.executable, "-c", COMPARE, str(tmp_path)]
    done = subprocess.run(
        command, input=json.dumps(pairs), text=True, capture_output=True, timeout=150, check=False
    )
    assert (done.stdout, done.returncode) == (f"{len(pairs)} compared\n", 0), done.stderr
    odd = {reason for reason in refused.values() if "its codec" in reason}
    assert all("too small" in reason or "sign of its" in reason or "opj_start" in reason for reason in odd), (
        odd
    )


LAYOUT = FrameLayout(512, 512, 1, 16, 12, False, "MONOCHROME2")


def noise(layout: FrameLayout, seed: int = 1) -> bytes:
    """A frame that uses every bit stored."""
    numbers = numpy.random.default_rng(seed).integers(
        0, 1 << layout.bits_stored, layout.size_bytes * 8 // layout.bits_allocated
    )
    if layout.is_signed:
        numbers -= 1 << (layout.bits_stored - 1)
    kind = "i" if layout.is_signed else "u"
    return numbers.astype(f"<{kind}{layout.bits_allocated // 8}").tobytes()


@pytest.mark.parametrize("middle", [JPEG_LS, JPEG_2000, RLE])
@pytest.mark.parametrize(
    "layout",
    [
        FrameLayout(37, 33, 1, 8, 8, False, "MONOCHROME2"),
        FrameLayout(37, 33, 1, 8, 6, True, "MONOCHROME2"),
        FrameLayout(33, 40, 1, 16, 8, False, "MONOCHROME1"),
        FrameLayout(35, 34, 1, 16, 10, True, "MONOCHROME2"),
        FrameLayout(35, 34, 1, 16, 12, False, "MONOCHROME2"),
        FrameLayout(34, 32, 1, 16, 16, True, "MONOCHROME2"),
        FrameLayout(34, 32, 1, 16, 16, False, "MONOCHROME2"),
        FrameLayout(35, 34, 3, 8, 8, False, "RGB"),
        FrameLayout(35, 34, 3, 8, 8, False, "YBR_FULL"),
        FrameLayout(35, 34, 3, 16, 16, False, "RGB"),
    ],
)
def test_each_layout_survives_each_codec(codecs: CodecPool, layout: FrameLayout, middle: str) -> None:
    frames = [noise(layout, seed) for seed in (1, 2)]
    # Bits beyond Bits Stored, as old overlays have them, must survive as well.
    if layout.bits_stored < layout.bits_allocated:
        frames.append(numpy.random.default_rng(3).bytes(layout.size_bytes))
    made = list(codecs.transcode(FrameJob(layout, EXPLICIT, middle), frames, lambda: None))
    assert list(codecs.transcode(FrameJob(layout, middle, EXPLICIT), made, lambda: None)) == frames


def list_encoders(among: set[int] = frozenset()) -> list[psutil.Process]:
    """Return the codec processes of this process but for some."""
    found = [each for each in psutil.Process().children() if each.pid not in among]
    return [each for each in found if "ingest.codecs.program" in each.cmdline()]


@pytest.mark.parametrize("fault", ["killed", "stopped"])
def test_a_codec_that_dies_or_hangs_costs_one_data_set(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = CodecPool(1)
    job = FrameJob(LAYOUT, EXPLICIT, JPEG_LS)
    frames = [noise(LAYOUT)] * 3
    others = {each.pid for each in list_encoders()}
    try:
        [whole, *_] = list(pool.transcode(job, frames, lambda: None))
        [process] = list_encoders(others)
        if fault == "stopped":
            monkeypatch.setattr("ingest.codecs.pool.ANSWER_SECONDS", 2.0)
        made = pool.transcode(job, frames, lambda: None)
        next(made)
        process.send_signal(signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
        with pytest.raises(RewriteError, match="has crashed" if fault == "killed" else "in time"):
            list(made)
        monkeypatch.undo()
        assert list(pool.transcode(job, frames, lambda: None)) == [whole] * 3
    finally:
        pool.close()
    assert list_encoders(others) == []


def test_a_codec_that_has_answered_may_wait_for_a_slow_remote(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.codecs.pool.ANSWER_SECONDS", 1.0)
    pool = CodecPool(1)
    try:
        made = pool.transcode(FrameJob(LAYOUT, EXPLICIT, JPEG_LS), [noise(LAYOUT)] * 2, lambda: None)
        first = next(made)
        time.sleep(2.5)  # the remote takes nothing meanwhile
        assert list(made) == [first]
    finally:
        pool.close()


def test_a_data_set_that_is_left_in_its_midst_does_not_disturb_the_next(codecs: CodecPool) -> None:
    job = FrameJob(LAYOUT, EXPLICIT, JPEG_LS)
    first, second = noise(LAYOUT, 1), noise(LAYOUT, 2)
    left = codecs.transcode(job, [first] * 3, lambda: None)
    next(left)
    made = list(codecs.transcode(job, [second] * 3, lambda: None))
    left.close()
    back = list(codecs.transcode(FrameJob(LAYOUT, JPEG_LS, EXPLICIT), made, lambda: None))
    assert back == [second] * 3


def make_image(path: Path, frames: int, layout: FrameLayout) -> Path:
    """A multi-frame file whose pixels are a hole."""
    size = frames * layout.size_bytes
    head = b"".join(
        (
            encode("<", 0x0028_0002, "US", b"\1\0"),
            encode("<", 0x0028_0004, "CS", b"MONOCHROME2 "),
            encode("<", 0x0028_0008, "IS", f"{frames:<6}".encode()),
            encode("<", 0x0028_0010, "US", struct.pack("<H", layout.rows)),
            encode("<", 0x0028_0011, "US", struct.pack("<H", layout.columns)),
            encode("<", 0x0028_0100, "US", b"\x10\0"),
            encode("<", 0x0028_0101, "US", b"\x0c\0"),
            encode("<", 0x0028_0102, "US", b"\x0b\0"),
            encode("<", 0x0028_0103, "US", b"\0\0"),
            b"\xe0\x7f\x10\0OW\0\0" + struct.pack("<L", size),
        )
    )
    made = make_file(path, EXPLICIT, head)
    with made.open("r+b") as file:
        file.truncate(made.stat().st_size + size)
    return made


MEASURE = """
import os, resource, sys
from pathlib import Path
from ingest.codecs.pool import CodecPool
from tests.unit.outgoing.test_codecs import plan
from tests.unit.outgoing.test_coercion import stored_at
pool = CodecPool(1)
with stored_at(Path(sys.argv[1])) as stored:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made = plan(pool).make_data_set(stored, accepted=[sys.argv[2]])
    count = sum(1 for _ in made.parts)
    pool.close()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(count, grown, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.parametrize("frames", [12, pytest.param(256, marks=pytest.mark.long)])
def test_memory_is_bounded_by_a_frame(tmp_path: Path, frames: int) -> None:
    """256 frames of 8 MiB are 2 GiB."""
    path = make_image(tmp_path / "large", frames, FrameLayout(2048, 2048, 1, 16, 12, False, "MONOCHROME2"))
    command = [sys.executable, "-c", MEASURE, str(path), RLE]
    done = subprocess.run(command, check=True, timeout=170, capture_output=True, text=True)
    count, grown_kib, codec_kib = map(int, done.stdout.split())
    assert count >= frames
    assert (grown_kib + codec_kib) / 1024 < 300
    assert grown_kib / 1024 < 64


def encapsulated(table: list[int], fragments: list[bytes]) -> tuple[bytes, list[list[bytes]]]:
    body = struct.pack("<HHL", 0xFFFE, 0xE000, 4 * len(table)) + struct.pack(f"<{len(table)}L", *table)
    for fragment in fragments:
        body += struct.pack("<HHL", 0xFFFE, 0xE000, len(fragment)) + fragment
    return body + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)


@pytest.mark.parametrize(
    ("table", "count", "frames"),
    [
        ([], 1, [[b"aa", b"bbbb", b"cc"]]),
        ([], 3, [[b"aa"], [b"bbbb"], [b"cc"]]),
        ([0, 22], 2, [[b"aa", b"bbbb"], [b"cc"]]),
        ([0, 10], 2, [[b"aa"], [b"bbbb", b"cc"]]),
        ([0, 11], 2, "its offset table does not name its fragments"),
        ([10, 0], 2, "its offset table does not name its fragments"),
        ([], 2, "its 3 fragments cannot be told apart as 2 frames"),
    ],
)
def test_frames_are_found_by_offset_tables_or_fragments(
    tmp_path: Path, table: list[int], count: int, frames: list[list[bytes]] | str
) -> None:
    path = tmp_path / "value"
    value = encapsulated(table, [b"aa", b"bbbb", b"cc"])
    path.write_bytes(value)
    with path.open("rb") as file:
        source = FileParts(file.fileno(), [FileRange(0, len(value))])
        found = pixels.Pixels(LAYOUT, count, Element(pixels.PIXEL_DATA, b"OB", 0, 0, len(value), True))
        if isinstance(frames, str):
            with pytest.raises(RewriteError, match=frames):
                list(pixels.index_frames(source, found, {}, lambda: None))
            return
        spans = pixels.index_frames(source, found, {}, lambda: None)
        assert [[value[begin:end] for begin, end in frame] for frame in spans] == frames


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bits_allocated": 32, "bits_stored": 32}, "Bits Allocated 32"),
        ({"bits_allocated": 1, "bits_stored": 1}, "Bits Allocated 1"),
        ({"bits_stored": 10}, "Bits Stored 10 and High Bit 11"),
        ({"photometric": "YBR_FULL_422", "samples": 3}, "3 samples and YBR_FULL_422"),
        ({"samples": 4, "photometric": "RGB"}, "4 samples"),
        ({"rows": 0}, "a frame of 0 bytes"),
        ({}, ""),
    ],
)
def test_pixels_that_are_not_transcoded_safely_are_refused(changes: dict[str, object], reason: str) -> None:
    values = {name: getattr(LAYOUT, name) for name in LAYOUT.__slots__}
    made = FrameLayout(**values | changes)
    high_bit = 11 if changes.keys() <= {"bits_stored"} else made.bits_stored - 1
    found = pixels.find_hindrance(made, high_bit, frames=1)
    assert reason in found
    assert bool(found) == bool(reason)
