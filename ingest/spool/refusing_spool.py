"""A spool in memory for a listener that can only refuse, while its own cannot be used.

Nothing is ever committed to it: a listener without a spool answers every association with a transient
rejection, which a sender repeats later, instead of leaving it without an answer.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ingest.errors import SpoolError, SpoolMissingError
from ingest.filesystem.calls import TROUBLE
from ingest.spool.spool import Spool


def passes(error: BaseException | None) -> bool:
    """Whether what a spool cannot be used for is over some day: a full or failing disk, a mount that is away.

    Anything else is a fault of the configuration.
    """
    while error is not None:
        if isinstance(error, SpoolMissingError) or (isinstance(error, OSError) and error.errno in TROUBLE):
            return True
        error = error.__cause__
    return False


@contextlib.contextmanager
def stand_in() -> Iterator[Spool]:
    """An empty spool in memory, or in the temporary folder; gone afterwards.

    Raises:
        SpoolError: No folder can be written to.
    """
    folder = _folder()
    try:
        spool = Spool.claim(folder, durable=False)
        try:
            yield spool
        finally:
            spool.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _folder() -> Path:
    for parent in ("/dev/shm", None):  # noqa: S108 - mkdtemp makes it private
        with contextlib.suppress(OSError):
            return Path(tempfile.mkdtemp(prefix="dicom-ingest-", dir=parent))
    raise SpoolError("no folder for temporary files can be written to; see TMPDIR")
