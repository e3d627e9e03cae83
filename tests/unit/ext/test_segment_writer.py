"""The writer of segments in C: what it writes is what its reader expects, and nobody takes its file."""

import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ingest.acceptor import listener
from ingest.acceptor.scoreboard import Scoreboard
from ingest.dicom import dimse
from ingest.ext.checksum import crc32c, crc32c_portable
from ingest.ext.encode import encode_p_data
from ingest.ext.segment_writer import Segments
from ingest.queue.publisher import Publisher
from ingest.spool import segment, segment_upkeep
from ingest.spool.segment import Segment
from ingest.spool.slot import Slot
from ingest.spool.spool import Spool
from tests.faults.caller import data_pdus
from tests.support.instances import CT, Made
from tests.support.segments import header_2, trailer
from tests.support.servers import Valkey
from tests.support.spools import config
from tests.support.storing import Site, site

ROOT = Path(__file__).parents[3]
SMALL = 65536


def instance(number: int, size: int = 900) -> bytes:
    """A sound C-STORE on the wire."""
    made = Made(sop=f"1.2.3.{number}", pixels=bytes([number % 256]) * size)
    request = dimse.encode_store_request(number % 65536, CT, made.sop)
    return encode_p_data(1, request, 0) + data_pdus(1, made.data_set)


def store(own: Site, count: int, size: int = 900) -> None:
    with own.association() as association:
        for number in range(count):
            association.feed(instance(number, size))
            assert own.settle(association) == []
        assert len(association.responses()) == count


def segments(own: Site) -> list[Path]:
    return sorted((own.spool.slot.path / "segments").glob("*.seg"))


