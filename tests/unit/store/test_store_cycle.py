"""The operations of an association in ext.store: outstanding, durable, answered once, or left to Python."""

import gc
import struct
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.acceptor.store_scp import FullReason
from ingest.dicom import dimse
from ingest.dicom.part10 import read_file_meta
from ingest.ext.channel import PAUSED
from ingest.ext.cstore_codec import StoreContext
from ingest.ext.cstore_service import CStoreService
from ingest.ext.encode import encode_p_data
from ingest.ext.group_commit import Committer
from ingest.spool.reference import Location
from tests.faults.caller import data_pdus
from tests.support.commits import descriptors
from tests.support.instances import CT, EXPLICIT, Made
from tests.support.nodes import eventually
from tests.support.pki import Material
from tests.support.storing import Association, Site, site


@pytest.fixture
def cached(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path / "cached") as made:
        yield made


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Site]:
    """A durable site where nothing becomes durable before `work`."""
    with site(tmp_path / "held", durable=True, working=False) as made:
        yield made


def instance(number: int, message_id: int | None = None) -> bytes:
    """A sound C-STORE on the wire."""
    made = Made(sop=f"1.2.3.{number}")
    request = dimse.encode_store_request(number if message_id is None else message_id, CT, made.sop)
    return encode_p_data(1, request, 0) + data_pdus(1, made.data_set)


def statuses(association: Association) -> list[tuple[int, int]]:
    return [(response.message_id, response.status) for response in association.responses()]


# --- when it is answered


def test_page_cache_answers_at_once(cached: Site) -> None:
    with cached.association() as association:
        association.feed(instance(1), instance(2))
        assert statuses(association) == [(1, 0), (2, 0)]
        assert association.left == []
        assert association.scp.outstanding == 0
        assert association.scp.stored == 2
    places = [Location(f"L0/ready/{path.name}") for path in cached.files()]
    assert cached.cstore_service.take_unpublished() == places
    assert cached.cstore_service.take_unpublished() == []


def test_nothing_is_said_counted_or_promised_before_it_is_durable(held: Site) -> None:
    with held.association() as association:
        association.feed(instance(1), instance(2), instance(3))
        assert association.scp.outstanding == 3
        assert held.cstore_service.collect() == []
        assert statuses(association) == []
        assert held.counters() == (0, 0, 0)
        assert held.cstore_service.take_unpublished() == []
        assert held.files() == []
        held.work()
        assert held.settle(association) == []
        assert statuses(association) == [(1, 0), (2, 0), (3, 0)]
        assert association.scp.outstanding == 0
        assert held.counters() == (3, 3 * len(Made().data_set) + 0, 0)
        assert len(held.cstore_service.take_unpublished()) == len(held.files()) == 3


def test_what_became_durable_together_is_answered_in_one_record(held: Site, material: Material) -> None:
    with held.association(material=material) as association, held.association() as other:
        association.feed(*[instance(number) for number in range(5)])
        other.feed(instance(7))
        held.spool.committer.close()
        held.spool.committer.run()  # all of them, before anybody collects
        assert held.cstore_service.collect() == []
        ciphertext = eventually(association.line.ciphertext, 5)
        assert int.from_bytes(ciphertext[3:5]) == len(ciphertext) - 5  # RFC 8446 5.2
        assert association.line.client is not None
        association.line.client.feed(memoryview(ciphertext))
        assert len(association.responses()) == 5
        assert statuses(other) == [(7, 0)]


def test_64_outstanding_operations_are_answered_once_each(held: Site) -> None:
    with held.association(limit=72) as association:
        order = [number * 37 % 64 for number in range(64)]
        for number in order:
            association.feed(instance(number, 65535 - number))
        assert association.scp.outstanding == 64
        assert all(association.scp.operations.is_outstanding(65535 - number) for number in order)
        held.work()
        held.work()
        assert held.settle(association) == []
        assert sorted(statuses(association)) == sorted((65535 - number, 0) for number in order)
        assert association.scp.outstanding == 0


# --- message IDs


def test_an_id_that_is_outstanding_is_refused_and_the_first_is_answered(held: Site) -> None:
    with held.association() as association:
        association.feed(instance(1, 5))
        association.feed(instance(2, 5))
        assert association.left == ["Command", "DataSet"]
        assert statuses(association) == [(5, 0x0210)]
        held.work()
        assert held.settle(association) == []
        assert statuses(association) == [(5, 0)]
        association.feed(instance(3, 5))
        assert held.settle(association) == []
        assert statuses(association) == [(5, 0)]
        assert association.scp.outstanding == 0


