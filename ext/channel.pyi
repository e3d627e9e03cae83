from typing import Any, Final

from ingest.ext.event_loop import EventSource
from ingest.ext.events import Command, ControlPDU, DataSet
from ingest.ext.pdu import PDUParser
from ingest.ext.tls_connection import BufferedConnection

__all__ = ["BLOCKED", "CLOSED", "ENDED", "PAUSED", "UNREAD", "Channel", "FastPath"]

ENDED: Final = 1
CLOSED: Final = 2
BLOCKED: Final = 4
PAUSED: Final = 8
UNREAD: Final = 16

class FastPath: ...

class Channel(EventSource):
    notices: int
    first: int
    error: int
    progressed: float
    ignores_input: bool
    discards_output: bool
    taker: FastPath | None
    owner: Any
    def __init__(self, fd: int, parser: PDUParser, ciphertext: memoryview, owner: Any) -> None: ...
    def plain(self) -> None: ...
    def secure(self, connection: BufferedConnection) -> None: ...
    def receive(self) -> ControlPDU | Command | DataSet | None: ...
    def send(self, data: bytes) -> None: ...
    def send_raw(self, data: bytes) -> None: ...
    def flush(self) -> None: ...
    def close_notify(self) -> None: ...
    def detach(self) -> None: ...
    @property
    def unsent(self) -> int: ...
