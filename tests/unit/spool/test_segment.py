"""Segments: what is read of them is what was promised, whatever else the file holds."""

import fcntl
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.spool import segment, segment_upkeep
from ingest.spool.segment import HEADER_BYTES, Segment, SegmentReport
from tests.support.properties import examples
from tests.support.segments import MARKS_AT, SEGMENT_BYTES, SegmentWriter, aligned, header, header_2, trailer

NUMBER = 0x18A0_5C3D_9E21_7F01
STALE = NUMBER - 1
RECORDS_END = MARKS_AT - 4096


@pytest.fixture
def writer(tmp_path: Path) -> SegmentWriter:
    return SegmentWriter(tmp_path, NUMBER)


def offsets(writer: SegmentWriter) -> list[int]:
    return [record.offset for record in segment.read_records(writer.path)]


def examined(writer: SegmentWriter) -> SegmentReport:
    with Segment(writer.path) as opened:
        return opened.examine()


def waiting(writer: SegmentWriter) -> list[int]:
    return [record.offset for record in examined(writer).waiting]


def told(writer: SegmentWriter) -> tuple[list[int], list[int], list[int]]:
    """The offsets of damaged and of doubtful records, and the numbers of missing ones."""
    found = examined(writer)
    return (
        [record.offset for record in found.damaged],
        [record.offset for record in found.doubtful],
        found.missing,
    )


# --- the walk


def test_records_are_found_in_their_order_with_what_their_headers_say(writer: SegmentWriter) -> None:
    first = writer.append(b"one", received_ms=1_700_000_000_123)
    second = writer.append(b"t" * 5000, promised=0)
    third = writer.append(b"three", done=True)
    records = list(segment.read_records(writer.path))
    assert [record.offset for record in records] == [first, second, third] == [64, 192, 5312]
    assert [record.length for record in records] == [3, 5000, 5]
    assert [record.number for record in records] == [0, 1, 2]
    assert [record.committed_before for record in records] == [1, 0, 3]
    assert [record.is_persisted for record in records] == [False, False, True]
    assert all(record.has_checksum for record in records)
    assert records[0].received_ms == 1_700_000_000_123
    assert waiting(writer) == [first, second]


def test_records_of_the_first_layout_are_read_and_marked_as_they_were(writer: SegmentWriter) -> None:
    first = writer.append_old(b"one", received_ms=7)
    unchecked = writer.append_old(b"t" * 5000, in_order=True)
    done = writer.append_old(b"three", done=True)
    records = list(segment.read_records(writer.path))
    assert [record.offset for record in records] == [first, unchecked, done]
    assert [record.has_checksum for record in records] == [True, False, True]
    assert [record.is_persisted for record in records] == [False, False, True]
    assert waiting(writer) == [first, unchecked]
    before = writer.path.read_bytes()
    assert segment.mark_persisted(writer.path, first)
    assert waiting(writer) == [unchecked]
    after = writer.path.read_bytes()
    assert [at for at in range(300) if before[at] != after[at]] == [first - 1]
    assert segment.mark_persisted(writer.path, unchecked)
    assert segment_upkeep.is_disposable(writer.path)


def test_the_version_before_takes_records_of_today_for_such_without_a_crc(writer: SegmentWriter) -> None:
    writer.append(b"data")
    head = writer.path.read_bytes()[:64]
    magic, number, length, _, flags, _, crc = struct.unpack_from("<8sQQLLQL", head)
    assert (magic, number, length, flags & 1, head[63]) == (b"DIRECORD", NUMBER, 4, 1, 0)
    assert zlib.crc32(head[:40]) == crc


def test_groups_are_found_behind_holes_up_to_the_end_of_the_file(writer: SegmentWriter) -> None:
    found = writer.group(b"a", b"b")
    writer.at += 3 * 4096
    found += writer.group(b"c")
    writer.at = RECORDS_END - 4096
    found += writer.group(b"d" * (4096 - HEADER_BYTES))
    assert offsets(writer) == found
    assert writer.at == RECORDS_END


def test_a_new_segment_holds_nothing(writer: SegmentWriter) -> None:
    assert offsets(writer) == []
    assert segment_upkeep.is_disposable(writer.path)


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
        writer.append(b"old" * 100, done=True)
    writer.write_trailer()
    later = SegmentWriter(tmp_path, NUMBER + 1)
    writer.path.rename(later.path)
    found = later.group(b"new")
    assert offsets(later) == found
    assert waiting(later) == found
    assert told(later) == ([], [], [])


