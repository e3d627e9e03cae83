"""Lengths are checked before anything is kept, and memory grows with what arrived, not with claims."""

import gc
import time
import tracemalloc
from typing import Any

import pytest

from ingest.ext.encode import encode_p_data
from ingest.ext.errors import PeerError
from ingest.ext.pdu import Command, ControlPDU, DataSet, PDUParser
from tests.vectors import feed
from tests.vectors.pdu import AHEAD, ALONE, RELEASE_RQ


def associate(length: int) -> bytes:
    return b"\x01\x00" + length.to_bytes(4, "big")


def test_control_pdu_up_to_the_limit_passes_and_a_byte_more_does_not() -> None:
    (event,) = feed.feed(PDUParser(max_control_length=1000), [associate(1000) + bytes(1000)])
    assert isinstance(event, ControlPDU)
    assert len(event.data) == 1006
    with pytest.raises(PeerError, match="1001 bytes, limit 1000") as error:
        list(feed.feed(PDUParser(max_control_length=1000), [associate(1001)]))
    assert error.value.reason == PeerError.INVALID_PARAMETER


@pytest.mark.parametrize("fragment", [4, 96, 100])
def test_command_set_up_to_the_limit_passes_and_a_byte_more_does_not(fragment: int) -> None:
    parser = PDUParser(max_command_bytes=100)
    (event,) = feed.feed(parser, [encode_p_data(1, bytes(100), fragment + 6)], lambda p, c: None)
    assert isinstance(event, Command)
    with pytest.raises(PeerError, match="longer than 100") as error:
        list(feed.feed(parser, [encode_p_data(1, bytes(102), fragment + 6)], lambda p, c: None))
    assert error.value.reason == PeerError.INVALID_PARAMETER


def test_pdu_up_to_the_limit_passes_and_a_byte_more_does_not() -> None:
    assert list(feed.feed(PDUParser(max_pdu_length=16), [encode_p_data(1, bytes.fromhex(ALONE), 0)]))
    with pytest.raises(PeerError, match="16 bytes, limit 15"):
        list(feed.feed(PDUParser(max_pdu_length=15), [encode_p_data(1, bytes.fromhex(ALONE), 0)]))


def test_unlimited_pdu_of_4_gib_is_taken_as_it_comes() -> None:
    parser = PDUParser(max_pdu_length=0)
    command = bytes.fromhex(AHEAD)
    first = (len(command) + 2).to_bytes(4, "big") + b"\x01\x03" + command
    rest = 0xFFFFFFFF - len(first) - 4
    wire = b"\x04\x00\xff\xff\xff\xff" + first + rest.to_bytes(4, "big") + b"\x01\x02" + bytes(50_000)
    assert [type(e) for e in feed.feed(parser, [wire], lambda p, c: p.expect_data_set(1))] == [Command]
    assert parser.in_data_set


def test_claimed_lengths_cost_no_memory() -> None:
    """Two thousand peers claim 1 GiB each and send 100 bytes."""
    window = bytearray(1024)
    gc.collect()
    tracemalloc.start()
    parsers = []
    for _ in range(2000):
        parser = PDUParser(window, max_control_length=1 << 30, max_command_bytes=1 << 30)
        assert list(feed.feed(parser, [associate(1 << 30) + bytes(100)])) == []
        parsers.append(parser)
    current, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3_000_000
    assert current / len(parsers) < 1500


def test_memory_is_given_back_after_a_large_control_pdu_command_and_data_set() -> None:
    parser = PDUParser(bytearray(65536), max_pdu_length=0, max_command_bytes=1 << 21)
    command = encode_p_data(1, bytes.fromhex(AHEAD), 0)
    data = (1_000_002).to_bytes(4, "big") + b"\x01\x02" + bytes(1_000_000)
    wire = (
        associate(200_000) + bytes(200_000)
        + encode_p_data(1, bytes(1 << 20) + bytes.fromhex(ALONE), 0)
        + command + b"\x04\x00" + len(data).to_bytes(4, "big") + data
    )  # fmt: skip
    gc.collect()
    tracemalloc.start()
    kinds = [type(event) for event in feed.feed(parser, [wire])]
    current, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kinds == [ControlPDU, Command, Command, DataSet]
    assert current < 300_000


