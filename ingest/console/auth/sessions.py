"""Sessions of people who have logged in.

A session lives on the server; the cookie holds only its random id. The server keeps the SHA-256 of the id, so
a copy of `sessions.json` logs nobody in. Logins survive a restart of the console, such as that of a reload:
they are written to the file. Searches, which may hold names and patient IDs, are kept in memory only.
"""

import contextlib
import hashlib
import hmac
import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ingest.clock import unix_ms
from ingest.console.auth.roles import Role
from ingest.console.files import read_json, write_json
from ingest.errors import IngestError

SESSIONS: Final = "sessions.json"
MAX_SESSIONS: Final = 2000
MAX_SESSIONS_PER_USER: Final = 50
MAX_SEARCHES: Final = 20
"""Searches that one session remembers; the oldest is forgotten."""
_KEPT: Final = ("user", "role", "version", "origin", "created_ms", "used_ms")


@dataclass(slots=True)
class Session:
    """A login.

    Attributes:
        user: Name of the user.
        role: Role that OIDC or the local token gave; the role of a local user is that of the user file.
        version: Version of the local user; empty for others.
        origin: "password", "token" or "oidc".
        created_ms: Time of the login, in Unix milliseconds.
        used_ms: Time of the last request of the person, in Unix milliseconds.
        searches: Searches by random id; never written to a disk.
    """

    user: str
    role: Role
    version: str
    origin: str
    created_ms: int
    used_ms: int
    searches: "OrderedDict[str, dict[str, Any]]" = field(default_factory=OrderedDict)


class Sessions:
    """All sessions of one console."""

    def __init__(self, folder: Path, session_ms: int, idle_ms: int) -> None:
        """Read the sessions of an earlier process.

        Args:
            folder: Folder of the console's files.
            session_ms: Time after the login when a session ends.
            idle_ms: Time without a request after which a session ends.
        """
        self._path = folder / SESSIONS
        self._session_ms = session_ms
        self._idle_ms = idle_ms
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        with contextlib.suppress(IngestError, KeyError, TypeError, ValueError):
            for key, each in read_json(self._path).get("sessions", {}).items():
                self._sessions[key] = Session(**{**each, "role": Role(each["role"])})

    def open(self, user: str, role: Role, version: str, origin: str) -> str:
        """Open a session, and return its id for the cookie. Each login has a new id (session fixation)."""
        now, secret = unix_ms(), secrets.token_urlsafe(32)
        with self._lock:
            self._remove_ended(now)
            own = [key for key, each in self._sessions.items() if each.user == user]
            for key in own[: max(0, len(own) - MAX_SESSIONS_PER_USER + 1)]:
                del self._sessions[key]
            while len(self._sessions) >= MAX_SESSIONS:
                self._sessions.popitem(last=False)
            self._sessions[_digest(secret)] = Session(user, role, version, origin, now, now)
            self._save()
        return secret

    def find(self, secret: str, *, is_activity: bool = True) -> tuple[str, Session] | None:
        """Return the session of a cookie with its key; None if it has ended.

        Args:
            secret: Id in the cookie.
            is_activity: Whether a person has asked. A stream of events does not prolong a session.
        """
        key, now = _digest(secret), unix_ms()
        with self._lock:
            session = self._sessions.get(key)
            if session is None:
                return None
            if self._has_ended(session, now):
                del self._sessions[key]
                return None
            if is_activity:
                session.used_ms = now
            return key, session

    def is_alive(self, key: str) -> bool:
        """Return whether a session has not ended."""
        with self._lock:
            session = self._sessions.get(key)
            return session is not None and not self._has_ended(session, unix_ms())

    def close(self, key: str) -> None:
        """End a session."""
        with self._lock:
            self._sessions.pop(key, None)
            self._save()

    def close_all(self, user: str) -> int:
        """End all sessions of a user, and return their number."""
        with self._lock:
            own = [key for key, each in self._sessions.items() if each.user == user]
            for key in own:
                del self._sessions[key]
            self._save()
        return len(own)

    def save(self) -> None:
        """Write the file. The console calls this now and then, because requests only prolong sessions."""
        with self._lock:
            self._save()

    # --- searches

    def keep_search(self, key: str, values: dict[str, Any]) -> str:
        """Keep the filters of a search in a session, and return an id for the URL."""
        name = secrets.token_urlsafe(9)
        with self._lock:
            session = self._sessions.get(key)
            if session is not None:
                session.searches[name] = values
                while len(session.searches) > MAX_SEARCHES:
                    session.searches.popitem(last=False)
        return name

    def find_search(self, key: str, name: str) -> dict[str, Any] | None:
        """Return the filters of a search; None if the session has none of this id."""
        with self._lock:
            session = self._sessions.get(key)
            return None if session is None else session.searches.get(name)

    # --- under the lock

    def _has_ended(self, session: Session, now: int) -> bool:
        # A clock that was set back must not make a session last longer.
        age, idle = now - session.created_ms, now - session.used_ms
        return not (-60_000 <= age < self._session_ms and -60_000 <= idle < self._idle_ms)

    def _remove_ended(self, now: int) -> None:
        for key in [key for key, each in self._sessions.items() if self._has_ended(each, now)]:
            del self._sessions[key]

    def _save(self) -> None:
        content = {key: {name: getattr(each, name) for name in _KEPT} for key, each in self._sessions.items()}
        # On a full disk the sessions last until the console is started again.
        with contextlib.suppress(OSError):
            write_json(self._path, {"sessions": content})


def derive_csrf_token(secret: str) -> str:
    """Return what an unsafe request with this cookie must carry. Another site cannot read the cookie."""
    return hmac.new(secret.encode(), b"csrf", hashlib.sha256).hexdigest()


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