@pytest.mark.parametrize("length", [0, SEGMENT_BYTES - HEADER_BYTES + 1, 2**64 - 1])
def test_a_length_that_the_file_has_not_is_none(writer: SegmentWriter, length: int) -> None:
    first = b"DIRECORD" + struct.pack("<QQLLQ", NUMBER, length, 0, 1, 1)
    writer.write(0, first + struct.pack("<L", zlib.crc32(first)) + bytes(20))
    assert offsets(writer) == []


def test_a_record_within_the_bytes_of_another_is_none(writer: SegmentWriter) -> None:
    forged = header_2(b"forged", NUMBER, 1, 128, 2) + b"forged"
    [outer] = writer.group(bytes(64) + forged + bytes(4096))
    assert offsets(writer) == [outer]


# --- torn, damaged, doubtful


def test_bytes_that_are_not_those_received_are_damage_once_a_later_record_proves_them_promised(
    writer: SegmentWriter,
) -> None:
    [rotten, sound] = writer.group(b"r" * 9000, b"s" * 9000)
    later = writer.group(b"later")
    writer.flip(rotten + 4500)
    assert offsets(writer) == [rotten, sound, *later]
    assert waiting(writer) == [sound, *later]
    assert told(writer) == ([rotten], [], [])
    assert not segment_upkeep.is_disposable(writer.path)


def test_bytes_of_a_promised_last_group_are_damage_by_its_trailer(writer: SegmentWriter) -> None:
    [rotten, sound] = writer.group(b"r" * 9000, b"s" * 9000, trailing=True)
    writer.flip(rotten)
    assert told(writer) == ([rotten], [], [])
    assert waiting(writer) == [sound]


def test_page_cache_records_prove_themselves_promised(writer: SegmentWriter) -> None:
    rotten = writer.append(b"r" * 900)
    writer.flip(rotten + 899)
    assert told(writer) == ([rotten], [], [])


def test_a_torn_last_group_is_doubtful_as_long_as_nothing_tells(writer: SegmentWriter) -> None:
    kept = writer.group(b"kept")
    [torn, whole] = writer.group(b"t" * 9000, b"w" * 100)
    writer.write(torn + 4096, bytes(4096))
    assert told(writer) == ([], [torn], [])
    assert waiting(writer) == [*kept, whole]
    assert not segment_upkeep.is_disposable(writer.path)
    with Segment(writer.path) as opened:
        record = next(record for record in opened.records() if record.offset == torn)
        assert "cannot be told" in opened.classify_damage(record)


def test_a_group_whose_writer_is_at_it_still_is_no_damage(writer: SegmentWriter) -> None:
    [torn] = writer.group(b"t" * 9000)
    writer.write(torn + 4096, bytes(4096))
    fd = os.open(writer.path, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_SH)  # as the writer does
    assert told(writer) == ([], [], [])
    os.close(fd)
    assert told(writer) == ([], [torn], [])


def test_a_group_that_a_closing_trailer_leaves_out_was_never_promised(writer: SegmentWriter) -> None:
    writer.group(b"kept", trailing=True)
    writer.write_trailer(closed=True)
    # Of the failed group the first header is under the trailer, the second record is torn.
    writer.at, writer.count = aligned(writer.at, 4096) + 4096, 2
    writer.write(writer.append(b"t" * 9000, promised=1) + 100, bytes(10))
    assert told(writer) == ([], [], [])


def test_damage_of_the_first_layout_is_told_by_a_later_group(writer: SegmentWriter) -> None:
    rotten = writer.append_old(b"r" * 9000)
    writer.at = aligned(writer.at, 4096)
    writer.append_old(b"l" * 100)
    last = writer.append_old(b"d" * 100)
    writer.flip(rotten)
    writer.flip(last)
    assert told(writer) == ([rotten], [last], [])


