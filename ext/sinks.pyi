from typing import final

__all__ = ["Sink", "keep_free"]

def keep_free(reserve_bytes: int, listeners: int) -> None: ...

@final
class Sink:
    def __init__(self) -> None: ...
