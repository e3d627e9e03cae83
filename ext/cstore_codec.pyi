from typing import final

__all__ = ["StoreContext"]

@final
class StoreContext:
    context_id: int
    def __init__(
        self,
        context_id: int,
        sop_class_uid: str,
        transfer_syntax_uid: str,
        lead: bytes,
        before: bytes,
        after: bytes,
        after_high: bytes | None = None,
        after_low: bytes | None = None,
    ) -> None: ...