@pytest.mark.parametrize("layout", ["group", "page-cache"])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_no_flipped_bit_of_a_header_drops_a_promised_record_in_silence(
    writer: SegmentWriter, which: int, layout: str
) -> None:
    data = [b"a" * 3000, b"b" * 5000, b"c" * 100]
    if layout == "group":
        places = writer.group(*data, trailing=True)
    else:
        places = [writer.append(each) for each in data]
    others = [place for place in places if place != places[which]]
    for at in range(60):
        writer.flip(places[which] - HEADER_BYTES + at, at % 8)
        assert (waiting(writer), told(writer)) == (others, ([], [], [which])), at
        assert not segment_upkeep.is_disposable(writer.path)
        writer.flip(places[which] - HEADER_BYTES + at, at % 8)


@pytest.mark.parametrize("at", range(60, 64))
def test_what_no_checksum_covers_of_a_header_means_nothing(writer: SegmentWriter, at: int) -> None:
    place = writer.append(b"a" * 3000)
    writer.flip(place - HEADER_BYTES + at)
    assert waiting(writer) == [place]


def test_a_lost_header_of_a_record_that_is_done_harms_nobody(writer: SegmentWriter) -> None:
    for done in (True, True, True):
        writer.append(b"a" * 3000, done=done)
    writer.flip(8)
    assert told(writer) == ([], [], [])
    assert segment_upkeep.is_disposable(writer.path)


def test_damage_of_a_record_that_is_done_harms_nobody(writer: SegmentWriter) -> None:
    writer.flip(writer.append(b"a" * 3000, done=True))
    assert segment_upkeep.is_disposable(writer.path)


def test_a_header_whose_page_was_lost_hides_no_other_record(writer: SegmentWriter) -> None:
    places = writer.group(b"a" * 100, b"b" * 6000, b"c" * 100)
    later = writer.group(b"d")
    writer.write(0, bytes(4096))
    assert waiting(writer) == [places[2], *later]
    assert told(writer) == ([], [], [0, 1])


def test_garbage_instead_of_a_mark_is_no_mark(writer: SegmentWriter) -> None:
    places = [writer.append(bytes([number])) for number in range(200)]
    writer.write(MARKS_AT, b"\xff" * 800 + os.urandom(800))
    assert waiting(writer) == places


def test_a_file_that_was_cut_short_is_kept(writer: SegmentWriter) -> None:
    places = [writer.append(bytes(3000)) for _ in range(3)]
    os.truncate(writer.path, 5000)
    found = examined(writer)
    assert [record.offset for record in found.waiting] == places[:1]
    assert [record.offset for record in found.damaged] == [places[1]]
    assert found.is_cut
    assert not segment_upkeep.is_disposable(writer.path)
    with Segment(writer.path) as opened:
        assert opened.read(places[2], 3000) is None
        record, data = opened.read(places[1], 3000) or (None, None)
        assert record is not None
        assert data is not None
        assert not record.matches(data)


