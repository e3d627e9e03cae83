"""Where a data set goes: a descriptor, memory or nowhere, and what happens when that fails half-way."""

import errno
import os
import random
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ingest.ext.encode import encode_p_data
from ingest.ext.pdu import Command, DataSet, PDUParser
from tests.vectors import feed
from tests.vectors.pdu import AHEAD, ALONE

HEAD = b"preamble and File Meta"


def p_data(*items: bytes) -> bytes:
    """One P-DATA-TF of PDV items."""
    body = b"".join(items)
    return b"\x04\x00" + len(body).to_bytes(4, "big") + body


def pdv(payload: bytes, *, last: bool = False, context_id: int = 1) -> bytes:
    return (len(payload) + 2).to_bytes(4, "big") + bytes([context_id, 2 if last else 0]) + payload


def message(data: bytes, fragment: int = 16378, per_pdu: int = 1) -> bytes:
    """A command set that announces a data set, and the data set in fragments."""
    pieces = [data[i : i + fragment] for i in range(0, len(data), fragment)] or [b""]
    items = [pdv(piece, last=i == len(pieces) - 1) for i, piece in enumerate(pieces)]
    pdus = [p_data(*items[i : i + per_pdu]) for i in range(0, len(items), per_pdu)]
    return encode_p_data(1, bytes.fromhex(AHEAD), 16384) + b"".join(pdus)


def to_descriptor(fd: int, head: bytes = b"") -> feed.OnCommand:
    def expect(parser: PDUParser, command: Command) -> None:
        if command.data == bytes.fromhex(AHEAD):
            parser.expect_data_set(command.context_id, fd, head)

    return expect


def the_data_set(parser: PDUParser, pieces: list[bytes], on_command: feed.OnCommand) -> DataSet:
    """The only DataSet event of the pieces."""
    (event,) = [e for e in feed.feed(parser, pieces, on_command) if isinstance(e, DataSet)]
    return event


@pytest.fixture
def target(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size + 1, 0)


DATA = random.Random(1).randbytes(100_001)

CUTS: dict[str, Callable[[bytes], list[bytes]]] = {
    "whole": feed.whole,
    "byte by byte": feed.byte_by_byte,
    "random": lambda wire: feed.cut_at_random(wire, 5),
}


@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize(("fragment", "per_pdu"), [(16378, 1), (16378, 7), (4000, 3), (1, 1000)])
def test_descriptor_gets_head_and_data_set(target: int, how: str, fragment: int, per_pdu: int) -> None:
    data = DATA[:20_001] if how == "byte by byte" or fragment == 1 else DATA
    event = the_data_set(
        PDUParser(bytearray(1 << 20)),
        CUTS[how](message(data, fragment, per_pdu)),
        to_descriptor(target, HEAD),
    )
    assert content(target) == HEAD + data
    assert (event.context_id, event.length, event.data, event.too_large, event.errno) == (
        1,
        len(data),
        None,
        False,
        0,
    )


def test_head_is_written_for_a_data_set_without_a_byte(target: int) -> None:
    event = the_data_set(PDUParser(), [message(b"")], to_descriptor(target, HEAD))
    assert (event.length, content(target)) == (0, HEAD)


def test_data_sets_that_share_a_window_go_to_their_own_descriptors(tmp_path: Path) -> None:
    fds = [os.open(tmp_path / str(i), os.O_RDWR | os.O_CREAT) for i in range(5)]
    waiting = iter(fds)
    wire = b"".join(message(DATA[i * 1000 : i * 2000], 300) for i in range(5))
    events = list(
        feed.feed(PDUParser(), [wire], lambda p, c: p.expect_data_set(1, next(waiting), b"%d" % len(c.data)))
    )
    assert len(events) == 10
    assert [content(fd) for fd in fds] == [b"10" + DATA[i * 1000 : i * 2000] for i in range(5)]
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("how", CUTS)
def test_memory_gets_the_data_set(how: str) -> None:
    data = DATA[:5000]
    event = the_data_set(
        PDUParser(), CUTS[how](message(data, 64)), lambda p, c: p.expect_data_set(1, memory_limit=5000)
    )
    assert (event.data, event.length, event.too_large) == (data, 5000, False)


def test_memory_of_too_little_room_keeps_nothing_and_says_so() -> None:
    wire = message(DATA[:5000], 64) + encode_p_data(1, bytes.fromhex(ALONE), 0)
    events = list(
        feed.feed(
            PDUParser(),
            [wire],
            lambda p, c: c.data == bytes.fromhex(ALONE) or p.expect_data_set(1, memory_limit=4999),
        )
    )
    assert [type(event) for event in events] == [Command, DataSet, Command]
    assert (events[1].data, events[1].length, events[1].too_large) == (None, 5000, True)


def test_without_a_sink_the_data_set_is_counted_and_dropped() -> None:
    event = the_data_set(PDUParser(), [message(DATA)], lambda p, c: p.expect_data_set(1))
    assert (event.data, event.length, event.too_large, event.errno) == (None, len(DATA), False, 0)