def test_crc_32c_is_that_of_rfc_3720_in_both_ways() -> None:
    known = {b"": 0, b"123456789": 0xE3069283, bytes(32): 0x8A9136AA, b"\xff" * 32: 0x62A8AB43}
    for length in (*range(70), 1359, 1360, 4079, 4080, 4081, 8160, 70_000):
        data = os.urandom(length)
        known[data] = crc32c_portable(data)
        assert crc32c(memoryview(data)[: length // 2]) == crc32c_portable(data[: length // 2])
    assert {data: crc32c(data) for data in known} == known


@pytest.mark.parametrize("durable", [True, False])
def test_what_is_written_is_what_the_layout_says(tmp_path: Path, *, durable: bool) -> None:
    with site(tmp_path, durable=durable, small=SMALL) as own:
        store(own, 20)
        [path] = segments(own)
        content, number = path.read_bytes(), int(path.name[:16], 16)
        with Segment(path) as opened:
            records = list(opened.records())
            found = opened.examine()
        assert found.waiting == records
        assert (found.damaged, found.doubtful, found.missing, found.committed_count) == ([], [], [], 20)
        for index, record in enumerate(records):
            data = content[record.offset : record.offset + record.length]
            assert data[128:132] == b"DICM"
            at = record.offset - 64
            assert at % (4096 if durable else 64) == 0  # one association: groups of one
            promised = index if durable else index + 1
            assert content[at : record.offset] == header_2(
                data, number, index, at, promised, record.received_ms
            )
        end = -(-(records[-1].offset + records[-1].length) // 4096) * 4096
        assert content[end : end + 28] == (trailer(number, 20) if durable else bytes(28))
        own.spool.finish_commits()
        assert path.read_bytes()[end : end + 28] == trailer(number, 20, closed=True)


@pytest.mark.parametrize("durable", [True, False])
def test_a_full_segment_is_left_with_a_trailer_and_the_next_is_taken(
    tmp_path: Path, *, durable: bool
) -> None:
    with site(tmp_path, durable=durable, small=SMALL) as own:
        store(own, 150, 60_000)
        first, second = segments(own)
        for path, held in ((first, False), (second, True)):
            with segment_upkeep.lock_unused(path) as free:
                assert free is not held
        with Segment(first) as opened:
            found = opened.examine()
            assert all(record.offset + record.length <= segment.MARKS_AT - 4096 for record in found.waiting)
            count = len(found.waiting)
            assert found.committed_count == count
        assert trailer(int(first.name[:16], 16), count, closed=True) in first.read_bytes()
        with Segment(second) as opened:
            assert len(opened.examine().waiting) == 150 - count


def test_a_segment_that_is_written_to_is_never_taken_back(tmp_path: Path) -> None:
    with site(tmp_path, small=SMALL) as own:
        store(own, 3)
        [path] = segments(own)
        for record in list(segment.read_records(path)):
            segment.mark_persisted(path, record.offset)
        assert own.spool.segments is not None
        assert own.spool.segments.current == path.name
        assert not own.spool.segments.retire(path.name)
        # A listener that is ending, or was replaced, looks at the folder with a writer of its own.
        fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        old = segment_upkeep.SegmentUpkeep(
            own.spool.slot.path, Segments(fd, durable=False), damaged_are_delivered=True
        )
        old.run_once()
        segment_upkeep.remove_persisted_segments(own.spool.slot.path)
        os.close(fd)
        assert segments(own) == [path]
        store(own, 4)
        assert len(list(segment.read_records(path))) == 7


def test_the_slot_is_given_back_when_nothing_of_the_listener_is_at_it_any_more(
    tmp_path: Path, redis_server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(
        tmp_path, redis_server.url, receive={"segment_max_bytes": SMALL, "durability": "page-cache"}
    )
    held: list[str] = []

    def serve(self: listener.Listener) -> None:
        self.services.publisher.start()

    close = Publisher.close

    def closing(self: Publisher, seconds: float) -> bool:
        held.append("before" if Slot.try_lock(settings.spool_dir, "L0") is None else "free before")
        ended = close(self, seconds)
        held.append("after" if Slot.try_lock(settings.spool_dir, "L0") is None else "free after")
        return ended

    monkeypatch.setattr(listener.Listener, "serve", serve)
    monkeypatch.setattr(Publisher, "close", closing)
    assert listener.run_listener(settings, (), Scoreboard.create(tmp_path / "board"), 0) == 0
    assert held == ["before", "after"]
    successor = Spool.claim(settings.spool_dir, durable=False, segments=True)
    assert successor.slot.name == "L0"
    successor.close()


def test_a_hand_off_that_hangs_keeps_the_slot_until_the_process_ends(
    tmp_path: Path, redis_server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path, redis_server.url, receive={"durability": "page-cache"})
    monkeypatch.setattr(listener.Listener, "serve", lambda self: None)
    monkeypatch.setattr(Publisher, "close", lambda self, seconds: False)
    assert listener.run_listener(settings, (), Scoreboard.create(tmp_path / "board"), 0) == 0
    assert Slot.try_lock(settings.spool_dir, "L0") is None


def test_a_writer_that_could_not_be_made_closes_nothing_of_others(tmp_path: Path) -> None:
    assert os.fstat(0)
    with pytest.raises(TypeError):
        Segments("no descriptor", durable=True)  # type: ignore[arg-type]
    assert os.fstat(0)


# --- locks

STRESS = """
import os, sys, threading, time
sys.setswitchinterval(1e-6)
from pathlib import Path
from ingest.spool import segment
from tests.support.storing import site
from tests.unit.ext.test_segment_writer import SMALL, instance
durable, seconds = sys.argv[2] == "durable", float(sys.argv[3])
with site(Path(sys.argv[1]), durable=durable, small=SMALL) as own:
    spool, stop, turns = own.spool, time.monotonic() + seconds, [0, 0]
    def look(which):
        while time.monotonic() < stop:
            current = spool.segments.current
            for name in segment.list_segments(spool.slot.path)[:3]:
                if name != current:
                    spool.segments.retire(name)
            turns[which] += 1
    threads = [threading.Thread(target=look, args=(which,), daemon=True) for which in range(2)]
    for thread in threads:
        thread.start()
    count = 0
    with own.association() as association:
        while time.monotonic() < stop:
            association.feed(instance(count, 30000))
            assert own.settle(association) == []
            count += 1
    for thread in threads:
        thread.join()
    print(count, *turns)
"""


@pytest.mark.parametrize("kind", ["durable", "page-cache"])
def test_no_mutex_is_waited_for_with_the_interpreters_lock_that_its_holder_needs(
    kind: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STRESS, str(tmp_path), kind, "2"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    assert all(int(count) > 0 for count in done.stdout.split())


LOCKS = re.compile(r"pthread_(mutex_lock|mutex_unlock|cond_wait)\(")


@pytest.mark.parametrize("path", sorted((ROOT / "ext").glob("*.pyx")), ids=lambda path: path.stem)
def test_mutexes_are_taken_and_given_back_within_one_stretch_without_the_interpreter(path: Path) -> None:
    function, block = "", -1
    counts: dict[tuple[str, int], list[str]] = {}
    for number, line in enumerate(path.read_text().splitlines()):
        indent = len(line) - len(line.lstrip())
        if not line.strip():
            continue
        if re.match(r"\s*(cdef|def|cpdef) .*\(.*", line):
            function, block = line, -1
        elif block >= 0 and indent <= block:
            block = -1
        if line.strip() == "with nogil:":
            block, opened = indent, number
        assert "with gil" not in line
        if found := LOCKS.search(line):
            assert function.rstrip().endswith("nogil:") or block >= 0, f"line {number + 1}"
            key = (function, -1 if block < 0 else opened)
            counts.setdefault(key, []).append(found[1])
    for key, found in counts.items():
        assert {"mutex_lock", "mutex_unlock"} <= set(found), key


def test_the_lock_of_a_file_is_tried_and_not_waited_for() -> None:
    source = (ROOT / "ext" / "segment_writer.pyx").read_text()
    assert all("LOCK_NB" in call for call in re.findall(r"flock\([^)]*\)", source))
    assert fcntl.LOCK_NB
