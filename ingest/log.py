"""Logging: structlog for our own events, and the standard library's loggers through the same renderer.

An event is a snake_case name with fields (`log.info("association_accepted", calling_ae="CT1")`). UIDs and AE
titles may be fields.

INVARIANT 9: patient data stays in the data sets. No field holds a value of a data set. Tracebacks show no
local variables, because those may hold such a value. They show the messages of our own errors and of the
operating system, and no others: a database, a template or a parser may quote a value in its message.
"""

import contextlib
import logging
import os
import sys
import time
import traceback
from functools import partialmethod
from pathlib import Path
from typing import Final

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from ingest.errors import BootError, IngestError
from ingest.filesystem.calls import TRANSIENT_ERRNOS

LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_FIRST: Final = ("timestamp", "level", "event", "role", "pid")
_STDERR: Final = 2

PROGRAM_FOLDERS: Final = (str(Path(__file__).parent), "ext/")
"""Where the code of the program is: an installed one shares site-packages with its libraries."""

PLACES: Final = 4
"""Lines of our code that the log shows of a defect, and the line of a library that failed."""

# sd-daemon(3): a line for the journal may begin with its priority.
_DEBUG: Final = "<7>"
_INFO: Final = "<6>"
_WARNING: Final = "<4>"
_ERROR: Final = "<3>"
_CRITICAL: Final = "<2>"


class LogFile:
    """Standard error or a file. One write(2) for each line keeps the lines of several processes apart.

    A process has one of these for its whole life, because loggers that exist before a reload keep it.
    """

    def __init__(self) -> None:
        self.role = "node"
        self._file: Path | None = None
        self._descriptor = _STDERR
        self._is_stderr_journal = _leads_to_journal(_STDERR)

    def open(self, file: Path | None) -> None:
        """Write to `file` from now on; None is standard error. On failure nothing changes.

        Raises:
            BootError: The file cannot be opened.
        """
        descriptor = _STDERR
        if file is not None:
            try:
                descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
            except OSError as error:
                if error.errno in TRANSIENT_ERRNOS and self._descriptor == _STDERR:
                    structlog.get_logger().error("log_file_away", file=str(file), error=error.strerror)
                    return
                remedy = "let this user write it, or name another file"
                raise BootError(f"log.file: {file}: {error.strerror}; {remedy}") from None
        self._file, old = file, self._descriptor
        if _STDERR not in {old, descriptor}:
            # Another thread may be writing to the old descriptor. If we closed it, its number could soon
            # belong to another file, and the line would go there. dup2(2) replaces the file atomically.
            os.dup2(descriptor, old, inheritable=False)
            descriptor, old = old, descriptor
        self._descriptor = descriptor
        if old != _STDERR:
            os.close(old)

    def reopen(self) -> None:
        """Open the file again by its name, after it was rotated.

        Raises:
            BootError: The file cannot be opened. The old one stays open.
        """
        self.open(self._file)

    def write(self, text: str, priority: str = _INFO) -> None:
        """Write one event. A full disk or a closed pipe costs the event, never the node."""
        if self._is_stderr_journal and self._descriptor == _STDERR:
            # The journal takes each line of a traceback as an event of its own.
            text = priority + text.replace("\n", f"\n{priority}")
        data = memoryview(text.encode("utf-8", "backslashreplace") + b"\n")
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:
            return

    msg = log = info = write
    debug = partialmethod(write, priority=_DEBUG)
    warning = partialmethod(write, priority=_WARNING)
    error = exception = partialmethod(write, priority=_ERROR)
    critical = partialmethod(write, priority=_CRITICAL)

    @property
    def is_terminal(self) -> bool:
        """Whether a terminal shows the log, so that colours are useful."""
        return os.isatty(self._descriptor)


def _leads_to_journal(descriptor: int) -> bool:
    """Return whether systemd connected this descriptor to the journal (systemd.exec(5), JOURNAL_STREAM)."""
    with contextlib.suppress(OSError):
        status = os.fstat(descriptor)
        return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
    return False


def describe_defect(error: BaseException) -> dict[str, str]:
    """Return type and place of an error for the log, without its message: it may hold values of patients."""
    frames = traceback.extract_tb(error.__traceback__)
    # A library such as SQLAlchemy has many frames below the line of ours that called it.
    ours = [frame for frame in frames if frame.filename.startswith(PROGRAM_FOLDERS)][-PLACES:]
    places = [*ours, *(frame for frame in frames[-1:] if frame not in ours)]
    return {"error": type(error).__name__, "traceback": "".join(traceback.format_list(places))}