def test_data_set_beyond_the_limit_is_drained_and_the_association_goes_on(target: int) -> None:
    parser = PDUParser(max_data_set_bytes=50_000)
    event = the_data_set(parser, [message(DATA)], to_descriptor(target))
    assert (event.too_large, event.length, event.errno) == (True, len(DATA), 0)
    assert len(content(target)) <= 50_000
    os.ftruncate(target, 0)
    os.lseek(target, 0, os.SEEK_SET)
    event = the_data_set(parser, [message(DATA[:50_000])], to_descriptor(target))
    assert (event.too_large, content(target)) == (False, DATA[:50_000])


def test_limit_passed_in_the_window_that_began_the_data_set_frees_the_head_safely(target: int) -> None:
    parser = PDUParser(max_data_set_bytes=10)
    for _ in range(100):
        event = the_data_set(parser, [message(DATA[:100], 8)], to_descriptor(target, os.urandom(4096)))
        assert (event.too_large, event.errno) == (True, 0)


@pytest.mark.parametrize("how", CUTS)
def test_full_disk_is_told_once_and_the_rest_drained(how: str) -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    parser = PDUParser()
    wire = message(DATA[:3000], 50) + message(b"next", 50)
    events = [
        e for e in feed.feed(parser, CUTS[how](wire), to_descriptor(fd, HEAD)) if isinstance(e, DataSet)
    ]
    os.close(fd)
    assert [(e.errno, e.length, e.too_large) for e in events] == [
        (errno.ENOSPC, 3000, False),
        (errno.ENOSPC, 4, False),
    ]


def test_file_size_limit_is_told_after_what_fitted_was_written(target: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        event = the_data_set(PDUParser(), [message(DATA, 1000)], to_descriptor(target, HEAD))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert event.errno == errno.EFBIG
    assert content(target) == (HEAD + DATA)[:30_000]


def test_closed_descriptor_is_an_errno_and_no_exception(target: int) -> None:
    gone = os.dup(target)
    os.close(gone)
    assert the_data_set(PDUParser(), [message(DATA)], to_descriptor(gone, HEAD)).errno == errno.EBADF


def test_data_set_after_a_failed_one_starts_without_its_error(target: int) -> None:
    fds = iter([os.open("/dev/full", os.O_WRONLY), target])
    parser = PDUParser()
    expect = lambda p, c: p.expect_data_set(1, next(fds), HEAD)  # noqa: E731 - one line says it
    events = [e for e in feed.feed(parser, [message(DATA) * 2], expect) if isinstance(e, DataSet)]
    assert [event.errno for event in events] == [errno.ENOSPC, 0]
    assert content(target) == HEAD + DATA


def test_dropped_sink_gets_nothing_more_and_its_descriptor_may_be_closed(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    parser = PDUParser()
    wire = message(DATA, 1000)
    assert [type(e) for e in feed.feed(parser, [wire[:5000]], to_descriptor(fd, HEAD))] == [Command]
    written = content(fd)
    assert written == (HEAD + DATA)[: len(written)]
    parser.drop_sink()
    os.close(fd)
    event = the_data_set(parser, [wire[5000:]], to_descriptor(-1))
    assert (event.length, event.errno, event.data) == (len(DATA), 0, None)
    assert (tmp_path / "target").read_bytes() == written


def test_dropped_memory_sink_gives_no_data() -> None:
    parser = PDUParser()
    wire = message(DATA, 1000)
    list(feed.feed(parser, [wire[:5000]], lambda p, c: p.expect_data_set(1, memory_limit=1 << 20)))
    parser.drop_sink()
    assert the_data_set(parser, [wire[5000:]], to_descriptor(-1)).data is None


def test_short_writes_and_signals_lose_nothing() -> None:
    """A pipe takes 4 KiB at a time from a writer that an alarm interrupts every millisecond."""
    data = random.Random(2).randbytes(2_000_000)
    reader, writer = os.pipe()
    got = bytearray()

    def read() -> None:
        while piece := os.read(reader, 4096):
            got.extend(piece)

    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.siginterrupt(signal.SIGALRM, True)
    thread = threading.Thread(target=read)
    thread.start()
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        event = the_data_set(PDUParser(bytearray(1 << 20)), [message(data)], to_descriptor(writer, HEAD))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        os.close(writer)
        thread.join(30)
        os.close(reader)
    assert (event.errno, event.length) == (0, len(data))
    assert bytes(got) == HEAD + data


def test_other_threads_run_while_a_write_waits_and_may_not_touch_the_parser() -> None:
    reader, writer = os.pipe()
    parser = PDUParser(bytearray(1 << 20))
    refused: list[str] = []

    def disturb() -> None:
        os.read(reader, 1)  # the write is under way, and 900 KB do not fit into a pipe
        for act in (parser.next_event, parser.drop_sink, lambda: parser.buffer_updated(0)):
            with pytest.raises(RuntimeError, match="another thread"):
                act()
            refused.append("yes")
        while os.read(reader, 65536):
            pass

    thread = threading.Thread(target=disturb)
    thread.start()
    event = the_data_set(parser, [message(bytes(900_000))], to_descriptor(writer))
    os.close(writer)
    thread.join(30)
    os.close(reader)
    assert (event.errno, refused) == (0, ["yes"] * 3)
