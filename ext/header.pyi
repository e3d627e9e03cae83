from collections.abc import Iterable

__all__ = ["scan"]

def scan(
    data: bytes | bytearray | memoryview, transfer_syntax_uid: str, tags: Iterable[int], at_end: bool
) -> dict[int, bytes] | None: ...
