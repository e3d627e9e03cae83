"""From segments into store and ledger: the same as from files, and nothing is let go of too early."""

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingest.alarms import standing_alarms
from ingest.ledger import InstanceState
from ingest.ledger.instances import Instances
from ingest.spool import segment, segment_upkeep
from ingest.spool.reference import Location, Reference
from ingest.workers.persist.spool_entry import OpenSegments
from ingest.workers.quarantine.command import release_instances
from ingest.workers.store.filesystem import FileStore
from ingest.workers.store.folders import BatchFolders
from tests.support.instances import CT, EXPLICIT, Made, element
from tests.support.persisting import Site
from tests.support.segments import SegmentWriter

Sites = Callable[..., Site]


@pytest.fixture
def small(site: Site) -> Site:
    """A site with the defaults, whose instances go into segments."""
    site.in_segments = True
    return site


@pytest.mark.parametrize("durability", ["fsync", "page-cache"])
def test_instance_is_stored_recorded_and_marked_done(make_persist_site: Sites, durability: str) -> None:
    site, made = make_persist_site(receive={"durability": durability}), Made()
    site.in_segment(Made(sop="1.2.99").file, done=True)
    place = site.in_segment(
        made.file, received_ms=1_700_000_000_123, promised=0 if durability == "fsync" else None
    )
    site.hand_off(place)
    site.work()
    [row] = site.instances()
    assert (row.state, row.store_key) == (InstanceState.STORED, "1.2.3/1.2.3.1/1.2.3.4.dcm")
    assert (row.sop_class_uid, row.transfer_syntax_uid) == (CT, EXPLICIT)
    assert (row.size, row.data_set_offset) == (len(made.file), len(made.meta))
    assert (row.spool_ref, row.received_at) == (
        f"{site.spool}:{place.path}#{place.offset}",
        1_700_000_000_123,
    )
    path = site.config.store_root / row.store_key
    assert path.read_bytes() == made.file
    assert path.stat().st_nlink == 1
    assert site.settled()
    assert site.deliveries() == 1
    assert list((site.config.store_root / ".incoming").glob("*/*")) == []


def test_a_thousand_instances_of_files_and_segments_are_each_stored_once(small: Site) -> None:
    for number in range(1000):
        small.in_segments = number % 3 != 0
        small.receive(Made(sop=f"1.9.{number}", pixels=bytes([number % 256]) * (number * 5 % 3000)))
    small.work()
    assert len(small.stored()) == 1000
    assert small.deliveries() == 1000
    assert small.settled()
    store = FileStore(small.config.store_root)
    assert all(store.read_size(row.store_key) == row.size for row in small.instances())


def test_uids_behind_a_long_element_are_found(small: Site) -> None:
    long = element(0x0009, 0x0010, "LO", b"PRIVATE") + element(0x0009, 0x1000, "OB", bytes(100_000))
    made, head = (
        Made(),
        element(0x0008, 0x0016, "UI", CT.encode()) + element(0x0008, 0x0018, "UI", b"1.2.3.4"),
    )
    small.receive(made.meta + head + long + made.data_set[len(head) :])
    small.work()
    assert small.stored() == ["1.2.3/1.2.3.1/1.2.3.4.dcm"]


def test_duplicates_in_one_batch_are_told_apart(small: Site) -> None:
    for pixels in (b"ab", b"ab", b"cd"):
        small.receive(Made(pixels=pixels))
    small.receive(b"no DICOM at all")
    small.work()
    states = [row.state for row in small.instances()]
    assert states == [InstanceState.STORED, InstanceState.QUARANTINED, InstanceState.QUARANTINED]
    assert (small.config.store_root / small.stored()[0]).read_bytes() == Made(pixels=b"ab").file
    assert len(small.quarantined()) == 2
    assert small.settled()


def test_data_set_that_rides_on_the_queue_is_told_by_its_place(make_persist_site: Sites) -> None:
    site = make_persist_site(queue={"carrier": "redis"})
    site.in_segments = True
    places = [site.receive(Made(sop=f"1.9.{number}")) for number in range(3)]
    site.work()
    assert len(site.stored()) == 3
    assert site.persisted() == places
    assert site.undone() == places  # the listener's to mark


