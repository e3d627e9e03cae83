"""Finds SQLite connections that nobody closed, and names the place that opened them.

From Python 3.13 on such a connection is a ResourceWarning when the collector finds it, often in another
test. Here every Python finds it at the end of the test that opened it.
"""

import contextlib
import gc
import itertools
import sqlite3
import sys
import weakref
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

REPOSITORY: Final = Path(__file__).parents[2]

_connect: Final = sqlite3.connect


class WatchedConnection(sqlite3.Connection):
    """A connection that notes its opener, and reports itself if it is collected while it is open."""

    number = 0
    is_open = False
    is_excused = False
    opener: tuple[tuple[CodeType, int], ...] = ()

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.opener = _list_callers(sys._getframe(1))
        self.number = next(_numbers)
        self.is_open = True
        _open.add(self)

    def close(self) -> None:
        super().close()
        self.is_open = False
        _open.discard(self)

    def __del__(self) -> None:
        if self.is_open:
            if not self.is_excused:
                _abandoned.append(self.opener)
            with contextlib.suppress(sqlite3.Error):  # it belongs to another thread
                super().close()


_numbers: Final = itertools.count()
_open: Final[weakref.WeakSet[WatchedConnection]] = weakref.WeakSet()
_abandoned: Final[list[tuple[tuple[CodeType, int], ...]]] = []


def watch_connections() -> None:
    """Watch each connection that this process opens from now on."""

    def connect(*arguments: Any, **keywords: Any) -> sqlite3.Connection:
        keywords.setdefault("factory", WatchedConnection)
        return _connect(*arguments, **keywords)

    sqlite3.connect = sqlite3.dbapi2.connect = connect  # type: ignore[attr-defined]


def count_opened() -> int:
    """Return how many connections were opened so far."""
    return next(_numbers)


def excuse_opened_since(count: int) -> None:
    """Report no connection that was opened since: a failed test closes nothing, and its frames live on."""
    for connection in _open:
        connection.is_excused |= connection.number > count


def take_abandoned(count: int) -> list[str]:
    """Return the openers of the connections that nobody can close any more, and forget them.

    Args:
        count: Connections that were opened before. Their owners are fixtures of a wider scope.
    """
    if any(connection.number > count for connection in _open):
        # Cycles, as those of an engine, are garbage that only the collector frees.
        gc.collect()
    found = [_describe_opener(opener) for opener in _abandoned]
    _abandoned.clear()
    return found


def _list_callers(frame: FrameType | None) -> tuple[tuple[CodeType, int], ...]:
    found = []
    while frame is not None:
        found.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return tuple(found)


def _describe_opener(opener: tuple[tuple[CodeType, int], ...]) -> str:
    """Return the lines of this repository that led to a connection, the innermost first."""
    lines = []
    for code, line in opener:
        path = Path(code.co_filename)
        if path.is_relative_to(REPOSITORY) and ".venv" not in path.parts and path.name != Path(__file__).name:
            lines.append(f"{path.relative_to(REPOSITORY)}:{line} in {code.co_name}")
    return "opened by " + ", called by ".join(lines)
