"""Drive a PDUParser as a connection does, with the stream cut as a test asks."""

import random
from collections.abc import Callable, Iterable, Iterator

from ingest.ext.pdu import Command, ControlPDU, DataSet, PDUParser

NO_DATA_SET = (
    b"\x01\x01"  # Command Data Set Type 0101H (PS3.7 E.1), the last bytes of the command sets in pdu.py
)

Event = ControlPDU | Command | DataSet
OnCommand = Callable[[PDUParser, Command], None]


def whole(wire: bytes) -> list[bytes]:
    return [wire] if wire else []


def byte_by_byte(wire: bytes) -> list[bytes]:
    return [wire[i : i + 1] for i in range(len(wire))]


def cut_at_random(wire: bytes, seed: int) -> list[bytes]:
    chance = random.Random(seed)
    cuts = sorted(chance.randrange(len(wire) + 1) for _ in range(chance.randrange(1, 12)))
    return [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True) if a < b]


def to_memory(parser: PDUParser, command: Command) -> None:
    """Answer an announced data set with a memory sink."""
    if command.data and not command.data.endswith(NO_DATA_SET):
        parser.expect_data_set(command.context_id, memory_limit=1 << 30)


def feed(parser: PDUParser, pieces: Iterable[bytes], on_command: OnCommand = to_memory) -> Iterator[Event]:
    """Every event of the pieces; pieces longer than the window are cut to it."""
    window = parser.get_buffer(-1)
    for piece in pieces:
        for start in range(0, len(piece), len(window)):
            part = piece[start : start + len(window)]
            window[: len(part)] = part
            parser.buffer_updated(len(part))
            while (event := parser.next_event()) is not None:
                if isinstance(event, Command):
                    on_command(parser, event)
                yield event


def plain(event: Event) -> tuple[object, ...]:
    """An event as the vectors write it."""
    if isinstance(event, ControlPDU):
        return ("control", event.pdu_type, event.data)
    if isinstance(event, Command):
        return ("command", event.context_id, event.data)
    return ("data set", event.context_id, event.data)