# --- what is not there


def test_what_is_done_torn_or_of_another_life_is_taken_off_the_queue(small: Site) -> None:
    content = Made().file
    done = small.in_segment(content, done=True)
    writer = small.segment
    assert writer is not None
    stale = Location(writer.path_in_spool, writer.at + 64, len(content))
    writer.number -= 1
    small.in_segment(content)
    writer.number += 1
    whole = small.in_segment(content)
    before = writer.path.read_bytes()
    for place in (
        done,
        stale,
        whole._replace(length=whole.length - 1),
        whole._replace(length=1 << 62),
        whole._replace(offset=whole.offset + 1),
        whole._replace(offset=1 << 62),
        whole._replace(path=f"L0/segments/{1:016x}-0.seg"),
    ):
        small.hand_off(place)
    small.work()
    assert small.instances() == []
    assert small.client.xlen(small.stream) == 0
    assert writer.path.read_bytes() == before


@pytest.mark.parametrize(
    "where",
    ["L0/ready/1.dcm", "L0/segments/../../id", "/etc/passwd", "L0/segments/x.seg", "L0/segments/", "id"],
)
def test_a_reference_to_a_part_of_anything_else_is_never_followed(site: Site, where: str) -> None:
    site.spooled(bytes(64) + Made().file, name="1")
    site.refer(Reference("spool", site.spool, where, 64, len(Made().file)))
    site.work()
    assert site.instances() == []
    assert site.client.xlen(site.stream) == 0
    assert site.waiting() == ["1.dcm"]


