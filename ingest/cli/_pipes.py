"""Files of a command that may be pipes."""

# ruff: noqa: PLC0415 - as in ingest.cli: --help starts fast

import stat
from pathlib import Path
from typing import Any

import click

_DESCRIPTORS = ("/dev/fd/", "/proc/self/fd/", "/dev/stdin")


class Piped(click.Path):
    """A file, or a pipe that the shell opened (`<(…)`, `/dev/stdin`): read once, however often it is used.

    What was read is in memory (memfd) until the command ends, and the value is the path of that. A pipe with
    a name of its own is left alone: nobody may ever write to it.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click's, and with what the pipe holds."""
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
