"""Whatever arrives, a parser gives events or one PeerError, the same ones however the stream is cut."""

import tempfile

from hypothesis import given
from hypothesis import strategies as st

from ingest.ext.encode import DataSetEncoder, encode_p_data
from ingest.ext.errors import PeerError
from ingest.ext.pdu import Command, ControlPDU, DataSet, PDUParser
from tests.fuzz import guard
from tests.support.properties import examples
from tests.vectors import feed
from tests.vectors.pdu import VALID, VECTORS

EXAMPLES = examples(100)
LIMITS = {"max_control_length": 300, "max_command_bytes": 60, "max_data_set_bytes": 100}

contexts = st.integers(0, 127).map(lambda i: 2 * i + 1)
pdu_lengths = st.one_of(st.just(0), st.integers(7, 40), st.integers(41, 70_000))
messages = st.lists(
    st.tuples(contexts, st.binary(max_size=300), st.none() | st.binary(max_size=3000)), min_size=1, max_size=4
)
seeds = st.integers(0, 1 << 32)


def sent(message: tuple[int, bytes, bytes | None], max_pdu_length: int, buffer_size: int) -> bytes:
    """A message as our own encoder sends it."""
    context_id, command, data = message
    wire = encode_p_data(context_id, command, max_pdu_length)
    if data is None:
        return wire
    with tempfile.TemporaryFile() as file:
        file.write(b"ahead" + data)
        file.flush()
        encoder = DataSetEncoder(max_pdu_length, buffer_size)
        encoder.start(context_id, file.fileno(), 5, len(data))
        return wire + b"".join(bytes(view) for view in iter(encoder.fill, memoryview(b"")))


@EXAMPLES
@given(messages, pdu_lengths, st.integers(14, 5000), st.integers(1, 70_000), seeds)
def test_what_is_encoded_is_parsed(
    sends: list[tuple[int, bytes, bytes | None]],
    max_pdu_length: int,
    buffer_size: int,
    window: int,
    seed: int,
) -> None:
    wire = b"".join(sent(message, max_pdu_length, buffer_size) for message in sends)
    announced = iter([data is not None for _, _, data in sends])
    parser = PDUParser(guard.window(window), max_pdu_length=max_pdu_length)

    def expect(parser: PDUParser, command: Command) -> None:
        if next(announced):
            parser.expect_data_set(command.context_id, memory_limit=1 << 20)

    got = [feed.plain(event) for event in feed.feed(parser, feed.cut_at_random(wire, seed), expect)]
    expected: list[tuple[object, ...]] = []
    for context_id, command, data in sends:
        expected.append(("command", context_id, command))
        if data is not None:
            expected.append(("data set", context_id, data))
    assert got == expected


def outcome(pieces: list[bytes], window: int, sink: str) -> tuple[list[tuple[object, ...]], object]:
    """Events and the error, told apart from everything that must not happen."""
    parser = PDUParser(guard.window(window), **LIMITS)
    events = []
    with tempfile.TemporaryFile() as target:

        def expect(parser: PDUParser, command: Command) -> None:
            if command.data.endswith(feed.NO_DATA_SET):
                return
            if sink == "file":
                parser.expect_data_set(command.context_id, target.fileno(), b"head")
            else:
                parser.expect_data_set(command.context_id, memory_limit=50 if sink == "memory" else 0)

        try:
            for event in feed.feed(parser, pieces, expect):
                assert isinstance(event, ControlPDU | Command | DataSet)
                more = (event.length, event.too_large, event.errno) if isinstance(event, DataSet) else ()
                events.append((*feed.plain(event), *more))
        except PeerError as error:
            return events, (str(error), error.reason)
    return events, None


def same_however_cut(wire: bytes, window: int, seed: int, sink: str) -> None:
    whole = outcome(feed.whole(wire), guard.ROOM, sink)
    assert outcome(feed.cut_at_random(wire, seed), window, sink) == whole
    assert outcome(feed.byte_by_byte(wire), 1, sink) == whole


sinks = st.sampled_from(["file", "memory", "nowhere"])
windows = st.integers(1, 400)


@EXAMPLES
@given(st.binary(max_size=300), windows, seeds, sinks)
def test_any_bytes_are_events_or_one_error(wire: bytes, window: int, seed: int, sink: str) -> None:
    same_however_cut(wire, window, seed, sink)


@EXAMPLES
@given(
    st.lists(st.sampled_from(VALID), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255), st.sampled_from("=+-")), max_size=6),
    windows,
    seeds,
    sinks,
)
def test_mutations_are_events_or_one_error(vectors, mutations, window: int, seed: int, sink: str) -> None:  # type: ignore[no-untyped-def]
    wire = bytearray(b"".join(vector.wire for vector in vectors))
    for place, byte, how in mutations:
        at = place % (len(wire) + 1)
        if how == "+":
            wire.insert(at, byte)
        elif at < len(wire) and how == "=":
            wire[at] = byte
        elif at < len(wire):
            del wire[at]
    same_however_cut(bytes(wire), window, seed, sink)


pdvs = st.builds(
    lambda context_id, control, payload, lie: (
        (len(payload) + 2 + lie).to_bytes(4, "big", signed=False) + bytes([context_id, control]) + payload
    ),
    st.sampled_from([1, 1, 1, 1, 3, 2]),
    st.sampled_from([0, 1, 2, 2, 3, 3, 3]),
    st.sampled_from([b"", b"a", b"abcd" * 8, b"ab" * 30, VALID[11].events[0][2]]),
    st.sampled_from([0] * 30 + [1, 2, 1000]),
)
pdus = st.builds(
    lambda items, lie: b"\x04\x00" + max(0, len(b"".join(items)) + lie).to_bytes(4, "big") + b"".join(items),
    st.lists(pdvs, max_size=5),
    st.sampled_from([0] * 30 + [1, -1, 1 << 20]),
)


@EXAMPLES
@given(st.lists(pdus | st.sampled_from([v.wire for v in VECTORS]), max_size=6), windows, seeds, sinks)
def test_fragments_in_any_order_are_events_or_one_error(wires, window: int, seed: int, sink: str) -> None:  # type: ignore[no-untyped-def]
    same_however_cut(b"".join(wires), window, seed, sink)
