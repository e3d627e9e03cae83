"""Note in the ledger that this host uses it, and notice when a newer program has migrated the ledger."""

import contextlib
import socket
import time
from typing import Final

from ingest.config.model import Config
from ingest.errors import BootError, LedgerError, LedgerVersionError
from ingest.ledger import Ledger

PERIOD_SECONDS: Final = 60.0
"""Pause between two notes. Within this time a worker notices that its program has become too old."""


class HostRecorder:
    """The note of one worker process."""

    def __init__(self, config: Config, ledger: Ledger, role: str) -> None:
        """Prepare. The first call of `record_if_due` notes the host."""
        self._config = config
        self._ledger = ledger
        self._role = role
        self._due_at = 0.0

    def record_if_due(self) -> None:
        """Note the host, once a minute. A ledger that is away is reported elsewhere.

        Raises:
            BootError: A newer program has migrated the ledger. The process has to end before it writes rows
                that the newer program would not understand.
        """
        if time.monotonic() < self._due_at:
            return
        self._due_at = time.monotonic() + PERIOD_SECONDS
        try:
            with contextlib.suppress(LedgerError):
                self._note_host()
        except BootError:
            self._due_at = 0.0
            raise

    def _note_host(self) -> None:
        try:
            self._ledger.hosts.note_host(socket.gethostname(), str(self._config.data_dir), self._role)
        except LedgerVersionError as error:
            raise BootError(str(error)) from error
