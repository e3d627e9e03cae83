from collections.abc import Collection, Iterable

__all__ = ["HeaderReader", "scan"]

class HeaderReader:
    position: int
    values: dict[int, bytes]
    is_done: bool
    is_exhausted: bool
    @property
    def damage(self) -> int: ...
    @property
    def has_required(self) -> bool: ...
    def __init__(
        self,
        transfer_syntax_uid: str,
        tags: Iterable[int],
        value_max: int,
        inflated_max: int,
        optional: Collection[int] = ...,
    ) -> None: ...
    def feed(self, window: bytes | bytearray | memoryview, at_end: bool) -> None: ...

def scan(
    data: bytes | bytearray | memoryview, transfer_syntax_uid: str, tags: Iterable[int], at_end: bool
) -> dict[int, bytes] | None: ...
