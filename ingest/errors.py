"""Every exception that this project defines.

`IngestError` is the root of the errors that a person can act on: a configuration, a disk, a service or a
remote. The command line prints its message without a traceback, so the message names the key, file, peer or
UID and the next step. `PeerError` stands beside that tree, because it blames the bytes of a peer. It comes
from `ext/`, which imports nothing above itself. The last group never reaches a person: code catches these
exceptions to decide what to do next.
"""

from collections.abc import Sequence
from enum import Enum

from ingest.ext.errors import PeerError

__all__ = [
    "AddressAwayError",
    "AssociationError",
    "BootError",
    "Cause",
    "ClockJumpError",
    "ConditionError",
    "ConfigError",
    "DemoError",
    "EntryGoneError",
    "IngestError",
    "LeaseLostError",
    "LedgerError",
    "LedgerVersionError",
    "NodeError",
    "NotQuarantinedError",
    "PathEscapesError",
    "PeerError",
    "QueueError",
    "ResolverAwayError",
    "RetentionBusyError",
    "RewriteError",
    "SendingError",
    "SpoolError",
    "SpoolMissingError",
    "StoppedError",
    "StoreAwayError",
    "StoreError",
    "StoreMissingError",
    "UnknownAlertError",
    "UnknownDestinationError",
    "UnknownObjectError",
    "UnknownUserError",
    "UnknownWebhookError",
    "UpgradeError",
]


class IngestError(Exception):
    """Root of the errors that a person can act on."""


# --- configuration and start


class ConfigError(IngestError):
    """The configuration cannot be used. The node ends with exit code 2.

    Attributes:
        faults: One line for each fault, with its key or file and the remedy.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


class BootError(IngestError):
    """A process cannot start with this configuration, such as one without a right. Exit code 3."""


class AddressAwayError(BootError):
    """An address or a port cannot be had now. A later start may succeed, so the exit code is 1."""


class NodeError(IngestError):
    """A node that a program has started does not become ready, or ended with an error."""


class DemoError(IngestError):
    """A step of `ingest demo` failed."""


# --- spool, store, queue and ledger


class SpoolError(IngestError):
    """The spool folder cannot be used, or an entry is missing."""


class SpoolMissingError(SpoolError):
    """The spool that was used last is not mounted. The node creates no other spool in its place."""


class EntryGoneError(SpoolError):
    """The file or record that a spool reference names is missing."""


class StoreError(IngestError):
    """The store could not keep or return an instance."""


class StoreAwayError(StoreError):
    """The store is full, failing or missing. The same call may succeed later."""


class StoreMissingError(StoreAwayError):
    """The store that the ledger knows is not mounted. The node creates no other store in its place."""


class RewriteError(StoreError):
    """A data set cannot be changed as a destination asks for it. The message has no value of an attribute."""


class QueueError(IngestError):
    """Redis is away, or its answer is not usable. The caller waits and tries again."""


class LedgerError(IngestError):
    """The ledger is away, or it has another schema version."""


class LedgerVersionError(LedgerError):
    """A newer program has migrated the ledger. This program must not use it."""


class UpgradeError(IngestError):
    """The upgrade would disturb a node that runs, or would not fit onto the disk. Nothing was changed."""


# --- decisions of a person that the node refuses


class NotIndexedError(IngestError):
    """A list was asked for by an attribute that `[ledger] index` does not keep."""


class UnknownDestinationError(IngestError):
    """Neither the configuration nor the ledger has a destination of this name."""


class UnknownObjectError(IngestError):
    """Neither ledger nor spool has a study or an instance of this name."""


class UnknownAlertError(IngestError):
    """The configuration has no alert of this name."""


class UnknownWebhookError(IngestError):
    """The configuration has no webhook of this name."""


class UnknownUserError(IngestError):
    """The console has no user or token of a name."""


class NotQuarantinedError(IngestError):
    """The id is unknown, or its instance is not in quarantine or cannot leave it."""


class RetentionBusyError(IngestError):
    """Another process removes instances from this store."""


class ClockJumpError(IngestError):
    """The clock of this machine has jumped ahead, so retention would remove too much."""


# --- remotes


class Cause(Enum):
    """Cause of a failed association, as far as this side knows it."""

    UNKNOWN_HOST = "the name has no address"
    NO_NAME_SERVER = "no name server answers"
    REFUSED = "nobody listens"
    UNREACHABLE = "no answer from the network"
    NOT_TLS = "the remote speaks no TLS on this port"
    TLS_WANTED = "the remote speaks TLS on this port"
    UNTRUSTED = "we do not trust its certificate"
    EXPIRED = "its certificate is not valid now"
    REVOKED = "its certificate is revoked"
    NAME = "its certificate has another name"
    NO_CERTIFICATE = "it has shown no certificate"
    UNBOUND = "its certificate is not the one that the destination is bound to"
    OURS_UNTRUSTED = "it does not trust our certificate"
    OURS_EXPIRED = "our certificate has ended, it says"
    OURS_REFUSED = "it does not like our certificate"
    OURS_MISSING = "it wants a certificate, and we have none"
    VERSION = "no common TLS version"
    CIPHER = "no common cipher suite, group or signature algorithm"
    NO_RESPONSE = "it did not answer in time, or takes no data"
    ABORTED = "it aborted the association"
    REJECTED = "it rejected the association for another reason"
    RELEASED = "it released the association"
    PROTOCOL_ERROR = "it broke the protocol"
    CLOSED = "it closed the connection without a word"
    CALLED = "it does not know the called AE title"
    CALLING = "it does not know our AE title"
    FULL = "it takes no more associations now"
    NO_CONTEXT = "it accepts no presentation context"


class AssociationError(IngestError):
    """An association with a remote failed, or ended early.

    Attributes:
        permanent: Whether the same proposal can never succeed (A-ASSOCIATE-RJ with result 1).
        cause: The failure; None if this side does not know it.
    """

    def __init__(self, message: str, *, permanent: bool = False, cause: Cause | None = None) -> None:
        super().__init__(message)
        self.permanent = permanent
        self.cause = cause


class SendingError(IngestError):
    """A webhook or mail could not be sent. It is sent again later.

    Attributes:
        cause: What happened.
        remedy: The next step of a person.
        blames_target: Whether other events would fail too.
    """

    def __init__(self, cause: str, remedy: str, *, blames_target: bool = True) -> None:
        super().__init__(f"{cause}; {remedy}")
        self.cause = cause
        self.remedy = remedy
        self.blames_target = blames_target


# --- exceptions that steer the caller, and never reach a person


class ConditionError(ValueError):
    """A condition of a route is not valid. The message is the cause.

    Attributes:
        remedy: The text to write instead.
    """

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(cause)
        self.remedy = remedy


class PathEscapesError(ValueError):
    """A relative path leaves its folder, or passes through a symbolic link or a file."""


class ResolverAwayError(OSError):
    """No name server answered in time."""


class LeaseLostError(Exception):
    """The ledger was away for so long that other workers may lease the same deliveries."""


class StoppedError(Exception):
    """The worker was stopped while it waited. Its unfinished references stay on the queue."""
