"""Attribute an error to the bytes of an image, or to this host and its services.

INVARIANT 11: our faults quarantine no image. A fault of a disk, of descriptors, of a database or of a queue
is waited for with backoff, and counts against no image.
"""

import errno
from typing import Final

import redis

from ingest.errors import LedgerError, StoreAwayError

ERRORS_OF_NAMES: Final = frozenset({errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR})
"""Errors about the requested name. Any other system error ends some day."""

_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


def is_our_fault(error: BaseException) -> bool:
    """Whether an error is a fault of this host or of a service, independent of the image.

    Args:
        error: The exception that reading, storing or recording an image raised.
    """
    if isinstance(error, OSError):
        if error.errno is None:
            # Code that judges content raises a plain OSError, such as for a file that ends too early.
            # Timeouts have no number either, but a separate class.
            return type(error) is not OSError
        return error.errno not in ERRORS_OF_NAMES
    return isinstance(error, MemoryError | StoreAwayError | LedgerError | redis.RedisError)


def is_shortage(error: BaseException | None) -> bool:
    """Whether descriptors or memory ran out, so that less work at a time may succeed."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _SHORTAGES):
            return True
        error = error.__cause__
    return False
