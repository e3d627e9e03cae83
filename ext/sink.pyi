from typing import final

@final
class Sink:
    def __init__(self) -> None: ...
