"""Crash marks: proof that a worker of this host died while it read an instance, as files in `run/reading/`.

Redis counts the deliveries of an entry, but others may write to Redis. A high count therefore only calls for
care. Before a worker reads such a suspect it makes a mark, and it removes the mark afterwards, with success
or without. A mark that is there before was left by a worker that died.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

FOLDER: Final = "reading"


# INVARIANT 11: our fault is never blamed on the image. A counter in Redis is no proof; a file here is.
class CrashMarks:
    """The marks of one host."""

    def __init__(self, run_dir: Path) -> None:
        """Prepare without making a file.

        Args:
            run_dir: `Config.run_dir` of the node.
        """
        self._folder = run_dir / FOLDER

    def is_marked(self, spool_ref: str) -> bool:
        """Whether a worker died while it worked on this reference."""
        return self._path_of(spool_ref).exists()

    @contextlib.contextmanager
    def keep_mark(self, spool_ref: str) -> Iterator[None]:
        """Keep a mark while the worker works on this reference.

        Raises:
            OSError: The folder cannot be written.
        """
        self._folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._path_of(spool_ref).touch()
        try:
            yield
        except Exception:
            self.remove_mark(spool_ref)
            raise
        # A BaseException that is no Exception ends the worker. Then the mark stays, as after a SIGKILL.
        self.remove_mark(spool_ref)

    def remove_mark(self, spool_ref: str) -> None:
        """Remove the mark, because this worker lives."""
        with contextlib.suppress(OSError):
            self._path_of(spool_ref).unlink()

    def _path_of(self, spool_ref: str) -> Path:
        return self._folder / hashlib.sha256(spool_ref.encode()).hexdigest()[:32]