def test_a_page_that_the_disk_does_not_give_hides_no_other_record(
    writer: SegmentWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [writer.append(bytes(3000)) for _ in range(3)]
    pread = os.pread

    def refusing(fd: int, length: int, offset: int) -> bytes:
        if offset < 8192 and offset + length > 4096:
            raise OSError(5, "Input/output error")
        return pread(fd, length, offset)

    monkeypatch.setattr(os, "pread", refusing)
    found = examined(writer)
    # The second record's data lies in that page, and may be given later. Of the third the header does.
    assert [record.offset for record in found.waiting] == places[:2]
    assert found.is_unreadable
    assert not found.is_disposable
    assert not segment_upkeep.is_disposable(writer.path)


data_sets = st.binary(min_size=1, max_size=9000)
groups = st.lists(
    st.tuples(
        st.integers(0, 3),  # pages left out before it
        st.lists(st.tuples(data_sets, st.sampled_from(["whole", "done", "old", "torn"])), max_size=5),
        st.sampled_from(["written", "lost", "cut"]),
    ),
    max_size=6,
)


@given(groups=groups, garbage=st.binary(max_size=3000), cut=st.floats(0, 1))
@examples(4)
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
        start, before, count = writer.at, writer.path.read_bytes()[:400_000], writer.count
        found: list[int] = []
        for data, kind in records:
            if kind == "old":
                offset = writer.append_old(data, in_order=len(data) % 2 == 0)
            else:
                offset = writer.append(data, done=kind == "done", promised=count)
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
@examples(40)
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
        assert (bytes(data), record.received_ms, record.matches(data)) == (b"data", 77, True)
        writer.flip(offset)
        found = opened.read(offset, 4)
        assert found is not None
        assert not found[0].matches(found[1])


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
    assert segment.mark_persisted(writer.path, first)
    assert waiting(writer) == [second]
    assert not segment_upkeep.is_disposable(writer.path)
    assert segment.mark_persisted(writer.path, second)
    assert segment_upkeep.is_disposable(writer.path)


def test_a_mark_changes_no_page_that_holds_a_record(writer: SegmentWriter) -> None:
    places = [writer.append(bytes([number]) * 700) for number in range(50)]
    before = writer.path.read_bytes()
    for place in places[::2]:
        assert segment.mark_persisted(writer.path, place)
    after = writer.path.read_bytes()
    assert before[:MARKS_AT] == after[:MARKS_AT]
    assert len(before) == len(after)
    assert waiting(writer) == places[1::2]


@pytest.mark.parametrize(
    "offset", [0, 63, 64 * 9, 4096 + 64, SEGMENT_BYTES, SEGMENT_BYTES + 64, 1 << 100, -64]
)
def test_nothing_is_marked_where_no_record_is(writer: SegmentWriter, offset: int) -> None:
    writer.append(b"a" * 300)
    before = writer.path.read_bytes()
    assert not segment.mark_persisted(writer.path, offset)
    assert writer.path.read_bytes() == before


def test_a_segment_that_is_gone_is_done(tmp_path: Path) -> None:
    path = tmp_path / f"{NUMBER:016x}-0.seg"
    assert not segment.mark_persisted(path, 64)
    assert segment_upkeep.is_disposable(path)
    assert list(segment.read_records(path)) == []


def test_a_record_is_not_marked_in_a_segment_that_was_used_again_meanwhile(
    writer: SegmentWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offset = writer.append(b"old", done=True)
    later = SegmentWriter(tmp_path, NUMBER + 1)
    monkeypatch.setattr(fcntl, "flock", used_again_first(writer, later, offset))
    assert not segment.mark_persisted(writer.path, offset)
    assert waiting(later) == [offset]


def used_again_first(writer: SegmentWriter, later: SegmentWriter, offset: int) -> Callable[[int, int], None]:
    flock = fcntl.flock

    def use_again_first(fd: int, how: int) -> None:
        # Between our open and our lock.
        if writer.path.exists():
            writer.path.rename(later.path)
            assert later.append(b"new") == offset
        flock(fd, how)

    return use_again_first


# --- the layout


@pytest.mark.parametrize(
    ("offset", "length", "value"),
    [
        (segment.SEGMENT_NUMBER_AT, 8, NUMBER),
        (segment.LENGTH_AT, 8, 4),
        (segment.FLAGS_AT, 4, segment.SECOND_LAYOUT | segment.WITHOUT_CRC),
        (segment.RECEIVED_AT, 8, 77),
        (segment.RECORD_NUMBER_AT, 4, 1),
        (segment.HEADER_OFFSET_AT, 4, 128),
        (segment.COMMITTED_AT, 4, 1),
    ],
)
def test_header_has_its_fields_at_the_named_offsets(
    writer: SegmentWriter, offset: int, length: int, value: int
) -> None:
    writer.append(b"one")
    place = writer.append(b"data", received_ms=77, promised=1)
    found = writer.path.read_bytes()[place - segment.HEADER_BYTES : place]
    assert found[segment.MAGIC_AT : segment.SEGMENT_NUMBER_AT] == segment.MAGIC
    assert int.from_bytes(found[offset : offset + length], "little") == value


def test_trailer_has_its_fields_at_the_named_offsets() -> None:
    encoded = trailer(NUMBER, 5, closed=True)
    assert encoded.startswith(segment.TRAILER_MAGIC)
    assert encoded[segment.TRAILER_SEGMENT_AT : segment.TRAILER_COUNT_AT] == NUMBER.to_bytes(8, "little")
    assert encoded[segment.TRAILER_COUNT_AT : segment.TRAILER_FLAGS_AT] == (5).to_bytes(4, "little")
    assert encoded[segment.TRAILER_FLAGS_AT : segment.TRAILER_CRC_AT] == segment.CLOSED.to_bytes(4, "little")
