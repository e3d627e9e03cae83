"""Which spool references a worker of this host died of, as marks in `run/reading/`.

How often an entry was delivered stands in Redis, where others may write: it tells what to be careful with,
and proves nothing. A worker that is about to read a suspect leaves a mark first, and removes it when it has
come through, with success or without. A mark that is there before was left by a worker that died.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

FOLDER: Final = "reading"


class Deaths:
    """The marks of one host."""

    def __init__(self, run_dir: Path) -> None:
        """Prepare; makes nothing yet.

        Args:
            run_dir: `Config.run_dir` of the node.
        """
        self._folder = run_dir / FOLDER

    def are_proved(self, spool_ref: str) -> bool:
        """Whether a worker died with this reference in hand."""
        return self._mark(spool_ref).exists()

    @contextlib.contextmanager
    def in_hand(self, spool_ref: str) -> Iterator[None]:
        """Leave a mark for as long as the worker lives and has this reference in hand.

        Raises:
            OSError: The folder cannot be written.
        """
        self._folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._mark(spool_ref).touch()
        try:
            yield
        except Exception:
            self.end(spool_ref)
            raise
        # Anything but an Exception ends the worker.
        self.end(spool_ref)

    def end(self, spool_ref: str) -> None:
        """Remove the mark: this worker lives."""
        with contextlib.suppress(OSError):
            self._mark(spool_ref).unlink()

    def _mark(self, spool_ref: str) -> Path:
        return self._folder / hashlib.sha256(spool_ref.encode()).hexdigest()[:32]
