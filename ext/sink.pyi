from typing import final

__all__ = ["Sink"]

@final
class Sink:
    def __init__(self) -> None: ...
