"""The sweep of segments: what waits in them is put back, and what is kept elsewhere is marked, no more."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from ingest.config.model import Config
from ingest.ledger import Ledger
from ingest.queue import sweep
from ingest.queue.client import connect
from ingest.queue.keys import persisted_key, stream_key
from ingest.queue.stream_writer import append_references
from ingest.spool import inventory, segment, segment_upkeep
from ingest.spool.reference import Location, Reference, parse_fields
from ingest.spool.spool import Spool
from ingest.status.report import gather_status
from tests.support.ledgers import hold, row
from tests.support.segments import SEGMENT_BYTES, SegmentWriter
from tests.support.spools import claim, keep

NUMBER = 0x18A0_0000_0000_0001


@pytest.fixture
def writer(own: Spool) -> SegmentWriter:
    return SegmentWriter(own.root, NUMBER)


@pytest.fixture
def client(settings: Config) -> Iterator[redis.Redis]:
    made = connect(settings)
    yield made
    made.close()


def add(writer: SegmentWriter, data: bytes = b"data", *, age: float = 10.0, done: bool = False) -> Location:
    received = int((time.time() - age) * 1000)
    return Location(writer.path_in_spool, writer.append(data, received_ms=received, done=done), len(data))


def names(places: list[Location]) -> list[str]:
    return [place.name for place in places]


# --- what waits


def test_what_is_not_done_waits_also_if_it_is_damaged(own: Spool, writer: SegmentWriter) -> None:
    later = SegmentWriter(own.root, NUMBER + 1)
    add(writer, done=True)
    first = add(writer, b"a" * 9000)
    damaged = add(writer, b"d" * 100)  # a worker sets it aside
    writer.write(damaged.offset, b"x")
    second, third, file = add(writer), add(later), keep(own)
    # The file's name is of today, the segments' are not.
    assert inventory.list_waiting(own.root, "L0") == [first, damaged, second, third, Location(file)]
    # All of the older one stays on the disk because of what waits in it.
    assert inventory.measure_usage(own.root) == SEGMENT_BYTES + 4 + 4
    found = gather_status(Config(node={"data_dir": own.root.parent}))["spool"]  # type: ignore[arg-type]
    assert (found["waiting"], found["bytes"]) == (5, SEGMENT_BYTES + 8)


def test_what_was_received_just_now_is_left_to_its_listener(own: Spool, writer: SegmentWriter) -> None:
    old, _, ahead = add(writer, age=10), add(writer, age=0), add(writer, age=-3600)
    assert inventory.list_waiting(own.root, "L0", older_than=5) == [old, ahead]
    assert len(inventory.list_waiting(own.root, "L0")) == 3


def test_a_segment_that_cannot_be_read_keeps_back_no_other(
    own: Spool, writer: SegmentWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = add(writer)
    unreadable = SegmentWriter(own.root, NUMBER - 1)
    unreadable.path.unlink()
    unreadable.path.mkdir()
    assert inventory.list_waiting(own.root, "L0") == [found]
    assert inventory.measure_usage(own.root) == 4
    assert not segment_upkeep.is_disposable(unreadable.path)


# --- what the queue forgot


def test_missing_is_told_by_offset(own: Spool, writer: SegmentWriter, client: redis.Redis) -> None:
    places = [add(writer) for _ in range(5)]
    append_references(client, [Reference("spool", own.id, *place) for place in (places[1], places[3])])
    assert sweep.find_missing(own.root, own.id, client, ["L0"], 0.0) == [places[0], places[2], places[4]]


def test_what_is_persisted_while_the_sweep_looks_is_not_missing(
    own: Spool, writer: SegmentWriter, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = SegmentWriter(own.root, NUMBER + 1)
    done, waits, used_again = add(writer), add(writer), add(other)
    on_stream = sweep.read_stream_locations

    def persist_meanwhile(asked: redis.Redis, spool: str) -> Iterator[tuple[bytes, bytes]]:
        segment.mark_persisted(writer.path, done.offset)
        other.path.rename(other.path.with_name(f"{NUMBER + 2:016x}-0.seg"))
        return on_stream(asked, spool)

    monkeypatch.setattr(sweep, "read_stream_locations", persist_meanwhile)
    assert used_again.path == other.path_in_spool
    assert sweep.find_missing(own.root, own.id, client, ["L0"], 0.0) == [waits]


# --- segments of dead listeners


def test_segments_of_the_dead_go_once_nothing_waits_in_them(settings: Config, own: Spool) -> None:
    dead = claim(settings)
    needed, done = (SegmentWriter(own.root, NUMBER + at, dead.slot.name) for at in range(2))
    living = SegmentWriter(own.root, NUMBER, own.slot.name)
    place = add(needed)
    for writer in (done, living):
        add(writer, done=True)
    (done.path.parent / f"{NUMBER + 9:016x}-0.tmp").touch()
    assert inventory.clear_dead_slots(own.root) == 0
    dead.close()
    assert inventory.clear_dead_slots(own.root) == 1
    assert os.listdir(needed.path.parent) == [needed.path.name]
    assert living.path.exists()
    segment.mark_persisted(needed.path, place.offset)
    inventory.clear_dead_slots(own.root)
    assert os.listdir(needed.path.parent) == []


# --- what workers elsewhere have persisted


def test_persisted_records_are_marked_done(
    settings: Config, own: Spool, writer: SegmentWriter, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "PAGE", 3)
    places, file = [add(writer) for _ in range(10)], keep(own)
    client.rpush(persisted_key(own.id), *names(places[:8]), file)
    with contextlib.closing(hold(settings, own.id, [*names(places[:8]), file])) as ledger:
        assert sweep.release_persisted(own.root, own.id, client, ledger.spool_references) == 9
    assert inventory.list_waiting(own.root, "L0") == places[8:]
    assert client.llen(persisted_key(own.id)) == 0


def test_nothing_but_a_record_can_be_marked_through_the_queue(
    settings: Config, own: Spool, writer: SegmentWriter, client: redis.Redis, tmp_path: Path
) -> None:
    place, outside = add(writer, b"d" * 300), tmp_path / f"{NUMBER:016x}-0.seg"
    outside.write_bytes(writer.path.read_bytes())
    before = writer.path.read_bytes()
    odd = [
        place.path,
        f"{place.path}#",
        f"{place.path}#{place.offset + 64}",
        f"{place.path}#{place.offset - 1}",
        f"{place.path}#{'9' * 5000}",
        f"{place.path}#{'9' * 19}",
        f"{place.path}#-64",
        f"{place.path}#\u0666\u0664",
        f"{place.path}#64#64",
        f"L0/segments/{NUMBER + 1:016x}-0.seg#64",
        f"L0/segments/../../../{outside.name}#64",
        f"{outside}#64",
    ]
    client.rpush(persisted_key(own.id), *odd, place.name)
    with contextlib.closing(hold(settings, own.id, odd)) as ledger:
        # The place itself is right, but the ledger does not hold it.
        assert sweep.release_persisted(own.root, own.id, client, ledger.spool_references) == 0
    assert writer.path.read_bytes() == outside.read_bytes() == before
    assert client.llen(persisted_key(own.id)) == 0


# --- the command


def test_a_sweep_puts_back_what_is_missing_and_marks_what_the_ledger_holds(
    settings: Config, own: Spool, writer: SegmentWriter, client: redis.Redis
) -> None:
    kept, forgotten = add(writer), add(writer)
    with_ledger = Ledger(settings.ledger_url)
    with_ledger.migrate()
    with_ledger.instances.record([row(1, spool_ref=f"{own.id}:{kept.name}")])
    with_ledger.close()
    done = sweep.sweep_spool(settings)
    assert (done.waiting, done.published, done.released) == (1, 1, 1)
    assert inventory.list_waiting(own.root, "L0") == [forgotten]
    found = [Reference(*parse_fields(fields)) for _, fields in client.xrange(stream_key(own.id))]
    assert found == [Reference("spool", own.id, *forgotten)]
    again = sweep.sweep_spool(settings)
    assert (again.waiting, again.published, again.released) == (1, 0, 0)