def format_error(error: BaseException) -> str:
    """Return the traceback of an error and its causes, without messages that may hold values of patients."""
    parts: list[str] = []
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        current, following = following, _find_cause(following)
        seen.add(id(current))
        lines = traceback.format_tb(current.__traceback__)
        parts.append(f"Traceback (most recent call last):\n{''.join(lines)}{_name_error(current)}")
    return "\n\nwhich led to:\n\n".join(reversed(parts))


def _find_cause(error: BaseException) -> BaseException | None:
    if error.__cause__ is not None or error.__suppress_context__:
        return error.__cause__
    return error.__context__


def _name_error(error: BaseException) -> str:
    kind = type(error).__name__
    # `UnicodeError` and others are no OSError, and quote what they could not read.
    return f"{kind}: {error}" if isinstance(error, (IngestError, OSError)) else kind


class RateLimitedLog:
    """Log of events that may happen thousands of times a second: one line a minute, with a count."""

    def __init__(self, seconds: float = 60.0) -> None:
        """Prepare: each event will be logged at most once in `seconds`."""
        self._seconds = seconds
        self._silent_until: dict[str, float] = {}
        self._suppressed: dict[str, int] = {}

    def warning(self, event: str, **fields: object) -> None:
        """Log a warning, or count it for the next line of this event."""
        now = time.monotonic()
        if now < self._silent_until.get(event, 0.0):
            self._suppressed[event] = self._suppressed.get(event, 0) + 1
            return
        self._silent_until[event] = now + self._seconds
        structlog.get_logger().warning(event, **fields, times=1 + self._suppressed.pop(event, 0))


class _LibraryHandler(logging.Handler):
    """Handler that turns records of libraries (redis, rq, SQLAlchemy) into our events."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            fields = {"library": record.name, "message": record.getMessage(), "exc_info": record.exc_info}
            structlog.get_logger().log(record.levelno, "library", **fields)
        except Exception:  # as handlers of the standard library do: a bad record must not stop the caller
            self.handleError(record)


_log_file: Final = LogFile()
"""The log belongs to the process. It is therefore the one object that is global instead of passed down."""


def configure_logging(level: str, log_format: str, file: Path | None) -> None:
    """Set up logging for this process and the processes that it forks; again after a reload.

    Args:
        level: `[log] level`, a key of `LEVELS`.
        log_format: `[log] format`, "json" or "console".
        file: `[log] file`; None is standard error.

    Raises:
        BootError: `file` cannot be opened. The earlier set-up stays.
    """
    _log_file.open(file)
    structlog.configure(
        processors=[
            *_common_processors(),
            *(_render_json() if log_format == "json" else _render_console(colors=_log_file.is_terminal)),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_: _log_file,
        # Loggers are created at import, before this runs, and outlive a reload. None may cache its set-up.
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    # Set the level at the handler too, because some libraries set the level of their loggers themselves.
    library_level = max(logging.WARNING, LEVELS[level])
    root.handlers = [_LibraryHandler(library_level)]
    root.setLevel(library_level)
    logging.captureWarnings(True)


def set_log_role(role: str) -> None:
    """Set the role that every later line of this process shows, from every thread."""
    _log_file.role = role


def reopen_log() -> None:
    """Open the log file again by its name (SIGUSR1). On failure the old file stays and gets the error."""
    try:
        _log_file.reopen()
    except BootError as error:
        structlog.get_logger().error("log_not_reopened", error=str(error))


def _common_processors() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_process,
        structlog.processors.StackInfoRenderer(),
        _format_exc_info,
    ]


def _format_exc_info(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace `exc_info` by the text of its error."""
    given = event.pop("exc_info", None)
    if given is True:
        given = sys.exc_info()
    error = given[1] if isinstance(given, tuple) else given
    if isinstance(error, BaseException):
        event["exception"] = format_error(error)
    return event


def _add_process(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event.setdefault("role", _log_file.role)
    event["pid"] = os.getpid()
    return event


def _render_json() -> list[Processor]:
    def order_fields(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        return {**{key: event[key] for key in _FIRST if key in event}, **event}

    return [order_fields, structlog.processors.JSONRenderer(default=str)]


def _render_console(*, colors: bool) -> list[Processor]:
    def escape_values(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        """Escape control characters: a peer chooses its AE title and could move the cursor or forge lines."""
        for key, value in event.items():
            if isinstance(value, str):
                event[key] = "\n".join(map(_escape, value.split("\n") if key == "exception" else [value]))
        return event

    return [escape_values, structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=30)]


def _escape(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
