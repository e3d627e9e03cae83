"""Upkeep of segments: what is done is used again, what is stuck holds up nothing, what is broken stays."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.alarms import standing_alarms
from ingest.ext.segment_writer import SEGMENT_BYTES, Segments
from ingest.spool import segment, segment_upkeep
from ingest.spool.segment import Segment
from ingest.spool.segment_upkeep import SegmentUpkeep
from tests.support.segments import SegmentWriter

NUMBER = 0x18A0_5C3D_9E21_7F01


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "L0" / "segments").mkdir(parents=True)
    fd = os.open(tmp_path / "L0" / "segments", os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def keeper(folder: int, tmp_path: Path) -> SegmentUpkeep:
    return SegmentUpkeep(tmp_path / "L0", Segments(folder, durable=False), damaged_are_delivered=True)


def slot(writer: SegmentWriter) -> Path:
    return writer.path.parent.parent


def test_segments_whose_records_are_done_are_used_again_and_others_stay(
    keeper: SegmentUpkeep, tmp_path: Path
) -> None:
    done, held = (SegmentWriter(tmp_path, NUMBER + at) for at in range(2))
    done.append(b"a", done=True)
    held.append(b"a", done=True)
    place = held.append(b"b")
    keeper.run_once()
    assert segment.list_segments(slot(done)) == [held.path.name]
    [spare] = slot(done).glob("segments/*.tmp")
    assert spare.stat().st_size == SEGMENT_BYTES
    segment.mark_persisted(held.path, place)
    keeper.run_once()
    assert segment.list_segments(slot(done)) == []


def test_more_spare_segments_than_are_of_use_are_removed(keeper: SegmentUpkeep, tmp_path: Path) -> None:
    for at in range(7):
        SegmentWriter(tmp_path, NUMBER + at).append(b"a", done=True)
    keeper.run_once()
    assert segment.list_segments(tmp_path / "L0") == []
    assert len(list(tmp_path.glob("L0/segments/*.tmp"))) == 4


def test_records_that_are_stuck_keep_back_no_other_segment_and_are_an_alarm(
    keeper: SegmentUpkeep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_upkeep, "STUCK_SECONDS", -1.0)
    writers = [SegmentWriter(tmp_path, NUMBER + at) for at in range(30)]
    stuck = writers[:10] + writers[20:25]
    for writer in writers:
        writer.append(b"a", done=writer not in stuck)
    for _ in range(3):
        keeper.run_once()
    assert segment.list_segments(tmp_path / "L0") == [writer.path.name for writer in stuck]
    # Those that are stuck are older than one that was persisted.
    assert keeper.list_stuck() == [writer.path.name for writer in stuck]
    segment_upkeep.update_stuck_alarm(tmp_path, "L0", keeper.list_stuck())
    [alarm] = standing_alarms(tmp_path)
    assert alarm.name == "segments_stuck.L0"
    assert "15 segments of L0, of 120 MiB" in alarm.cause
    for writer in stuck:
        segment.mark_persisted(writer.path, 64)
    for _ in range(3):
        keeper.run_once()
    segment_upkeep.update_stuck_alarm(tmp_path, "L0", keeper.list_stuck())
    assert standing_alarms(tmp_path) == []


def test_a_backlog_is_no_alarm(
    keeper: SegmentUpkeep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_upkeep, "STUCK_SECONDS", -1.0)
    for at in range(3):
        SegmentWriter(tmp_path, NUMBER + at).append(b"a")
    keeper.run_once()
    assert keeper.list_stuck() == []


def test_a_segment_that_is_read_or_written_is_not_retired(keeper: SegmentUpkeep, tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, NUMBER)
    writer.append(b"a", done=True)
    fd = os.open(writer.path, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_SH)
    keeper.run_once()
    segment_upkeep.remove_persisted_segments(slot(writer))
    assert segment.list_segments(slot(writer)) == [writer.path.name]
    with Segment(writer.path), segment_upkeep.lock_unused(writer.path) as free:
        assert not free
    os.close(fd)
    with segment_upkeep.lock_unused(writer.path) as free:
        assert free
    with segment_upkeep.lock_unused(writer.path.with_name("0-0.seg")) as free:
        assert not free
    keeper.run_once()
    assert segment.list_segments(slot(writer)) == []


def test_a_segment_with_a_lost_header_is_kept_once_all_else_in_it_is_done(
    keeper: SegmentUpkeep, tmp_path: Path
) -> None:
    writer = SegmentWriter(tmp_path, NUMBER)
    writer.append(b"lost")
    place = writer.append(b"waits")
    writer.flip(8)
    keeper.run_once()
    assert segment.list_segments(slot(writer)) == [writer.path.name]
    segment.mark_persisted(writer.path, place)
    before = writer.path.read_bytes()
    keeper.run_once()
    assert segment.list_segments(slot(writer)) == []
    [kept] = slot(writer).glob("segments/*.damaged")
    assert kept.read_bytes() == before
    segment_upkeep.update_damage_alarm(tmp_path, tmp_path / "run")
    [alarm] = standing_alarms(tmp_path / "run")
    assert alarm.name == "spool_damaged"
    assert "at least 1 of these were acknowledged" in alarm.cause
    assert (
        segment_upkeep.remove_unfinished_segments(slot(writer))
        == segment_upkeep.remove_persisted_segments(slot(writer))
        == 0
    )
    kept.unlink()
    segment_upkeep.update_damage_alarm(tmp_path, tmp_path / "run")
    assert standing_alarms(tmp_path / "run") == []


@pytest.mark.parametrize("delivered", [True, False])
def test_damaged_bytes_wait_for_a_worker_where_workers_get_them(
    folder: int, tmp_path: Path, *, delivered: bool
) -> None:
    own = SegmentUpkeep(tmp_path / "L0", Segments(folder, durable=False), damaged_are_delivered=delivered)
    writer = SegmentWriter(tmp_path, NUMBER)
    writer.flip(writer.append(b"rotten"))
    own.run_once()
    assert segment.list_segments(slot(writer)) == ([writer.path.name] if delivered else [])
    assert len(list(tmp_path.glob("L0/segments/*.damaged"))) == (0 if delivered else 1)


def test_a_segment_of_another_size_is_not_used_again(keeper: SegmentUpkeep, tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, NUMBER)
    writer.append(b"a", done=True)
    os.truncate(writer.path, SEGMENT_BYTES + 1)
    keeper.run_once()
    assert os.listdir(writer.path.parent) == []


def test_what_a_dead_owner_left_goes_but_for_what_waits_or_is_broken(tmp_path: Path) -> None:
    done, held, broken = (SegmentWriter(tmp_path, NUMBER + at) for at in range(3))
    done.append(b"a", done=True)
    held.append(b"b")
    broken.append(b"c")
    broken.flip(20)
    (done.path.parent / f"{NUMBER + 3:016x}-0.tmp").write_bytes(b"begun")
    (done.path.parent / "note.txt").write_text("not ours")
    assert segment_upkeep.remove_unfinished_segments(slot(done)) == 1
    assert segment_upkeep.remove_persisted_segments(slot(done)) == 1
    left = [held.path.name, f"{broken.path.stem}.damaged", "note.txt"]
    assert sorted(os.listdir(done.path.parent)) == sorted(left)
    assert segment_upkeep.remove_unfinished_segments(tmp_path / "none") == 0
    assert segment_upkeep.remove_persisted_segments(tmp_path / "none") == 0
