"""The plan of a destination: which changes a data set goes through on its way there.

A change is a `Rewrite`. It takes a data set and returns it changed, or returns the same object if there is
nothing to change. The next change gets its result. Transcoding comes last, since it depends on what the
remote accepts. A plan without changes costs a delivery nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ingest.outgoing.data_set import FileRange, OutgoingDataSet
from ingest.outgoing.transcoding import Transcoding


@dataclass(frozen=True, slots=True)
class StoredDataSet:
    """The data set of a stored instance.

    Attributes:
        fd: Its file. The descriptor stays the caller's.
        offset: Position of the data set in the file, in bytes.
        length: Length of the data set in bytes.
        stored_at: When the instance was stored. Changes that have a time take this one.
    """

    fd: int
    offset: int
    length: int
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    stored_at: int

    def as_outgoing(self) -> OutgoingDataSet:
        """Return the data set to send without any change."""
        return OutgoingDataSet(
            self.sop_class_uid,
            self.sop_instance_uid,
            self.transfer_syntax_uid,
            self.fd,
            (FileRange(self.offset, self.length),),
            self.length,
        )


class Rewrite(Protocol):
    """One kind of change."""

    def rewrite(
        self, data_set: OutgoingDataSet, stored: StoredDataSet, on_tick: Callable[[], None]
    ) -> OutgoingDataSet:
        """Return a data set changed, or the same object.

        The result depends on the arguments and on the configuration only, so that a retry sends the same
        bytes.

        Args:
            data_set: The data set so far.
            stored: The data set in the store, and when it was stored.
            on_tick: To be called at least twice a second.

        Raises:
            RewriteError: The data set cannot be changed, and a later attempt would not change that.
            OSError: The file cannot be read.
        """
        ...


@dataclass(frozen=True, slots=True)
class OutgoingPlan:
    """The changes for one destination, in order; `transcoding` is None if it is never done."""

    rewrites: tuple[Rewrite, ...] = ()
    transcoding: Transcoding | None = None

    def list_offers(self, stored: str) -> tuple[str, ...]:
        """List the transfer syntaxes to propose for instances stored in one, the best first."""
        return (stored,) if self.transcoding is None else self.transcoding.list_offers(stored)

    def make_data_set(
        self,
        stored: StoredDataSet,
        on_tick: Callable[[], None] = lambda: None,
        accepted: Sequence[str] = (),
    ) -> OutgoingDataSet | None:
        """Return the data set to send; None if it is sent as it is stored.

        Args:
            stored: The data set in the store.
            on_tick: To be called at least twice a second.
            accepted: Of `list_offers`, the transfer syntaxes that the remote accepted. Without any, the data
                set keeps the one that it is stored in.

        Raises:
            RewriteError, OSError: As `Rewrite.rewrite`.
        """
        as_stored = data_set = stored.as_outgoing()
        for each in self.rewrites:
            data_set = each.rewrite(data_set, stored, on_tick)
        if self.transcoding is not None and accepted:
            data_set = self.transcoding.transcode(data_set, accepted, on_tick)
        return None if data_set is as_stored else data_set

    def close(self) -> None:
        """End the processes that changes have started."""
        if self.transcoding is not None:
            self.transcoding.close()


AS_STORED = OutgoingPlan()
"""The plan of a destination that changes nothing."""
