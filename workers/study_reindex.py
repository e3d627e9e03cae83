"""Read the studies of an older ledger, or after a change of `[ledger] index`, for the study index.

Persist workers read them while no instance arrives, in steps of a few files. `ingest ledger reindex` reads
all at once. Only the newest file of each series is read, because the instances of a series share these
attributes.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from ingest.config.model import Config
from ingest.dicom.file_header import read_instance_header
from ingest.dicom.study_attributes import StudyAttributeReader, StudyAttributes
from ingest.errors import PeerError
from ingest.filesystem.folder_identity import require_store
from ingest.ledger import Ledger
from ingest.ledger.reindexing import ReindexProgress
from ingest.ledger.store_folders import QUARANTINE, STORE

LEASE_SECONDS: Final = 30.0
"""A process that dies while it reads holds up the others for this time."""

STEP_SECONDS: Final = 0.02
"""Duration of one step of a persist worker. The next step continues with the same study."""

REPORT_SECONDS: Final = 0.5


class StudyReindexer:
    """Reads studies one after the other.

    Methods raise LedgerError while the ledger is away, and StoreMissingError while store or quarantine is not
    mounted: its files are not gone then.
    """

    def __init__(self, config: Config, ledger: Ledger, owner: str) -> None:
        """Prepare the reader.

        Args:
            config: The configuration.
            ledger: Its ledger.
            owner: Name of this process for the lease.
        """
        self._ledger = ledger
        self._level = config.ledger.index
        self._reader = StudyAttributeReader(self._level)
        self._roots = {STORE: config.store_root, QUARANTINE: config.quarantine_dir}
        self._owner = f"{socket.gethostname()}.{os.getpid()}.{owner}"
        self._reading: Iterator[bool] | None = None

    def is_pending(self) -> bool:
        """Whether there is a study to read."""
        return self._ledger.reindexing.is_pending(self._level)

    def read_progress(self) -> ReindexProgress:
        """Return how far the index is."""
        return self._ledger.reindexing.read_progress(self._level)

    def run_step(self, seconds: float = STEP_SECONDS) -> bool:
        """Read for a moment. Return False if there is nothing left, or another process reads."""
        reindexing = self._ledger.reindexing
        if not reindexing.take_lease(self._owner, LEASE_SECONDS):
            # The other process may read the study that this one has begun.
            self._reading = None
            return False
        until = time.monotonic() + seconds
        while True:
            if self._reading is None:
                self._reading = self._read_next()
            if not next(self._reading, False):
                self._reading = None
                if not reindexing.is_pending(self._level):
                    reindexing.release_lease(self._owner)
                    return False
            if time.monotonic() >= until:
                return True

    def release_lease(self) -> None:
        """Let other processes go on at once."""
        self._reading = None
        self._ledger.reindexing.release_lease(self._owner)

    def _read_next(self) -> Iterator[bool]:
        """Read the next study; yield True after each file."""
        reindexing = self._ledger.reindexing
        if reindexing.remove_attributes(self._level):
            return
        # INVARIANT 13: on an empty mount point every file would be gone.
        for kind, root in self._roots.items():
            require_store(root, self._ledger.store_folders.find_folder(kind))
        study = reindexing.find_pending_study(self._level)
        if study is None:
            return
        found: dict[str, StudyAttributes] = {}
        for series_uid, key, is_aside in study.files:
            attributes = self._read_file(self._roots[QUARANTINE if is_aside else STORE] / key)
            if attributes is not None:
                found[series_uid] = attributes
            yield True
        reindexing.write_study(study, self._level, found, len(study.files) - len(found))

    def _read_file(self, path: Path) -> StudyAttributes | None:
        """Read the attributes of a file; None if it is gone or cannot be read."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except (OSError, ValueError):
            return None
        try:
            header = read_instance_header(fd, os.fstat(fd).st_size, (), self._reader.tags)
        except (OSError, PeerError):
            return None
        finally:
            os.close(fd)
        return self._reader.read_attributes(header.attributes)


def reindex_studies(
    config: Config, report_progress: Callable[[str], None], *, wait_seconds: float = 2 * LEASE_SECONDS
) -> ReindexProgress:
    """Read all studies that have to be read.

    Args:
        config: The configuration.
        report_progress: Called with a text about the progress.
        wait_seconds: How long another process may hold the lease before this one gives up.

    Returns:
        The progress at the end. Studies are left if another process is reading them.

    Raises:
        LedgerError: The ledger is away. The same call again does the rest.
        StoreMissingError: Store or quarantine is not mounted.
    """
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        ledger.migrate()
        reindexer = StudyReindexer(config, ledger, "command")
        progress = reindexer.read_progress()
        deadline = time.monotonic() + wait_seconds
        try:
            while progress.left and time.monotonic() < deadline:
                if reindexer.run_step(REPORT_SECONDS):
                    deadline = time.monotonic() + wait_seconds
                else:
                    time.sleep(STEP_SECONDS)
                progress = reindexer.read_progress()
                report_progress(
                    f"{progress.studies - progress.left} of {progress.studies} studies are indexed"
                )
        finally:
            reindexer.release_lease()
        return progress
