"""From the stream into store and ledger: the plain way, and what is odd about instances."""

import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from ingest.ledger import DeliveryState, InstanceState
from ingest.queue.consumer import StreamConsumer, StreamEntry
from ingest.queue.keys import GROUP, data_key
from ingest.queue.wakeups import drain_key
from ingest.spool.reference import Reference
from ingest.workers.persist.batch import PersistBatch
from ingest.workers.persist.worker import PersistWorker
from ingest.workers.store.filesystem import FileStore
from tests.support.instances import CT, EXPLICIT, Made, element
from tests.support.ledgers import delivery_states
from tests.support.nodes import eventually
from tests.support.persisting import Drainer, Site

Sites = Callable[..., Site]


def test_instance_is_stored_recorded_forgotten_by_spool_and_queue_and_its_destination_woken(
    site: Site,
) -> None:
    made = Made()
    where = site.receive(made)
    received = (site.config.spool_dir / where).stat().st_mtime_ns // 1_000_000
    site.work()
    [row] = site.instances()
    assert (row.state, row.store_key) == (InstanceState.STORED, "1.2.3/1.2.3.1/1.2.3.4.dcm")
    assert (row.sop_instance_uid, row.sop_class_uid) == ("1.2.3.4", CT)
    assert (row.study_uid, row.series_uid, row.transfer_syntax_uid) == ("1.2.3", "1.2.3.1", EXPLICIT)
    assert (row.size, row.data_set_offset) == (len(made.file), len(made.meta))
    assert (row.calling_ae, row.called_ae, row.source) == ("CT1", "INGEST", "dicom-tls://10.0.0.1:4711")
    assert (row.spool_ref, row.note, row.received_at) == (f"{site.spool}:{where}", "", received)
    assert row.stored_at >= row.received_at
    assert (site.config.store_root / row.store_key).read_bytes() == made.file
    with site.ledger() as ledger:
        assert delivery_states(ledger, row.id) == {"pacs": DeliveryState.WAITING}
    assert site.settled()
    assert site.client.exists(drain_key("pacs"))
    [job] = site.client.lrange("rq:queue:forward", 0, -1)
    assert job.startswith(b"drain-pacs-")
    assert b'"workers.forward.drain"' in zlib.decompress(site.client.hget(b"rq:job:" + job, "data"))


def test_a_thousand_instances_are_each_stored_once(site: Site) -> None:
    for number in range(1000):
        site.receive(Made(sop=f"1.9.{number}", series=f"1.8.{number % 3}"))
    site.work()
    assert len(site.stored()) == 1000
    assert site.deliveries() == 1000
    assert site.settled()
    assert site.client.llen("rq:queue:forward") == 1


def test_instances_that_come_one_by_one_are_put_together(site: Site) -> None:
    def batches() -> int:
        return int(site.client.info("commandstats").get("cmdstat_xack", {"calls": 0})["calls"])

    before, stop = batches(), threading.Event()
    worker = threading.Thread(target=PersistWorker(site.config, stop, "one").run)
    worker.start()
    try:
        eventually(lambda: site.client.exists(site.stream))
        for number in range(100):
            site.receive(Made(sop=f"1.9.{number}"))
            time.sleep(0.005)
        eventually(site.settled)
    finally:
        stop.set()
        worker.join(10)
    assert len(site.instances()) == 100
    assert batches() - before < 50


class StoppedWhileReading(Drainer):
    """A worker that is asked to stop while it waits for entries, as by a reload."""

    def _read_entries(self) -> list[StreamEntry]:
        entries = super()._read_entries()
        self._stop.set()
        return entries


def test_worker_that_is_asked_to_stop_while_it_reads_leaves_the_entries_to_the_next_one(site: Site) -> None:
    for number in range(3):
        site.receive(Made(sop=f"1.9.{number}"))
    site.work(kind=StoppedWhileReading)
    assert site.instances() == []
    assert (site.pending(), site.client.xlen(site.stream)) == (0, 3)
    site.work("two")
    assert sorted(row.sop_instance_uid for row in site.instances()) == ["1.9.0", "1.9.1", "1.9.2"]
    assert site.settled()


def _read_new(site: Site) -> tuple[StreamConsumer, StreamEntry]:
    consumer = StreamConsumer(site.client, "one", lambda: [site.stream])
    site.receive(Made())
    return consumer, consumer.read_new(10, 1)[-1]


