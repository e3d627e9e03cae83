"""Every vector gives the same events however the stream is cut, and after an error nothing but that error."""

import pytest

from ingest.ext.errors import PeerError
from ingest.ext.pdu import Command, ControlPDU, DataSet, PDUParser
from tests.vectors import feed
from tests.vectors.pdu import ABORT, VALID, VECTORS, Vector

CUTS = ["whole", "byte by byte", *range(8)]


def cut(wire: bytes, how: str | int) -> list[bytes]:
    if how == "whole":
        return feed.whole(wire)
    if how == "byte by byte":
        return feed.byte_by_byte(wire)
    return feed.cut_at_random(wire, int(how))


def outcome(parser: PDUParser, pieces: list[bytes]) -> tuple[list[tuple[object, ...]], int | None]:
    events = []
    try:
        for event in feed.feed(parser, pieces):
            events.append(feed.plain(event))  # noqa: PERF401 - what came before an error counts
    except PeerError as error:
        return events, error.reason
    return events, None


@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_vector_gives_its_events_however_it_is_cut(vector: Vector, how: str | int) -> None:
    assert outcome(PDUParser(), cut(vector.wire, how)) == (list(vector.events), vector.reason)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_vector_passes_through_a_window_of_seven_bytes(vector: Vector) -> None:
    parser = PDUParser(bytearray(7))
    assert outcome(parser, [vector.wire]) == (list(vector.events), vector.reason)


@pytest.mark.parametrize("seed", range(20))
def test_vectors_one_after_another_are_one_stream(seed: int) -> None:
    vectors = [v for v in VALID if v.events and not v.name.startswith(("half", "abort"))]
    wire = b"".join(vector.wire for vector in vectors)
    events = [event for vector in vectors for event in vector.events]
    assert outcome(PDUParser(), feed.cut_at_random(wire, seed)) == (events, None)


def test_dead_parser_raises_the_same_error_again_and_takes_nothing() -> None:
    parser = PDUParser()
    parser.get_buffer()[:2] = b"\x99\x99"
    parser.buffer_updated(2)
    with pytest.raises(PeerError, match="99H") as first:
        parser.next_event()
    parser.get_buffer()[:10] = bytes.fromhex(ABORT)
    parser.buffer_updated(10)
    with pytest.raises(PeerError) as second:
        parser.next_event()
    assert (str(first.value), first.value.reason) == (str(second.value), second.value.reason)


def test_events_compare_by_value_and_do_not_show_what_they_carry() -> None:
    wire = VECTORS_BY_NAME["command and data set in one PDU"].wire + bytes.fromhex(ABORT)
    first, second = (list(feed.feed(PDUParser(), [wire])) for _ in range(2))
    assert [type(event) for event in first] == [Command, DataSet, ControlPDU]
    assert first == second
    assert first[0] != first[1]
    assert first[2] != ABORT
    assert "ca" not in repr(first[1]).removeprefix("DataSet").lower()


def test_in_data_set_holds_from_the_announcement_to_the_last_fragment() -> None:
    parser = PDUParser()
    assert not parser.in_data_set
    told = [
        (type(event), parser.in_data_set)
        for event in feed.feed(parser, [VECTORS_BY_NAME["command and data set in one PDU"].wire])
    ]
    assert told == [(Command, True), (DataSet, False)]


VECTORS_BY_NAME = {vector.name: vector for vector in VECTORS}
