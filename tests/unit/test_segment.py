"""Segments: what is read of them is what was promised, whatever else the file holds."""

import fcntl
import os
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.spool import segment
from ingest.spool.segment import HEADER_BYTES, Segment
from tests.segments import SEGMENT_BYTES, SegmentWriter, aligned, header

NUMBER = 0x18A0_0000_0000_0001
STALE = NUMBER - 1


@pytest.fixture
def writer(tmp_path: Path) -> SegmentWriter:
    return SegmentWriter(tmp_path, NUMBER)


def offsets(writer: SegmentWriter) -> list[int]:
    return [record.offset for record in segment.walk(writer.path)]


def waiting(writer: SegmentWriter) -> list[int]:
    with Segment(writer.path) as opened:
        return [record.offset for record in opened.waiting()]


# --- the walk


def test_records_are_found_in_their_order_with_what_their_headers_say(writer: SegmentWriter) -> None:
    first = writer.append(b"one", received_ms=1_700_000_000_123)
    second = writer.append(b"t" * 5000, in_order=True)
    third = writer.append(b"three", done=True)
    records = list(segment.walk(writer.path))
    assert [record.offset for record in records] == [first, second, third] == [64, 192, 5312]
    assert [record.length for record in records] == [3, 5000, 5]
    assert [record.checked for record in records] == [True, False, True]
    assert [record.done for record in records] == [False, False, True]
    assert records[0].received_ms == 1_700_000_000_123
    assert waiting(writer) == [first, second]


def test_groups_are_found_behind_holes_up_to_the_end_of_the_file(writer: SegmentWriter) -> None:
    found = writer.group(b"a", b"b")
    writer.at += 3 * 4096
    found += writer.group(b"c")
    writer.at = SEGMENT_BYTES - 4096
    found += writer.group(b"d" * (4096 - HEADER_BYTES))
    assert offsets(writer) == found
    assert writer.at == SEGMENT_BYTES


def test_a_new_segment_holds_nothing(writer: SegmentWriter) -> None:
    assert offsets(writer) == []
    assert segment.all_done(writer.path)


def test_records_longer_than_what_is_read_at_once_are_read_whole(
    writer: SegmentWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment, "WINDOW", 1000)
    found = [writer.append(os.urandom(size)) for size in (5000, 936, 935, 1, 20_000)]
    assert waiting(writer) == found


def test_what_was_written_in_an_earlier_life_of_the_file_is_no_record(
    writer: SegmentWriter, tmp_path: Path
) -> None:
    for _ in range(100):
        writer.append(b"old" * 100)
    later = SegmentWriter(tmp_path, NUMBER + 1)
    writer.path.rename(later.path)
    found = later.group(b"new")
    assert offsets(later) == found
    assert waiting(later) == found


@pytest.mark.parametrize("at", [0, 7, 8, 16, 24, 28, 32, 40, 43])
def test_a_header_of_which_a_byte_is_wrong_is_none(writer: SegmentWriter, at: int) -> None:
    writer.append(b"data")
    second = writer.group(b"next")
    content = writer.path.read_bytes()
    writer.write(at, bytes([content[at] ^ 0x10]))
    assert offsets(writer) == second


@pytest.mark.parametrize("length", [0, SEGMENT_BYTES - HEADER_BYTES + 1, 2**64 - 1])
def test_a_length_that_the_file_has_not_is_none(writer: SegmentWriter, length: int) -> None:
    writer.write(0, _header_of_length(length))
    assert offsets(writer) == []


def _header_of_length(length: int) -> bytes:
    first = b"DIRECORD" + struct.pack("<QQLLQ", NUMBER, length, 0, 1, 1)
    return first + struct.pack("<L", zlib.crc32(first)) + bytes(20)


def test_a_torn_record_is_walked_over_and_does_not_wait(writer: SegmentWriter) -> None:
    torn, whole = writer.append(b"t" * 9000), writer.append(b"w" * 9000)
    writer.write(torn + 4096, bytes(4096))
    assert offsets(writer) == [torn, whole]
    assert waiting(writer) == [whole]
    with Segment(writer.path) as opened:
        assert [segment.intact(opened.fd, record) for record in opened.records()] == [False, True]


