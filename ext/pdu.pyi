from typing import final

from ext.events import Command, ControlPDU, DataSet

__all__ = ["Command", "ControlPDU", "DataSet", "PDUParser"]

@final
class PDUParser:
    def __init__(
        self,
        buffer: bytearray | memoryview | None = None,
        *,
        max_pdu_length: int = 131072,
        max_control_length: int = 262144,
        max_command_bytes: int = 65536,
        max_data_set_bytes: int = 4294967296,
    ) -> None: ...
    def get_buffer(self, sizehint: int = -1) -> memoryview: ...
    def buffer_updated(self, nbytes: int) -> None: ...
    def next_event(self) -> ControlPDU | Command | DataSet | None: ...
    def expect_data_set(
        self, context_id: int, fd: int = -1, head: bytes = b"", memory_limit: int = 0
    ) -> None: ...
    def drop_sink(self) -> None: ...
    @property
    def in_command(self) -> bool: ...
    @property
    def in_data_set(self) -> bool: ...