def test_thousands_of_tiny_pdvs_in_one_window_are_linear(tmp_path) -> None:
    def seconds(count: int) -> float:
        data = b"\x00\x00\x00\x04\x01\x00ab" * (count - 1) + b"\x00\x00\x00\x04\x01\x02ab"
        wire = encode_p_data(1, bytes.fromhex(AHEAD), 0) + b"\x04\x00" + len(data).to_bytes(4, "big") + data
        parser = PDUParser(bytearray(len(wire)), max_pdu_length=0)
        with (tmp_path / "target").open("wb") as target:
            begun = time.process_time()
            *_, event = feed.feed(parser, [wire], lambda p, c: p.expect_data_set(1, target.fileno()))
            spent = time.process_time() - begun
        assert event.length == 2 * count
        assert (tmp_path / "target").stat().st_size == 2 * count
        return spent

    seconds(1000)
    assert seconds(400_000) < 40 * max(seconds(40_000), 0.002)


def test_endless_empty_fragments_keep_nothing() -> None:
    parser = PDUParser()
    list(feed.feed(parser, [encode_p_data(1, bytes.fromhex(AHEAD), 0)]))
    empty = b"\x04\x00\x00\x00\x00\x06\x00\x00\x00\x02\x01\x00" * 10_000
    tracemalloc.start()
    for _ in range(10):
        assert list(feed.feed(parser, [empty])) == []
    current, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert current < 200_000
    assert parser.in_data_set


@pytest.mark.parametrize(
    "limits",
    [
        {"max_pdu_length": -1},
        {"max_control_length": -1},
        {"max_command_bytes": -1},
        {"max_data_set_bytes": -1},
    ],
)
def test_negative_limits_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="not negative"):
        PDUParser(**limits)


def test_window_must_be_writable_and_not_empty() -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        PDUParser(bytearray())
    with pytest.raises((BufferError, TypeError)):
        PDUParser(memoryview(b"constant"))


def test_part_of_a_larger_buffer_serves_as_window() -> None:
    room = bytearray(100)
    (event,) = feed.feed(PDUParser(memoryview(room)[40:60]), [bytes.fromhex(RELEASE_RQ)])
    assert isinstance(event, ControlPDU)
    assert room[40:50] == bytes.fromhex(RELEASE_RQ)


def test_parsers_share_a_window_when_each_is_drained_before_the_next_receives() -> None:
    window = bytearray(64)
    parsers = [PDUParser(window) for _ in range(10)]
    wires = [bytes([5, i, 0, 0, 0, 4, i, i, i, i]) for i in range(10)]
    events: list[list[Any]] = [[] for _ in parsers]
    for at in range(10):
        for parser, wire, got in zip(parsers, wires, events, strict=True):
            got.extend(feed.feed(parser, [wire[at : at + 1]]))
    assert [[event.data for event in got] for got in events] == [[wire] for wire in wires]


def test_window_cannot_be_resized_while_a_parser_holds_it() -> None:
    window = bytearray(64)
    parser = PDUParser(window)
    with pytest.raises(BufferError):
        window.clear()
    with pytest.raises(BufferError):
        parser.get_buffer().release()
    del parser
    window.clear()


def test_collector_meets_parsers_in_cycles() -> None:
    window = bytearray(64)
    for _ in range(200):
        cycle: dict[str, Any] = {"parser": PDUParser(window)}
        cycle["view"] = cycle["parser"].get_buffer()
        cycle["self"] = cycle
    del cycle
    gc.collect()
    window.clear()


def test_wrong_use_is_told_and_changes_nothing() -> None:
    parser = PDUParser(bytearray(64))
    for count in (-1, 65):
        with pytest.raises(ValueError, match="window of 64"):
            parser.buffer_updated(count)
    parser.get_buffer()[:20] = bytes.fromhex(RELEASE_RQ) * 2
    parser.buffer_updated(20)
    assert parser.next_event() is not None
    with pytest.raises(RuntimeError, match="not drained"):
        parser.buffer_updated(10)
    assert parser.next_event() is not None
    assert parser.next_event() is None
    for context_id in (0, 2, 256, 257, -1):
        with pytest.raises(ValueError, match="no presentation context ID"):
            parser.expect_data_set(context_id)
    with pytest.raises(ValueError, match="not to both"):
        parser.expect_data_set(1, 0, b"", 10)
    with pytest.raises(ValueError, match="not to both"):
        parser.expect_data_set(1, memory_limit=-1)
    parser.expect_data_set(1)
    with pytest.raises(RuntimeError, match="not finished"):
        parser.expect_data_set(1)
