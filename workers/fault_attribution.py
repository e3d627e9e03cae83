"""Whose fault an error is: this image's own, or that of a disk, of descriptors, a database or a queue.

Trouble of ours waits with back-off, for as long as it takes, and counts against no image. Only a proof about
the image's own bytes sets it aside.
"""

import errno
from typing import Final

import redis

from ingest.errors import LedgerError, StoreAwayError

OF_THE_NAME: Final = frozenset({errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR})
"""Errors about the name that was asked for. All other system errors are over some day."""

_SHORTAGE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


def is_ours(error: BaseException) -> bool:
    """Whether an error is trouble of this host or of a service, whatever the image is.

    Args:
        error: What was raised while an image was read, placed or recorded.
    """
    if isinstance(error, OSError):
        if error.errno is None:
            # Raised in plain words about content: a file that ends too early. A timeout is another class.
            return type(error) is not OSError
        return error.errno not in OF_THE_NAME
    return isinstance(error, MemoryError | StoreAwayError | LedgerError | redis.RedisError)


def is_shortage(error: BaseException | None) -> bool:
    """Whether there were not enough descriptors or not enough memory: less at a time may do."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _SHORTAGE):
            return True
        error = error.__cause__
    return False
