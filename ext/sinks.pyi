from typing import final

__all__ = ["Sink", "set_free_space_reserve"]

def set_free_space_reserve(reserve_bytes: int, listeners: int) -> None: ...

@final
class Sink:
    def __init__(self) -> None: ...