def test_a_group_that_is_torn_hides_no_later_one(writer: SegmentWriter) -> None:
    first, second = writer.group(b"a" * 3000, b"b" * 3000)
    later = writer.group(b"c")
    writer.write(second - HEADER_BYTES, bytes(4096 - (second - HEADER_BYTES)))
    assert waiting(writer) == [first, *later]


data_sets = st.binary(min_size=1, max_size=9000)
groups = st.lists(
    st.tuples(
        st.integers(0, 3),  # pages left out before it
        st.lists(st.tuples(data_sets, st.sampled_from(["whole", "done", "in order", "torn"])), max_size=5),
        st.sampled_from(["written", "lost", "cut"]),
    ),
    max_size=6,
)


@given(groups=groups, garbage=st.binary(max_size=3000), cut=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_what_waits_is_what_was_written_whole_over_any_garbage(
    tmp_path_factory: pytest.TempPathFactory,
    groups: list[tuple[int, list[tuple[bytes, str]], str]],
    garbage: bytes,
    cut: float,
) -> None:
    writer = SegmentWriter(tmp_path_factory.mktemp("spool"), NUMBER)
    # Under it all: headers of an earlier life at every possible place, and garbage between.
    old = header(b"old", STALE) + garbage
    filling = (old + bytes(aligned(len(old), 64) - len(old))) * (200_000 // len(old) + 1)
    writer.write(0, filling[:300_000])
    expected: list[int] = []
    for skipped, records, fate in groups:
        writer.at = aligned(writer.at, 4096) + 4096 * skipped
        start, before = writer.at, writer.path.read_bytes()[:400_000]
        found: list[int] = []
        for data, kind in records:
            offset = writer.append(data, in_order=kind == "in order", done=kind == "done")
            if kind == "torn":
                writer.write(offset + len(data) // 2, bytes([data[len(data) // 2] ^ 0xFF]))
            elif kind != "done":
                found.append(offset)
        if fate == "written":
            expected += found
        else:
            # A power cut: some pages of the group were written, others were not.
            keep = start if fate == "lost" else start + int((writer.at - start) * cut) // 4096 * 4096
            writer.write(keep, before[keep : writer.at])
            ends = _ends([data for data, _ in records], start)
            expected += [offset for offset in found if ends[offset] <= keep]
    assert waiting(writer) == expected


def _ends(files: list[bytes], start: int) -> dict[int, int]:
    """Where the files of a group end, by where they begin."""
    ends, at = {}, start
    for data in files:
        ends[at + HEADER_BYTES] = at + HEADER_BYTES + len(data)
        at = aligned(at + HEADER_BYTES + len(data), 64)
    return ends


@given(st.binary(max_size=20_000))
@settings(max_examples=40, deadline=None)
def test_garbage_is_walked_to_its_end(tmp_path_factory: pytest.TempPathFactory, garbage: bytes) -> None:
    writer = SegmentWriter(tmp_path_factory.mktemp("spool"), NUMBER)
    writer.write(0, header(b"", NUMBER)[:HEADER_BYTES] + garbage)
    assert waiting(writer) == []


# --- one record


def test_a_record_is_read_by_its_place(writer: SegmentWriter) -> None:
    offset = writer.append(b"data", received_ms=77)
    with Segment(writer.path) as opened:
        found = opened.read(offset, 4)
        assert found is not None
        record, data = found
    assert (bytes(data), record.received_ms) == (b"data", 77)


def test_what_is_no_place_of_a_record_that_waits_gives_nothing(writer: SegmentWriter) -> None:
    offset = writer.append(b"d" * 100)
    done = writer.append(b"done", done=True)
    for at, length in (
        (offset, 99),
        (offset, 0),
        (offset + 1, 100),
        (offset + 64, 100),
        (offset - 64, 100),
        (done, 4),
        (SEGMENT_BYTES, 4),
        (2 * SEGMENT_BYTES, 4),
        (1 << 100, 4),
        (offset, 1 << 100),
        (offset, -1),
    ):
        with Segment(writer.path) as opened:
            assert opened.read(at, length) is None


def test_a_record_that_is_marked_done_waits_no_more(writer: SegmentWriter) -> None:
    first, second = writer.append(b"a"), writer.append(b"b")
    before = writer.path.read_bytes()
    assert segment.mark_done(writer.path, first)
    assert waiting(writer) == [second]
    assert not segment.all_done(writer.path)
    assert segment.mark_done(writer.path, second)
    assert segment.all_done(writer.path)
    after = writer.path.read_bytes()
    assert [at for at in range(300) if before[at] != after[at]] == [first - 1, second - 1]


@pytest.mark.parametrize(
    "offset", [0, 63, 64 * 9, 4096 + 64, SEGMENT_BYTES, SEGMENT_BYTES + 64, 1 << 100, -64]
)
def test_nothing_is_marked_where_no_record_is(writer: SegmentWriter, offset: int) -> None:
    writer.append(b"a" * 300)
    before = writer.path.read_bytes()
    assert not segment.mark_done(writer.path, offset)
    assert writer.path.read_bytes() == before


def test_a_segment_that_is_gone_is_done(tmp_path: Path) -> None:
    path = tmp_path / f"{NUMBER:016x}-0.seg"
    assert not segment.mark_done(path, 64)
    assert segment.all_done(path)
    assert list(segment.walk(path)) == []


# --- using them again


def slot(writer: SegmentWriter) -> Path:
    return writer.path.parent.parent


def test_segments_are_free_when_nothing_waits_and_nobody_writes_to_them(tmp_path: Path) -> None:
    done, held, torn, current = (SegmentWriter(tmp_path, NUMBER + at) for at in range(4))
    done.append(b"a", done=True)
    held.append(b"a", done=True)
    held.append(b"b")
    torn.write(torn.append(b"t" * 100), b"x")
    assert segment.free_segments(slot(done), lambda: current.path.name) == [done.path.name, torn.path.name]
    assert segment.free_segments(tmp_path / "none") == []


def test_a_segment_that_is_taken_up_while_the_folder_is_listed_is_not_free(tmp_path: Path) -> None:
    first = SegmentWriter(tmp_path, NUMBER)

    def current() -> str:
        SegmentWriter(tmp_path, NUMBER + 1)  # the writer goes on in another one just now
        return f"{NUMBER + 1:016x}-0.seg"

    assert segment.free_segments(slot(first), current) == [first.path.name]


def test_a_segment_that_is_read_is_not_given_another_name(writer: SegmentWriter) -> None:
    writer.append(b"a", done=True)
    with Segment(writer.path), segment.unused(writer.path) as free:
        assert not free
    with segment.unused(writer.path) as free:
        assert free
    with segment.unused(writer.path.with_name("0-0.seg")) as free:
        assert not free


def test_a_record_is_not_marked_in_a_segment_that_was_used_again_meanwhile(
    writer: SegmentWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offset = writer.append(b"old", done=True)
    later = SegmentWriter(tmp_path, NUMBER + 1)
    flock = fcntl.flock

    def use_again_first(fd: int, how: int) -> None:
        # Between our open and our lock.
        if writer.path.exists():
            writer.path.rename(later.path)
            assert later.append(b"new") == offset
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", use_again_first)
    assert not segment.mark_done(writer.path, offset)
    assert waiting(later) == [offset]


def test_what_a_dead_owner_left_goes_but_for_what_waits(tmp_path: Path) -> None:
    done, held = SegmentWriter(tmp_path, NUMBER), SegmentWriter(tmp_path, NUMBER + 1)
    done.append(b"a", done=True)
    held.append(b"b")
    (done.path.parent / f"{NUMBER + 2:016x}-0.tmp").write_bytes(b"begun")
    (done.path.parent / "note.txt").write_text("not ours")
    assert segment.remove_unfinished(slot(done)) == 1
    assert segment.remove_done(slot(done)) == 1
    assert sorted(os.listdir(done.path.parent)) == [held.path.name, "note.txt"]
    assert segment.remove_unfinished(tmp_path / "none") == 0
    assert segment.remove_done(tmp_path / "none") == 0
