"""Every error that this project raises on purpose, in one shallow tree.

`PeerError` stands beside the tree: it blames the peer's bytes, and ext/, which raises it, imports nothing of
ours. Everything below `IngestError` blames our side: what a person configured, a disk, a queue or a remote
that is away.
"""

from collections.abc import Sequence
from enum import Enum

from ingest.ext.errors import PeerError

__all__ = [
    "AssociationError",
    "BootError",
    "Cause",
    "ConditionError",
    "ConfigError",
    "IngestError",
    "LedgerError",
    "PeerError",
    "QueueError",
    "ResolverAwayError",
    "SpoolError",
    "SpoolMissingError",
    "StoreAwayError",
    "StoreError",
    "StoreMissingError",
]


class IngestError(Exception):
    """Root of our own errors; the message names the key, file, AE title or UID, and what to do next."""


class ConfigError(IngestError):
    """The configuration cannot be used; the node exits with 2.

    Attributes:
        faults: One line for each fault, each naming its key (or file) and the remedy.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


class ConditionError(ValueError):
    """A condition of a route is not valid. The message is the cause, and `remedy` the next step."""

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(cause)
        self.remedy = remedy


class BootError(IngestError):
    """A child cannot start with this configuration (a port in use, a key that does not fit); exit 3."""


class SpoolError(IngestError):
    """The spool folder cannot be used, or an entry is not there."""


class SpoolMissingError(SpoolError):
    """The spool that was used last is not mounted where it was; nothing is made in its place."""


class StoreError(IngestError):
    """The store could not keep or give an instance."""


class StoreAwayError(StoreError):
    """The store is full, failing or not there; trying the same again later may help."""


class StoreMissingError(StoreAwayError):
    """The store that the ledger knows is not mounted where it was; nothing is made in its place."""


class QueueError(IngestError):
    """Redis is away or answers what it should not; the caller waits and tries again."""


class LedgerError(IngestError):
    """The ledger is away or of an unknown schema version."""


class ResolverAwayError(OSError):
    """No name server answered in time. An OSError, because callers treat it as any failed lookup."""


class Cause(Enum):
    """Why there is no association, as far as it can be told from this side."""

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
    CLOSED = "it closed the connection without a word"
    CALLED = "it does not know the called AE title"
    CALLING = "it does not know our AE title"
    FULL = "it takes no more associations now"
    NO_CONTEXT = "it accepts no presentation context"


class AssociationError(IngestError):
    """An association with a remote could not be made or ended early.

    Attributes:
        permanent: True where trying again with the same proposal cannot help (A-ASSOCIATE-RJ permanent).
        cause: What was at fault; None where that cannot be told.
    """

    def __init__(self, message: str, *, permanent: bool = False, cause: Cause | None = None) -> None:
        super().__init__(message)
        self.permanent = permanent
        self.cause = cause
