"""API tokens in `data_dir/console/tokens.json`, and the token of a console without users.

A token has 256 random bits, so a plain SHA-256 of it is enough at rest: nobody can guess it, and a slow hash
would only make each request slow.
"""

import contextlib
import hashlib
import os
import re
import secrets
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ingest.clock import unix_ms
from ingest.console.auth.roles import ROLES_BY_WORD, Principal, Role
from ingest.console.files import find_version, lock_folder, read_json, write_json
from ingest.errors import IngestError, UnknownUserError

TOKENS: Final = "tokens.json"
LOCAL_TOKEN: Final = "token"  # noqa: S105 - the name of a file
"""File of the token that a console without users asks for."""

PREFIX: Final = "ingest_"
"""Begin of every token, so that scanners for leaked secrets find one."""

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class Token:
    """An API token.

    Attributes:
        name: Name for the log and the audit trail.
        role: The role of requests with it.
        digest: SHA-256 of the token, in hexadecimal.
        created_ms: When it was made, in Unix milliseconds.
        expires_ms: When it ends, in Unix milliseconds; 0 for never.
    """

    name: str
    role: Role
    digest: str
    created_ms: int
    expires_ms: int = 0

    def is_expired(self) -> bool:
        """Return whether the token has ended."""
        return bool(self.expires_ms) and unix_ms() >= self.expires_ms


class TokenFile:
    """The API tokens in one folder. Every method raises IngestError if the file cannot be used."""

    def __init__(self, folder: Path) -> None:
        """Prepare; nothing is read yet."""
        self._folder = folder
        self._path = folder / TOKENS
        # The version of the file that was read, and what it held.
        self._kept: tuple[tuple[int, int, int] | None, dict[str, Token]] = (None, {})

    def list_tokens(self) -> list[Token]:
        """Return all tokens by name."""
        return sorted(self._read().values(), key=lambda token: token.name)

    def find_principal(self, text: str) -> Principal | None:
        """Return the principal of a token; None if there is no such token, or it has ended."""
        token = self._read().get(digest_token(text))
        if token is None or token.is_expired():
            return None
        return Principal(f"token:{token.name}", token.role)

    def add_token(self, name: str, role: Role, expires_ms: int = 0) -> str:
        """Make a token, and return its text, which is kept nowhere.

        Raises:
            IngestError: There is one of this name.
        """
        if not _NAME.fullmatch(name):
            raise IngestError(f"{name!r} is no name of a token; use 1 to 64 letters, digits, `.`, `_`, `-`")
        text = make_token()
        with lock_folder(self._folder):
            tokens = self._read()
            if any(token.name == name for token in tokens.values()):
                raise IngestError(f"there is a token {name}; remove it first, or choose another name")
            token = Token(name, role, digest_token(text), unix_ms(), expires_ms)
            self._write([*tokens.values(), token])
        return text

    def remove_token(self, name: str) -> None:
        """Remove a token. The next request with it is refused.

        Raises:
            UnknownUserError: There is none of this name.
        """
        with lock_folder(self._folder):
            tokens = list(self._read().values())
            if all(token.name != name for token in tokens):
                known = ", ".join(sorted(token.name for token in tokens)) or "none"
                raise UnknownUserError(f"there is no token {name}; the tokens are: {known}")
            self._write([token for token in tokens if token.name != name])

    def _read(self) -> dict[str, Token]:
        found, (read_from, by_digest) = find_version(self._path), self._kept
        if found is None:
            by_digest = {}
        elif found != read_from:
            by_digest = _parse_tokens(self._path, read_json(self._path))
        # One assignment, because other threads read: none of them may take the old tokens for those of the
        # new file. A file that is replaced after `find_version` has another version, and is read again.
        self._kept = (found, by_digest)
        return by_digest

    def _write(self, tokens: list[Token]) -> None:
        content = {
            token.name: {
                "role": token.role.word,
                "sha256": token.digest,
                "created_ms": token.created_ms,
                "expires_ms": token.expires_ms,
            }
            for token in tokens
        }
        try:
            write_json(self._path, {"tokens": content})
        except OSError as error:
            raise IngestError(
                f"{self._path}: {error.strerror}; run the command as the user of the node"
            ) from None


def make_token() -> str:
    """Return the text of a new token."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_token(text: str) -> str:
    """Return the SHA-256 of a token, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def read_local_token(folder: Path) -> str:
    """Return the token of a console without users. Make it if there is none yet.

    Raises:
        IngestError: The file cannot be read or made.
    """
    path = folder / LOCAL_TOKEN
    try:
        # Each request comes here: an existing token needs no write, which a full disk would refuse.
        if not path.exists():
            _make_local_token(path)
        if path.stat().st_mode & 0o077:
            raise IngestError(f"{path}: other users may read it; remove it, and a new one is made")
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "is damaged"
        raise IngestError(f"{path}: {cause}; run the command as the user of the node") from None
    if not text.startswith(PREFIX):
        raise IngestError(f"{path}: is damaged; remove it, and a new one is made")
    return text


def _make_local_token(path: Path) -> None:
    """Make the file, unless another process or thread was first."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Write the whole file under another name first: another process may read it at once.
    new = path.with_name(f".{LOCAL_TOKEN}.{os.getpid()}.{threading.get_ident()}")
    fd = os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "w", encoding="ascii") as file:
            file.write(make_token() + "\n")
        with contextlib.suppress(FileExistsError):
            os.link(new, path)
    finally:
        new.unlink()


def _parse_tokens(path: Path, content: dict[str, Any]) -> dict[str, Token]:
    try:
        tokens = [
            Token(
                name,
                ROLES_BY_WORD[each["role"]],
                str(each["sha256"]),
                int(each["created_ms"]),
                int(each["expires_ms"]),
            )
            for name, each in content["tokens"].items()
        ]
    except (KeyError, TypeError, AttributeError, ValueError):
        raise IngestError(f"{path}: is damaged; restore it, or remove it and add its tokens again") from None
    return {token.digest: token for token in tokens}
