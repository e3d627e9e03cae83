"""Files that may be pipes of the shell."""

import stat
from pathlib import Path
from typing import Any

import click

_DESCRIPTORS = ("/dev/fd/", "/proc/self/fd/", "/dev/stdin")


class PipedPath(click.Path):
    """A file, or a pipe that the shell opened (`<(…)`, `/dev/stdin`). A pipe is read once, into memory.

    The value is the path of the content in memory (memfd), which lasts until the command ends. A named pipe
    is refused like any other file that is not regular: it may never get a writer.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path of the file, or of the content of the pipe."""
        path = Path(super().convert(value, param, ctx))  # type: ignore[arg-type]
        if ctx is None or not str(path).startswith(_DESCRIPTORS):
            return path
        from ingest.tls.keys.loading import in_memory

        try:
            if not stat.S_ISFIFO(path.stat().st_mode):
                return path
            content = path.read_bytes()
        except OSError as error:
            self.fail(f"{path}: {error.strerror}", param, ctx)
        return Path(ctx.with_resource(in_memory(content)))
