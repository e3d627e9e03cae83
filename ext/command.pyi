from collections.abc import Mapping
from typing import Any

__all__ = ["decode_command", "encode_command"]

def decode_command(data: bytes) -> dict[str, Any]: ...
def encode_command(elements: Mapping[str, Any]) -> bytes: ...
