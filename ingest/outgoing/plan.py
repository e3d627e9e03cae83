"""The plan of a destination: which changes a data set goes through on its way there.

A change is a `Rewrite`. It takes a data set and returns it changed, or returns the same object if there is
nothing to change. The next change gets its result. A plan without changes costs a delivery nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ingest.outgoing.data_set import FileRange, OutgoingDataSet


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
    """The changes for one destination, in order."""

    rewrites: tuple[Rewrite, ...] = ()

    def make_data_set(
        self, stored: StoredDataSet, on_tick: Callable[[], None] = lambda: None
    ) -> OutgoingDataSet | None:
        """Return the data set to send; None if it is sent as it is stored.

        Raises:
            RewriteError, OSError: As `Rewrite.rewrite`.
        """
        as_stored = data_set = stored.as_outgoing()
        for each in self.rewrites:
            data_set = each.rewrite(data_set, stored, on_tick)
        return None if data_set is as_stored else data_set


AS_STORED = OutgoingPlan()
"""The plan of a destination that changes nothing."""
