from collections.abc import Callable, Sequence
from typing import Any, final

from ingest.ext.channel import Channel, FastPath
from ingest.ext.cstore_codec import StoreContext
from ingest.ext.group_commit import Committer, Entry
from ingest.ext.pdu import PDUParser

__all__ = ["CStoreOperation", "CStoreOperations", "CStoreService"]

@final
class CStoreOperation(Entry):
    @property
    def message_id(self) -> int: ...
    @property
    def context_id(self) -> int: ...
    @property
    def priority(self) -> int: ...
    @property
    def began_ns(self) -> int: ...
    @property
    def sop_class_uid(self) -> str: ...
    @property
    def sop_instance_uid(self) -> str: ...

@final
class CStoreService:
    committer: Committer
    unpublished: list[Any]  # what `make_location` returned
    on_unpublished: Callable[[], object] | None
    full: bool
    def __init__(
        self,
        committer: Committer,
        slot: str,
        counters: memoryview,
        instances: int,
        volume: int,
        *,
        make_location: Callable[[str, int, int], tuple[str, int, int]],
        durable: bool,
        small: int = 0,
        metrics: memoryview | None = None,
        receive_times: int = 0,
        commit_times: int = 0,
    ) -> None: ...
    def add_unpublished(self, location: tuple[str, int, int]) -> None: ...
    def take_unpublished(self) -> list[Any]: ...
    def collect(self) -> list[BaseException]: ...

@final
class CStoreOperations(FastPath):
    receiving: bool
    answering: bool
    watched: bool
    stored: int
    def __init__(
        self,
        service: CStoreService,
        channel: Channel,
        parser: PDUParser,
        owner: Any,
        contexts: Sequence[StoreContext],
        limit: int,
        calling_instances: int = 0,
        calling_bytes: int = 0,
    ) -> None: ...
    @property
    def outstanding(self) -> int: ...
    def is_outstanding(self, message_id: int) -> bool: ...
    def add(self, message_id: int) -> None: ...
    def remove(self, message_id: int) -> None: ...
    def end(self) -> None: ...
    def hand_over(self) -> CStoreOperation | None: ...
