"""Logging: structlog for our own events, the standard library's loggers through the same renderer.

An event is a snake_case name with fields (`log.info("association_accepted", calling_ae="CT1")`). UIDs and AE
titles may be fields; what a data set says of a patient never. Tracebacks show no local variables, since those
may hold it.
"""

import logging
import os
import time
from pathlib import Path
from typing import Final

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from ingest.config.model import Log
from ingest.errors import BootError
from ingest.filesystem.calls import TROUBLE

LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_FIRST: Final = ("timestamp", "level", "event", "role", "pid")
_STDERR: Final = 2


class Sink:
    """Standard error or a file, written a line at a time, so that the lines of several processes do not mix.

    There is one for a process, since loggers that were bound before a reload keep it.
    """

    def __init__(self) -> None:
        self.role = "node"
        self._file: Path | None = None
        self._descriptor = _STDERR

    def open(self, file: Path | None) -> None:
        """Write to `file` from now on, None is standard error; on failure all stays as it was.

        Raises:
            BootError: It cannot be opened.
        """
        descriptor = _STDERR
        if file is not None:
            try:
                descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
            except OSError as error:
                if error.errno in TROUBLE and self._descriptor == _STDERR:
                    structlog.get_logger().error("log_file_away", file=str(file), error=error.strerror)
                    return
                remedy = "let this user write it, or name another file"
                raise BootError(f"log.file: {file}: {error.strerror}; {remedy}") from None
        self._file, old = file, self._descriptor
        if _STDERR not in {old, descriptor}:
            # Another thread may be writing, and a number that was closed is soon another file's.
            os.dup2(descriptor, old, inheritable=False)
            descriptor, old = old, descriptor
        self._descriptor = descriptor
        if old != _STDERR:
            os.close(old)

    def reopen(self) -> None:
        """Open the file by its name again, after it was rotated.

        Raises:
            BootError: It cannot be opened; the old one stays.
        """
        self.open(self._file)

    def msg(self, line: str) -> None:
        """Write one line. A full disk or a closed pipe loses the line, never the node."""
        data = memoryview(line.encode("utf-8", "backslashreplace") + b"\n")
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:
            return

    debug = info = warning = error = critical = exception = log = msg

    @property
    def is_terminal(self) -> bool:
        """Whether a person looks at it, who likes colours."""
        return os.isatty(self._descriptor)


class Seldom:
    """Says once a minute, with how often it happened, what may happen thousands of times a second."""

    def __init__(self, seconds: float = 60.0) -> None:
        """Begin with nothing said; an event is said again after so many seconds."""
        self._seconds = seconds
        self._said_at: dict[str, float] = {}
        self._unsaid: dict[str, int] = {}

    def warning(self, event: str, **fields: object) -> None:
        """Log a warning, or count it for the next time."""
        now = time.monotonic()
        if now < self._said_at.get(event, 0.0):
            self._unsaid[event] = self._unsaid.get(event, 0) + 1
            return
        self._said_at[event] = now + self._seconds
        structlog.get_logger().warning(event, **fields, times=1 + self._unsaid.pop(event, 0))


class _Bridge(logging.Handler):
    """Takes what libraries (redis, rq, SQLAlchemy, asyncio) log and passes it on as our events."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            fields = {"library": record.name, "message": record.getMessage(), "exc_info": record.exc_info}
            structlog.get_logger().log(record.levelno, "library", **fields)
        except Exception:  # as logging itself does: a message that cannot be logged stops nobody
            self.handleError(record)


_sink: Final = Sink()
"""Logging is the one thing that belongs to the process, not to whoever is passed it."""


def configure(log: Log) -> None:
    """Set up logging for this process and those that it forks; again after a reload.

    A child says who it is with `be`.

    Raises:
        BootError: `[log] file` cannot be opened; what was set up before stays.
    """
    _sink.open(log.file)
    structlog.configure(
        processors=[*_common(), *(_json() if log.format == "json" else _console(colors=_sink.is_terminal))],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[log.level]),
        logger_factory=lambda *_: _sink,
        # Loggers are made at import, before this runs, and outlive a reload: none may keep its first set-up.
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    # At the handler too: some libraries set the level of their loggers themselves.
    level = max(logging.WARNING, LEVELS[log.level])
    root.handlers = [_Bridge(level)]
    root.setLevel(level)
    logging.captureWarnings(True)


def be(role: str) -> None:
    """Name this process in all that it logs, from every thread."""
    _sink.role = role


def reopen() -> None:
    """Open the log file by its name again (USR1); where it cannot be, the old one stays and says why."""
    try:
        _sink.reopen()
    except BootError as error:
        structlog.get_logger().error("log_not_reopened", error=str(error))


def _common() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_process,
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]


def _add_process(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event.setdefault("role", _sink.role)
    event["pid"] = os.getpid()
    return event


def _json() -> list[Processor]:
    def in_order(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        return {**{key: event[key] for key in _FIRST if key in event}, **event}

    return [in_order, structlog.processors.JSONRenderer(default=str)]


def _console(*, colors: bool) -> list[Processor]:
    def harmless(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        """A peer chooses its AE title; control characters in it must not write lines or move the cursor."""
        for key, value in event.items():
            if isinstance(value, str):
                event[key] = "\n".join(map(_printable, value.split("\n") if key == "exception" else [value]))
        return event

    return [harmless, structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=30)]


def _printable(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
