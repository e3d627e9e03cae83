"""What one turn of one connection may cost the others, and what counts as its peer going on."""

import socket
import time

import pytest

from ingest.dicom import wire
from ingest.ext.channel import UNREAD
from ingest.ext.events import ControlPDU
from tests.faults.caller import data_pdus, p_data, pdv
from tests.support.channels import Line, MakeLine, Windows
from tests.support.nodes import eventually

MANY = 3000
TURN = 32
"""Events that Python has to handle, in one turn."""


def waiting(line: Line) -> bool:
    """Whether the kernel holds what the channel has not taken."""
    try:
        return bool(line.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False


def turn(line: Line) -> int:
    count = 0
    while (event := line.channel.receive()) is not None:
        assert isinstance(event, ControlPDU)
        assert event.data == wire.RELEASE_RQ
        count += 1
    return count


@pytest.mark.parametrize("kind", ["plain", "tls"])
def test_much_at_once_is_taken_in_turns_and_nothing_is_lost_when_others_use_the_window(
    kind: str, lines: MakeLine
) -> None:
    windows = Windows()
    flood, other = lines(kind, windows=windows), lines(kind, windows=windows)
    flood.say(wire.RELEASE_RQ * MANY)
    total, turns = eventually(lambda: turn(flood)), 1
    assert total == TURN
    while total < MANY:
        other.say(wire.RELEASE_RQ)
        eventually(lambda: turn(other) == 1, 5, "the other connection's")
        count = turn(flood)
        assert 0 < count <= TURN
        total += count
        turns += 1
    assert total == MANY
    assert turns >= MANY / TURN
    assert turn(flood) == 0
    assert not flood.channel.notices & UNREAD


def test_what_was_put_off_comes_before_the_end_of_the_connection(lines: MakeLine) -> None:
    flood = lines("plain")
    flood.say(wire.RELEASE_RQ * 100)
    flood.peer.close()
    counts = []
    while not flood.channel.notices & 1:
        counts.append(turn(flood))
    assert sum(counts) == 100


def test_what_was_put_off_is_forgotten_with_the_connection(lines: MakeLine) -> None:
    flood = lines("plain")
    flood.say(wire.RELEASE_RQ * 100)
    eventually(lambda: turn(flood))
    assert flood.channel.notices & UNREAD
    flood.channel.detach()
    assert turn(flood) == 0


@pytest.mark.parametrize("kind", ["plain", "tls"])
def test_a_finished_pdu_or_much_of_one_is_progress_and_bytes_alone_are_not(
    kind: str, lines: MakeLine
) -> None:
    line = lines(kind)
    line.parser.expect_data_set(1)
    large = data_pdus(1, bytes(60_000), last=False, length=60_000)

    def came_on(data: bytes) -> bool:
        before = line.channel.progressed
        time.sleep(0.002)  # so that clocks differ
        line.say(data)
        while waiting(line):
            assert line.channel.receive() is None
        return line.channel.progressed > before

    assert came_on(p_data(pdv(1, 0, b"")))
    assert [came_on(large[at : at + 1]) for at in range(20)] == [False] * 20
    assert not came_on(large[20:10_000])
    assert came_on(large[10_000:20_000])
    assert not came_on(large[20_000:30_000])
    assert came_on(large[30_000:])