def _count_deliveries(site: Site) -> int:
    [pending] = site.client.xpending_range(site.stream, GROUP, "-", "+", 9)
    return int(pending["times_delivered"])


def test_only_an_attempt_that_begins_counts_against_an_entry(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.queue.consumer.IDLE_MILLISECONDS", 0)
    consumer, _ = _read_new(site)
    for _ in range(8):  # as often as a worker stops, or loses Redis, before it begins
        consumer.restart_own()
        [own] = consumer.read_own(10)
        [abandoned] = consumer.claim_abandoned(10)
        consumer.put_back([own])
    assert (own, abandoned.deliveries, _count_deliveries(site)) == (abandoned, 2, 1)
    consumer.begin_attempts([own])
    consumer.restart_own()
    assert (consumer.read_own(10)[0].deliveries, _count_deliveries(site)) == (3, 2)


def test_entry_that_was_tried_before_keeps_its_count_when_it_is_put_back(site: Site) -> None:
    consumer, first = _read_new(site)
    [second] = consumer.read_own(10)
    consumer.begin_attempts([second])
    consumer.restart_own()
    [third] = consumer.read_own(10)
    consumer.begin_attempts([third])
    assert [first.deliveries, second.deliveries, third.deliveries, _count_deliveries(site)] == [1, 2, 3, 3]
    consumer.put_back([third])
    assert (_count_deliveries(site), site.client.xlen(site.stream)) == (2, 1)


def test_worker_that_stops_before_an_attempt_blames_no_entry_however_often(site: Site) -> None:
    _read_new(site)
    for _ in range(8):
        site.work(kind=StoppedWhileReading)
    assert _count_deliveries(site) == 1


def test_batch_that_ends_early_blames_no_entry_that_it_left(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopping(self: PersistBatch) -> bool:
        self._context.stop.set()
        return True

    monkeypatch.setattr(PersistBatch, "_must_end_early", stopping)
    site.receive(Made(sop="1.9.1"))
    _read_new(site)
    site.work()
    assert len(site.instances()) == 1
    assert _count_deliveries(site) == 1


def test_spool_and_store_on_two_file_systems(make_persist_site: Sites, second_file_system: Path) -> None:
    site = make_persist_site(receive={"spool_dir": second_file_system / "spool"})
    made = Made(pixels=bytes(range(256)) * 10_000)
    site.receive(made)
    site.work()
    assert site.stored() == ["1.2.3/1.2.3.1/1.2.3.4.dcm"]
    assert (site.config.store_root / site.stored()[0]).read_bytes() == made.file
    assert site.settled()


def test_data_set_that_rides_on_the_queue(make_persist_site: Sites) -> None:
    site = make_persist_site(queue={"carrier": "redis"})
    made = Made(pixels=bytes(range(256)) * 10_000)
    where = site.receive(made)
    site.work()
    assert (site.config.store_root / "1.2.3/1.2.3.1/1.2.3.4.dcm").read_bytes() == made.file
    assert site.persisted() == [where]
    assert site.settled()
    assert not site.client.exists(data_key(site.spool, where))
    assert site.waiting() == [where.rpartition("/")[2]]  # the listener's to remove
    assert list((site.config.store_root / ".incoming").glob("*/*")) == []


def test_ledger_proves_what_became_of_duplicates_that_listeners_still_have(make_persist_site: Sites) -> None:
    site = make_persist_site(queue={"carrier": "redis"})
    names = [site.receive(Made()) for _ in range(3)]
    site.work()
    assert len(site.instances()) == 1
    refs = {f"{site.spool}:{name}" for name in names}
    with site.ledger() as ledger:
        assert ledger.spool_references.find_removable([*refs, f"{site.spool}:L0/ready/f00.dcm"]) == refs


def test_data_set_that_is_not_whole_on_the_queue_is_left_to_its_listener(make_persist_site: Sites) -> None:
    site = make_persist_site(queue={"carrier": "redis"})
    content = Made().file
    site.client.rpush(data_key(site.spool, "L0/ready/1.dcm"), content[:100])
    site.client.sadd("ingest:spools", site.spool)
    site.refer(Reference("redis", site.spool, "L0/ready/1.dcm", 0, len(content)))
    site.refer(Reference("redis", site.spool, "L0/ready/2.dcm", 0, 10))
    site.work()
    assert site.instances() == []
    assert site.persisted() == []  # else the listener would remove the only copies
    assert site.settled()


@pytest.mark.parametrize("durability", ["fsync", "page-cache"])
def test_instance_without_study_and_series_is_stored_under_names_made_for_it(
    make_persist_site: Sites, durability: str
) -> None:
    site = make_persist_site(receive={"durability": durability})
    site.receive(Made(study=None, series=None))
    site.receive(Made(sop="1.2.9", study="", series="1.5"))
    site.work()
    assert site.stored() == ["no-study/1.5/1.2.9.dcm", "no-study/no-series/1.2.3.4.dcm"]
    notes = [row.note for row in site.instances()]
    assert "no Study Instance UID" in notes[0]
    assert "no Series Instance UID" in notes[0]
    assert "Series" not in notes[1]


@pytest.mark.parametrize(
    "uid", ["../../../../tmp/escaped", "/tmp/escaped", "1.2/3", "x" * 60, "..", "1.2.\n"]
)
def test_uids_made_to_escape_stay_in_the_store_and_the_ledger_says_so(site: Site, uid: str) -> None:
    site.receive(Made(study=uid, series=uid))
    site.work()
    [row] = site.instances()
    assert row.study_uid == uid
    assert "hash" in row.note
    [path] = site.stored()
    assert path.count("/") == 2
    assert site.settled()


def test_uids_behind_a_long_element_are_found(site: Site) -> None:
    long = element(0x0009, 0x0010, "LO", b"PRIVATE") + element(0x0009, 0x1000, "OB", bytes(100_000))
    made = Made()
    head = element(0x0008, 0x0016, "UI", CT.encode()) + element(0x0008, 0x0018, "UI", b"1.2.3.4")
    rest = made.data_set[len(head) :]
    assert made.data_set == head + rest
    site.receive(made.meta + head + long + rest)
    site.work()
    assert site.stored() == ["1.2.3/1.2.3.1/1.2.3.4.dcm"]


@pytest.mark.parametrize("status", ["A900", "C000"])
def test_refused_copy_goes_to_quarantine_with_its_reason(site: Site, status: str) -> None:
    content = Made().file if status == "A900" else Made().meta + b"\xff" * 50
    site.receive(content, suffix=f".{status}")
    site.work()
    [row] = site.instances()
    assert row.state is InstanceState.QUARANTINED
    assert f"{status}H" in row.note
    assert row.sop_instance_uid == "1.2.3.4"
    [path] = site.quarantined()
    assert path.name == row.store_key
    assert path.read_bytes() == content
    assert site.stored() == []
    assert site.deliveries() == 0
    assert site.settled()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        bytes(128) + b"DICM",
        bytes(5000),
        Made().meta[:200],
        Made().meta + b"\x08\0\x05\0\1\2\3\4",
    ],
    ids=["empty", "short", "no meta", "zeros", "cut meta", "broken data set"],
)
def test_file_that_cannot_be_read_goes_to_quarantine_and_holds_up_nobody(site: Site, content: bytes) -> None:
    site.receive(content)
    site.receive(Made())
    site.work()
    broken, sound = site.instances()
    assert (broken.state, sound.state) == (InstanceState.QUARANTINED, InstanceState.STORED)
    assert broken.note
    assert [path.read_bytes() for path in site.quarantined()] == [content]
    assert site.settled()