def test_a_segment_that_is_worked_on_is_not_used_again(small: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    small.receive(Made())
    asked: list[bool] = []
    real = OpenSegments.mark_done

    def ask_first(self: OpenSegments, reference: Reference) -> None:
        with segment_upkeep.lock_unused(small.config.spool_dir / reference.path) as free:
            asked.append(free)
        real(self, reference)

    monkeypatch.setattr(OpenSegments, "mark_done", ask_first)
    small.work()
    assert asked == [False]
    with segment_upkeep.lock_unused(
        small.config.spool_dir / small.instances()[0].spool_ref.split(":")[1][:-3]
    ) as free:
        assert free


# --- what is damaged


@pytest.mark.parametrize("layout", ["page-cache", "group", "trailer", "doubtful", "first"])
def test_a_record_with_a_flipped_bit_is_quarantined_and_never_stored(small: Site, layout: str) -> None:
    content = Made(pixels=b"p" * 9000).file
    small.segment = writer = SegmentWriter(small.config.spool_dir)
    if layout == "first":
        offset = writer.append_old(content)
    elif layout == "page-cache":
        offset = writer.append(content)
    else:
        [offset] = writer.group(content, trailing=layout == "trailer")
    if layout == "group":
        writer.group(Made(sop="1.9.9").file)
    writer.flip(offset + 8000, 3)
    small.hand_off(Location(writer.path_in_spool, offset, len(content)))
    small.work()
    assert small.stored() == []
    [row] = small.instances()
    assert row.state is InstanceState.QUARANTINED
    assert row.sop_instance_uid == "1.2.3.4"
    assert row.is_damaged_in_spool
    assert ("cannot be told" in row.note) == (layout in {"doubtful", "first"})
    [kept] = small.quarantined()
    assert len(kept.read_bytes()) == len(content)
    assert small.client.xlen(small.stream) == 0
    assert segment_upkeep.is_disposable(writer.path) == (layout != "group")
    # Its File Meta and UIDs read well; what is shown on a screen might be another patient.
    assert release_instances(small.config, [row.id]).failures
    assert small.stored() == []


def test_two_patients_bytes_in_one_record_are_never_stored(small: Site) -> None:
    """After a power cut with page-cache durability a header can be there and some pages of another record."""
    first, second = Made(sop="1.9.1", pixels=b"a" * 20_000), Made(sop="1.9.2", pixels=b"b" * 20_000)
    small.segment = writer = SegmentWriter(small.config.spool_dir)
    offset = writer.append(second.file)
    writer.write(8192, first.file[8192 - offset : 16384 - offset])
    small.hand_off(Location(writer.path_in_spool, offset, len(second.file)))
    small.work()
    assert small.stored() == []
    assert [row.state for row in small.instances()] == [InstanceState.QUARANTINED]


def test_a_record_that_is_still_being_written_is_left_alone(small: Site) -> None:
    content = Made(pixels=b"p" * 9000).file
    small.segment = writer = SegmentWriter(small.config.spool_dir)
    [offset] = writer.group(content)
    writer.write(8192, bytes(1000))
    fd = os.open(writer.path, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_SH)  # the writer
    small.hand_off(Location(writer.path_in_spool, offset, len(content)))
    small.work()
    assert small.instances() == []
    with segment.Segment(writer.path) as opened:
        assert opened.is_waiting(offset)
    writer.at, writer.count = 0, 0
    assert writer.group(content, trailing=True) == [offset]  # it completes, and is promised
    os.close(fd)
    small.hand_off(Location(writer.path_in_spool, offset, len(content)))
    small.work()
    assert len(small.stored()) == 1


@pytest.mark.parametrize("at", [0, 8, 16, 24, 28, 32, 40, 44, 48, 52, 56])
def test_a_record_whose_header_is_rotten_is_kept_and_told(small: Site, at: int) -> None:
    places = [small.in_segment(Made(sop=f"1.9.{number}").file) for number in range(2)]
    assert small.segment is not None
    small.segment.flip(places[0].offset - 64 + at)
    for place in places:
        small.hand_off(place)
    small.work()
    assert len(small.stored()) == 1
    before = small.segment.path.read_bytes()
    slot = small.config.spool_dir / "L0"
    assert segment_upkeep.remove_persisted_segments(slot) == 0
    [kept] = slot.glob("segments/*.damaged")
    assert kept.read_bytes() == before
    segment_upkeep.update_damage_alarm(small.config.spool_dir, small.config.run_dir)
    assert [alarm.name for alarm in standing_alarms(small.config.run_dir)] == ["spool_damaged"]


# --- in which order


def test_nothing_is_marked_before_file_folder_and_ledger_are_durable(
    small: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    def note(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def noted(*arguments: Any, **keywords: Any) -> Any:
            result = real(*arguments, **keywords)
            steps.append(name)
            return result

        monkeypatch.setattr(owner, name, noted)

    small.work()  # which makes the store and gives it its id
    for number in range(2):
        small.receive(Made(sop=f"1.9.{number}"))
    for owner, name in (
        (os, "fdatasync"),
        (os, "link"),
        (BatchFolders, "sync"),
        (Instances, "record"),
        (OpenSegments, "mark_done"),
    ):
        note(owner, name)
    small.work()
    assert steps == [
        *("fdatasync", "fdatasync"),
        *("link", "link"),
        *("sync", "sync"),  # store and quarantine
        "record",
        *("mark_done", "mark_done"),
    ]


@pytest.mark.parametrize(
    ("owner", "name"),
    [(os, "write"), (os, "fdatasync"), (os, "link"), (BatchFolders, "sync")],
    ids=["write", "fdatasync", "link", "folder"],
)
def test_a_disk_that_fails_leaves_all_waiting_until_it_works(
    small: Site, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    real, failures = getattr(owner, name), 3

    def failing(*arguments: Any, **keywords: Any) -> Any:
        nonlocal failures
        if failures:
            failures -= 1
            assert small.undone() == places
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments, **keywords)

    monkeypatch.setattr("ingest.workers.backoff.BACK_OFF_SECONDS", (0.01,))
    places = [small.receive(Made(sop=f"1.9.{number}")) for number in range(3)]
    monkeypatch.setattr(owner, name, failing)
    for _ in range(5):
        small.work()
    assert not failures
    assert len(small.stored()) == len(small.instances()) == 3
    assert small.settled()


def test_two_file_systems(make_persist_site: Sites, second_file_system: Path) -> None:
    site = make_persist_site(receive={"spool_dir": second_file_system / "spool"})
    site.in_segments = True
    site.receive(Made())
    site.work()
    assert (site.config.store_root / site.stored()[0]).read_bytes() == Made().file
    assert site.settled()
