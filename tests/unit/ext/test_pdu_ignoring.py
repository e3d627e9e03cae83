"""A parser that looks at no data any more: it still finds every PDU behind what it passes over."""

import struct

import pytest

from ingest.ext.pdu import ControlPDU, PDUParser

RELEASE_RQ = b"\x05\x00\x00\x00\x00\x04\x00\x00\x00\x00"


def p_data(*pdvs: tuple[int, int, bytes]) -> bytes:
    body = b"".join(struct.pack(">LBB", len(data) + 2, number, flags) + data for number, flags, data in pdvs)
    return b"\x04\x00" + len(body).to_bytes(4) + body


STREAM = (
    p_data((1, 1, b"comm"), (1, 3, b"and"))
    + p_data((1, 0, b"data" * 10), (1, 0, b""))
    + p_data((1, 2, b"set"))
    + p_data((1, 3, b"another"), (1, 2, b"out of order"))
    + RELEASE_RQ
)


def events(parser: PDUParser, data: bytes) -> list[object]:
    found: list[object] = []
    for start in range(0, len(data), 7):
        piece = data[start : start + 7]
        parser.get_buffer()[: len(piece)] = piece
        parser.buffer_updated(len(piece))
        while (event := parser.next_event()) is not None:
            found.append(event)
            if not isinstance(event, ControlPDU) and hasattr(event, "data") and not parser.in_data_set:
                parser.expect_data_set(1)
    return found


@pytest.mark.parametrize("cut", range(len(p_data((1, 1, b"comm"), (1, 3, b"and"))) + 70))
def test_wherever_it_begins_to_ignore_only_the_control_pdu_is_found(cut: int) -> None:
    parser = PDUParser()
    events(parser, STREAM[:cut])
    parser.ignore_data()
    assert not parser.in_data_set
    assert events(parser, STREAM[cut:]) == [event_of(RELEASE_RQ)]
    assert not parser.in_message


def event_of(data: bytes) -> ControlPDU:
    parser = PDUParser()
    (event,) = events(parser, data)
    assert isinstance(event, ControlPDU)
    return event


def test_what_is_ignored_is_not_even_checked() -> None:
    parser = PDUParser(max_pdu_length=4096)
    parser.ignore_data()
    nonsense = b"\x04\x00\x00\x01\x00\x00" + b"\xff" * 65536 + b"\x04\x00\x00\x00\x00\x00"
    assert events(parser, nonsense + RELEASE_RQ) == [event_of(RELEASE_RQ)]