def test_instance_that_contradicts_its_file_meta_goes_to_quarantine(site: Site) -> None:
    site.receive(Made(sop_in_data_set="1.2.3.5"))
    site.work()
    [row] = site.instances()
    assert row.state is InstanceState.QUARANTINED
    assert "SOP Instance UID" in row.note


def test_empty_uid_in_the_data_set_contradicts_nothing(site: Site) -> None:
    site.receive(Made(sop_in_data_set=""))
    site.work()
    assert [row.state for row in site.instances()] == [InstanceState.STORED]


def test_data_set_that_breaks_behind_what_the_listener_read_is_stored_all_the_same(site: Site) -> None:
    made = Made(study=None, series=None)
    site.receive(made.meta + made.data_set[:-16] + b"\x10\0\x10\0\1\2\3\4")
    site.work()
    [row] = site.instances()
    assert row.state is InstanceState.STORED
    assert "its header is damaged: an element has no VR that is known" in row.note


@pytest.mark.parametrize("where", ["../../../etc/passwd", "/etc/passwd", "L0/ready/../../id", "L0//x"])
def test_reference_out_of_the_spool_is_never_followed(site: Site, where: str) -> None:
    site.refer(Reference("spool", site.spool, where))
    site.receive(Made())
    site.work()
    assert site.settled()
    assert site.pending() == 0
    assert len(site.instances()) == 1