def test_ids_that_python_holds_count_too(cached: Site) -> None:
    with cached.association() as association:
        operations = association.scp.operations
        operations.add(5)
        association.feed(instance(1, 5))
        assert association.left == ["Command", "DataSet"]
        assert statuses(association) == [(5, 0x0210)]
        assert operations.outstanding == 1  # the one that is answered is no longer
        operations.remove(5)
        operations.remove(5)
        assert operations.outstanding == 0
        association.feed(instance(1, 5))
        assert statuses(association) == [(5, 0)]


# --- the limit


def test_reading_stops_at_the_limit_and_goes_on_below_it(held: Site) -> None:
    with held.association(limit=4) as association:
        channel, owner = association.line.channel, association.owner
        for number in range(4):
            assert not channel.notices & PAUSED
            association.feed(instance(number))
        assert channel.notices & PAUSED
        for number in range(4, 7):
            association.feed(instance(number))
        assert association.scp.outstanding == 4
        assert owner.notices == []
        held.work()
        assert held.settle(association) == []
        assert owner.notices == [0]
        assert not channel.notices & PAUSED
        assert association.scp.outstanding == 0
        association.go_on()
        assert held.settle(association) == []
        assert sorted(statuses(association)) == [(number, 0) for number in range(7)]


def test_without_a_disk_to_wait_for_the_limit_is_never_reached(cached: Site) -> None:
    with cached.association(limit=1) as association:
        for number in range(5):
            association.feed(instance(number))
        assert [message_id for message_id, _ in statuses(association)] == list(range(5))
        association.go_on()
        assert association.line.channel.notices == 0


# --- the end


def test_what_is_being_committed_when_the_association_ends_is_kept_and_not_answered(held: Site) -> None:
    before = descriptors()
    with held.association() as association:
        association.feed(instance(1))
        association.scp.end()
        held.work()
        assert held.settle(association) == []
        assert statuses(association) == []
    assert len(held.cstore_service.take_unpublished()) == 1
    assert len(held.files()) == 1
    assert descriptors() == before


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.99])
def test_what_is_half_there_when_the_association_ends_goes(part: float, fast: bool, cached: Site) -> None:
    before = descriptors()
    stream = instance(1)
    for _ in range(3):
        with cached.association(fast=fast) as association:
            association.feed(stream[: int(len(stream) * part)])
            association.scp.end()
            if association.line.parser.in_data_set:
                association.feed(stream[int(len(stream) * part) :])  # not looked at any more
    assert cached.partials() == cached.files() == []
    assert cached.cstore_service.take_unpublished() == []
    assert descriptors() == before


@pytest.mark.parametrize("waiting", [False, True])
def test_an_association_that_has_ended_is_let_go_without_the_collector(waiting: bool, held: Site) -> None:
    gc.disable()
    try:
        with held.association() as association:
            alive = weakref.ref(association.owner)
            association.feed(*([instance(1)] if waiting else []), instance(2)[:200])
            association.scp.end()
            assert association.scp.outstanding == waiting
        del association
        assert (alive() is not None) == waiting
        held.work()
        eventually(lambda: held.cstore_service.collect() == [] and alive() is None, 5)
    finally:
        gc.enable()


def test_states_that_do_not_take_or_do_not_answer(cached: Site) -> None:
    with cached.association() as association:
        association.scp.operations.answering = False
        association.feed(instance(1))
        assert statuses(association) == []
        assert len(cached.cstore_service.take_unpublished()) == 1
        association.scp.operations.answering, association.scp.operations.receiving = True, False
        association.feed(instance(2))
        assert association.left == ["Command", "DataSet"]


def test_who_watches_is_told_of_each_that_is_done(held: Site) -> None:
    with held.association() as association:
        association.feed(instance(1), instance(2))
        association.scp.operations.watched = True
        held.work()
        assert held.settle(association) == []
        assert association.owner.done == 2


# --- what fails


def test_what_cannot_become_durable_is_a700_for_it_alone(held: Site) -> None:
    with held.association() as association:
        association.feed(instance(1))
        (partial,) = held.partials()
        (held.spool.slot.path / "ready" / f"{partial.name}.dcm").mkdir()
        association.feed(instance(2))
        held.work()
        assert held.settle(association) == []
        assert sorted(statuses(association)) == [(1, 0xA700), (2, 0)]
        assert held.counters() == (1, len(Made().data_set), 1)
        assert len(held.cstore_service.take_unpublished()) == 1
        assert held.partials() == []
        assert association.scp.outstanding == 0


def test_an_association_that_cannot_be_answered_does_not_keep_others_back(
    held: Site, material: Material
) -> None:
    with held.association(material=material) as broken, held.association() as good:
        broken.feed(instance(1))
        good.feed(instance(2))
        broken.line.channel.close_notify()  # what is said after it is an error
        held.work()
        raised = held.settle(broken, good)
        assert [type(error).__name__ for error in raised] == ["SSLError"]
        assert statuses(good) == [(2, 0)]
        assert len(held.files()) == 2


