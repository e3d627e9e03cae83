"""Power cuts as disks have them: of what was not waited for, any sectors were written, and others were not.

Snapshots of a segment that the real writer fills, and workers mark, stand for what the page cache held at
each time. After a cut a disk holds the last snapshot that was waited for, with any sectors of the next one,
and perhaps with one sector of garbage where it was writing when the power went.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ingest.spool import segment
from ingest.spool.segment import Segment
from tests.support.segments import MARKS_AT
from tests.support.storing import site
from tests.unit.ext.test_segment_writer import SMALL, instance, segments

SECTOR = 512


@dataclass
class Snapshot:
    """The segment once some instances were answered, of which some are done.

    Attributes:
        content: The file.
        whole: The Part 10 files that were promised, by their offset.
        done: The offsets of those that store and ledger have.
    """

    content: bytes
    whole: dict[int, bytes]
    done: set[int]


@pytest.fixture(scope="module", params=["durable", "page-cache"])
def history(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, list[Snapshot]]:
    return str(request.param), list(_record(tmp_path_factory.mktemp("site"), request.param == "durable"))


def _record(folder: Path, durable: bool) -> Iterator[Snapshot]:
    whole: dict[int, bytes] = {}
    done: set[int] = set()
    with site(folder, durable=durable, small=SMALL) as own, own.association() as association:
        for turn in range(12):
            # Several in one write: with durability they become a group.
            association.feed(*(instance(10 * turn + each, 700 + 1300 * each) for each in range(1 + turn % 4)))
            assert own.settle(association) == []
            association.responses()
            [path] = segments(own)
            content = path.read_bytes()
            with Segment(path, marking=True) as opened:
                for record in opened.records():
                    whole[record.offset] = content[record.offset : record.offset + record.length]
                for offset in list(whole)[: turn // 2]:
                    opened.mark_persisted(offset)
                    done.add(offset)
            yield Snapshot(path.read_bytes(), dict(whole), set(done))


def cut(before: Snapshot, after: Snapshot, chance: random.Random, kind: str, *, garbage: bool) -> bytes:
    """What a disk may hold on which `before` is durable and `after` was being written.

    With durability a group is begun once the one before it is durable, so that one was under way at most.
    """
    disk = bytearray(before.content)
    areas = _areas(after, set(before.whole)) if kind == "durable" else [(0, MARKS_AT)]
    under_way = chance.randrange(len(areas))
    for start, end in areas[:under_way]:
        disk[start:end] = after.content[start:end]
    start, end = areas[under_way]
    written = [*range(start, end, SECTOR), *range(MARKS_AT, len(disk), SECTOR)]
    changed = [at for at in written if disk[at : at + SECTOR] != after.content[at : at + SECTOR]]
    for at in changed:
        if chance.random() < 0.5:
            disk[at : at + SECTOR] = after.content[at : at + SECTOR]
    if garbage and changed:
        at = chance.choice(changed)
        disk[at : at + SECTOR] = chance.randbytes(SECTOR)
    return bytes(disk)


def _areas(after: Snapshot, before: set[int]) -> list[tuple[int, int]]:
    """The pages of each group that is new, in order, and of the trailer."""
    starts: dict[int, int] = {}
    end = 0
    for offset, data in sorted(after.whole.items()):
        promised = int.from_bytes(after.content[offset - 12 : offset - 8], "little")
        if offset not in before:
            starts.setdefault(promised, offset - 64)
        end = -(-(offset + len(data)) // 4096) * 4096
    places = [*starts.values(), end]
    return [*itertools.pairwise(places), (end, end + 4096)]


@pytest.mark.parametrize("seed", range(4))
def test_no_power_cut_costs_a_promised_record_or_mixes_two(
    history: tuple[str, list[Snapshot]], seed: int, tmp_path: Path
) -> None:
    kind, snapshots = history
    chance = random.Random(seed)
    number = int.from_bytes(snapshots[0].content[8:16], "little")
    path = tmp_path / f"{number:016x}-0.seg"
    for before, after in itertools.pairwise(snapshots):
        for garbage in (False, True):
            path.write_bytes(cut(before, after, chance, kind, garbage=garbage))
            with Segment(path) as opened:
                found = opened.examine()
                kept = {}
                for record in found.waiting:
                    read = opened.read(record.offset, record.length)
                    assert read is not None
                    kept[record.offset] = bytes(read[1])
            # What is taken for whole is whole.
            assert kept.items() <= after.whole.items()
            # What was durable before is there, unless it was done before the cut.
            if kind == "durable":
                missing = before.whole.keys() - kept.keys()
                assert missing <= after.done
                assert not found.damaged
            # Everything of the next group that is not whole is told, or was never promised.
            told = {record.offset for record in (*found.damaged, *found.doubtful)}
            assert told.isdisjoint(kept)


def test_writing_marks_touches_no_sector_of_a_record(history: tuple[str, list[Snapshot]]) -> None:
    _, snapshots = history
    content = snapshots[-1].content
    marks = content[MARKS_AT:]
    assert marks.count(b"DONE") == len(snapshots[-1].done) > 3
    assert b"DIRECORD" not in marks
    ends = [offset + len(data) for offset, data in snapshots[-1].whole.items()]
    assert max(ends) <= MARKS_AT - segment.PAGE_BYTES
