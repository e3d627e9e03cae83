"""A spool in memory, for a listener whose own spool cannot be used.

The listener commits nothing to it. It answers every association with a transient rejection, and the sender
repeats the association later. Without this spool the sender would get no answer at all.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ingest.errors import SpoolError, SpoolMissingError
from ingest.filesystem.calls import TRANSIENT_ERRNOS
from ingest.spool.spool import Spool


def is_temporary(error: BaseException | None) -> bool:
    """Whether a failure to open the spool may end by itself: a full or failing disk, or an absent mount.

    Any other failure is a fault of the configuration.
    """
    # INVARIANT 8: only a wrong configuration stops the node
    while error is not None:
        if isinstance(error, SpoolMissingError) or (
            isinstance(error, OSError) and error.errno in TRANSIENT_ERRNOS
        ):
            return True
        error = error.__cause__
    return False


@contextlib.contextmanager
def open_refusing_spool() -> Iterator[Spool]:
    """Yield an empty spool in memory or in the temporary folder, and remove it afterwards.

    Raises:
        SpoolError: No folder can be written to.
    """
    folder = _make_folder()
    try:
        spool = Spool.claim(folder, durable=False)
        try:
            yield spool
        finally:
            spool.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make_folder() -> Path:
    for parent in ("/dev/shm", None):  # noqa: S108 - mkdtemp makes it private
        with contextlib.suppress(OSError):
            return Path(tempfile.mkdtemp(prefix="dicom-ingest-", dir=parent))
    raise SpoolError("no folder for temporary files can be written to; see TMPDIR")