def test_reference_into_another_spool_than_its_streams_is_taken_off_and_removes_nothing(site: Site) -> None:
    where = site.spooled(Made().file)
    site.refer(Reference("spool", "another", where))
    site.work()
    assert site.instances() == []
    assert site.client.xlen(site.stream) == 0
    assert len(site.waiting()) == 1


def test_reference_whose_file_is_gone_is_taken_off_the_queue(site: Site) -> None:
    site.refer(Reference("spool", site.spool, "L0/ready/90e.dcm"))
    site.work()
    assert site.settled()


def test_entry_that_is_no_reference_is_taken_off_the_queue(site: Site) -> None:
    site.client.xadd(site.stream, {"nonsense": "1"})
    site.receive(Made())
    site.work()
    assert site.settled()
    assert site.pending() == 0
    assert len(site.instances()) == 1


@pytest.mark.parametrize("how", ["acknowledged", "consumer deleted", "group moved"])
def test_entry_that_nobody_has_and_nobody_will_get_is_delivered_again(site: Site, how: str) -> None:
    site.receive(Made())
    site.client.xgroup_create(site.stream, GROUP, "0")
    site.client.xreadgroup(GROUP, "stranger", {site.stream: ">"})
    [(number, _)] = site.client.xrange(site.stream)
    if how == "acknowledged":
        site.client.xack(site.stream, GROUP, number)
    elif how == "consumer deleted":
        site.client.xgroup_delconsumer(site.stream, GROUP, "stranger")
    else:
        site.client.xack(site.stream, GROUP, number)
        site.client.xgroup_setid(site.stream, GROUP, "18446744073709551615-1")
    site.work()
    assert site.settled()
    assert len(site.instances()) == 1


@pytest.mark.parametrize("deliveries", [6, 7, 1000, 2**40])
def test_sound_image_is_stored_however_often_redis_says_that_it_failed(site: Site, deliveries: int) -> None:
    site.receive(Made())
    site.client.xgroup_create(site.stream, GROUP, "0")
    [(_, [(number, _)])] = site.client.xreadgroup(GROUP, "stranger", {site.stream: ">"})
    site.client.xclaim(
        site.stream, GROUP, "stranger", 0, [number], retrycount=deliveries, idle=60_000, justid=True
    )
    site.work()
    assert [row.state for row in site.instances()] == [InstanceState.STORED]
    assert site.settled()
    assert list((site.config.run_dir / "reading").iterdir()) == []


def test_references_from_before_the_group_was_made_are_persisted(site: Site) -> None:
    site.receive(Made())
    assert site.client.exists(site.stream)
    site.client.xgroup_create(site.stream, GROUP, "0")
    site.client.xgroup_destroy(site.stream, GROUP)
    site.work()
    assert len(site.instances()) == 1


def test_without_routes_nothing_is_delivered_and_nobody_woken(make_persist_site: Sites) -> None:
    site = make_persist_site(routes=[])
    site.receive(Made())
    site.work()
    assert site.deliveries() == 0
    assert not site.client.exists("rq:queue:forward")


def test_layout_of_the_configuration_is_used(make_persist_site: Sites) -> None:
    site = make_persist_site(store={"path": "all/{sop_uid}"})
    site.receive(Made())
    site.work()
    assert site.stored() == ["all/1.2.3.4"]
    assert FileStore(site.config.store_root).read_size("all/1.2.3.4") == len(Made().file)


def test_routes_read_attributes_on_both_sides_of_the_uids(make_persist_site: Sites) -> None:
    both = {"modality": {"not": "CT"}, "Rows": {"not": 1}, "SOPInstanceUID": "1.9.*"}
    private = {"0009,1001": {"not": "X"}, "0009,1002": "*"}
    site = make_persist_site(routes=[{"name": "both", "to": [], "when": both}, {"to": [], "when": private}])
    site.receive(Made(sop="1.9.1"))
    site.work()
    [row] = site.instances()
    assert (row.state, row.note) == (InstanceState.STORED, "")
    assert row.routed == "both: forwarded nowhere on purpose"