def test_a_full_spool_takes_nothing(cached: Site) -> None:
    with cached.association() as association:
        cached.cstore_service.full, association.owner.full = True, FullReason("no room")
        association.feed(instance(1))
        assert statuses(association) == [(1, 0xA700)]
        cached.cstore_service.full, association.owner.full = False, None
        association.feed(instance(2))
        assert statuses(association) == [(2, 0)]


def test_no_descriptor_to_be_had_is_a700(cached: Site) -> None:
    with cached.association() as association:
        partial = cached.spool.slot.path / "partial"
        partial.rmdir()
        association.feed(instance(1))
        assert statuses(association) == [(1, 0xA700)]
        assert association.left == ["Command", "DataSet"]


def test_what_is_longer_than_is_taken_is_left_to_python(cached: Site) -> None:
    with cached.association(max_data_set_bytes=1000) as association:
        large = Made(sop="1.2.3.9", pixels=bytes(1000))
        request = encode_p_data(1, dimse.encode_store_request(9, CT, large.sop), 0)
        association.feed(request, data_pdus(1, large.data_set), instance(1))
        assert statuses(association) == [(9, 0xC000), (1, 0)]
        assert association.left == ["DataSet"]
    assert cached.partials() == []


def test_a_data_set_whose_uids_come_in_a_later_window_is_left_to_python(cached: Site) -> None:
    made = Made(sop="1.2.3.1")
    with cached.association() as association:
        association.feed(encode_p_data(1, dimse.encode_store_request(1, CT, made.sop), 0))
        for at in range(0, len(made.data_set), 20):
            piece = made.data_set[at : at + 20]
            association.feed(data_pdus(1, piece, last=at + 20 >= len(made.data_set)))
        assert association.left == ["DataSet"]
        assert statuses(association) == [(1, 0)]
    ((_, content),) = cached.take_files()
    assert content.endswith(made.data_set)


@pytest.mark.parametrize("allows_priority", [False, True])
@pytest.mark.parametrize("fast", [False, True])
def test_priority_of_a_request_is_in_its_file_and_high_only_if_the_peer_may_ask_for_it(
    fast: bool, allows_priority: bool, cached: Site
) -> None:
    priority = b"\0\0\0\7\2\0\0\0"
    with cached.association(fast=fast, allows_priority=allows_priority) as association:
        for number, value in enumerate((0, 1, 2, 9)):
            made = Made(sop=f"1.2.3.{number}")
            association.store(dimse.encode_store_request(number, CT, made.sop, priority=value), made.data_set)
        # A priority that contradicts itself counts as none.
        made = Made(sop="1.2.3.4")
        twice = dimse.encode_store_request(4, CT, made.sop, priority=2) + priority + b"\1\0"
        association.store(twice, made.data_set)
        assert len(statuses(association)) == 5
        assert association.left == [] if fast else ["Command", "DataSet"] * 5
    found = []
    for path in cached.files():
        with path.open("rb") as file:
            found.append(read_file_meta(file.fileno())[0].priority)
    assert found == [0, 1 if allows_priority else 0, 2, 0, 0]


# --- what it is made of


@pytest.mark.parametrize("context_id", [0, 2, 256, 257, -1])
def test_a_context_id_is_odd_and_fits_a_byte(context_id: int) -> None:
    with pytest.raises(ValueError, match="not a presentation context ID"):
        StoreContext(context_id, CT, EXPLICIT, b"", b"", b"")


def test_a_sop_class_that_is_too_long_for_the_response_is_refused() -> None:
    with pytest.raises(ValueError, match="64"):
        StoreContext(1, "1" * 65, EXPLICIT, b"", b"", b"")


@pytest.mark.parametrize("words", [(-1, 0), (0, -1), (8, 0), (0, 8)])
def test_counters_lie_within_what_is_given(words: tuple[int, int]) -> None:
    counters = memoryview(bytearray(struct.calcsize("8Q"))).cast("Q")
    with pytest.raises(ValueError, match="no such word"):
        CStoreService(
            Committer(-1, -1, durable=False), "L0", counters, *words, make_location=Location, durable=False
        )


def test_many_associations_leave_no_descriptor(held: Site) -> None:
    held.work()
    before = descriptors()

    def promised(count: int) -> bool:
        assert held.cstore_service.collect() == []
        return len(held.cstore_service.unpublished) == count

    for number in range(50):
        with held.association() as association:
            association.feed(instance(1), instance(2), instance(3)[:200])
            if number % 2:
                eventually(lambda number=number: promised(2 * (number + 1)), 20)
    eventually(lambda: promised(100), 20)
    assert descriptors() == before
    assert held.partials() == []
