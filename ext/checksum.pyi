from typing import Final

__all__ = ["crc32c", "crc32c_portable", "has_instruction"]

has_instruction: Final[bool]

def crc32c(data: bytes | bytearray | memoryview) -> int: ...
def crc32c_portable(data: bytes) -> int: ...
