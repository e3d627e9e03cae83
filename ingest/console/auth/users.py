"""Users of the console, in `data_dir/console/users.json`. Passwords are kept as argon2id hashes.

The commands change the file; the console reads it again when it has changed. A user who is removed or whose
password or role changes loses all sessions, because each session remembers the version of its user.
"""

import secrets
import threading
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from ingest.config.console_rules import USERS
from ingest.console.auth.roles import USER_ROLES_BY_WORD, Role
from ingest.console.files import find_version, lock_folder, read_json, write_json
from ingest.errors import IngestError, UnknownUserError

MIN_PASSWORD_LENGTH: Final = 12
"""NIST SP 800-63B-4 3.1.1.2 asks for 15 characters where a password is the only factor, OWASP for 8 to 15."""

MAX_PASSWORD_BYTES: Final = 1024

_HASHER: Final = PasswordHasher()
"""argon2id with the library's parameters: RFC 9106 4, second recommended option (64 MiB)."""

_HASHING: Final = threading.BoundedSemaphore(2)
"""Each hash takes 64 MiB: two at a time bound the memory of a flood of logins."""


@dataclass(frozen=True, slots=True)
class User:
    """A user.

    Attributes:
        name: Name of the login.
        role: The role.
        password: argon2id hash of the password.
        version: Changes with password and role. A session of another version is over.
    """

    name: str
    role: Role
    password: str
    version: str


class UserFile:
    """The users in one folder. Every method raises IngestError if the file cannot be used."""

    def __init__(self, folder: Path) -> None:
        """Prepare; nothing is read yet."""
        self._folder = folder
        self._path = folder / USERS
        # The version of the file that was read, and what it held.
        self._kept: tuple[tuple[int, int, int] | None, dict[str, User]] = (None, {})
        self._decoy = ""

    def list_users(self) -> list[User]:
        """Return all users by name."""
        return sorted(self._read().values(), key=lambda user: user.name)

    def find_user(self, name: str) -> User | None:
        """Return a user; None if there is none of this name."""
        return self._read().get(normalize_name(name))

    def verify_password(self, name: str, password: str) -> User | None:
        """Return the user if the password is right. An unknown user takes the same time."""
        user = self.find_user(name)
        if len(password.encode()) > MAX_PASSWORD_BYTES:
            return None
        with _HASHING:
            if not self._decoy:
                self._decoy = _HASHER.hash(secrets.token_hex())
            try:
                _HASHER.verify(user.password if user else self._decoy, normalize_password(password))
            except (Argon2Error, InvalidHashError):
                return None
        return user

    def add_user(self, name: str, role: Role, password: str, *, keeps_admin: bool = False) -> User:
        """Add a user, and return it.

        Args:
            name: Name of the user. It stands in paths of the API, so it has no `/`.
            role: The role.
            password: The password.
            keeps_admin: Whether the first user must be an administrator. With the first user, the token of a
                console without users ends.

        Raises:
            IngestError: There is one of this name, the password is too short, or the first user is no
                administrator.
        """
        name = normalize_name(name)
        if not name or len(name) > 64 or not name.isprintable() or set(":/") & set(name):
            raise IngestError(
                f"{name!r} is no name of a user; use 1 to 64 printable characters without `:` and `/`"
            )
        with lock_folder(self._folder):
            users = self._read()
            if name in users:
                raise IngestError(
                    f"there is a user {name}; `ingest console user passwd` changes the password"
                )
            if keeps_admin and not users and role is not Role.ADMIN:
                raise IngestError("the first user has to be an administrator, because there is no other one")
            user = _make_user(name, role, password)
            self._write({**users, name: user})
        return user

    def change_user(
        self, name: str, *, role: Role | None = None, password: str | None = None, keeps_admin: bool = False
    ) -> User:
        """Change role or password of a user, and end all sessions of the user.

        Args:
            name: Name of the user.
            role: The new role; None keeps it.
            password: The new password; None keeps it.
            keeps_admin: Whether the last administrator must stay one.

        Raises:
            UnknownUserError: There is none of this name.
            IngestError: The password is too short, or it is the last administrator.
        """
        with lock_folder(self._folder):
            users = self._read()
            old = self._require(users, name)
            if keeps_admin and role not in {None, Role.ADMIN}:
                _require_other_admin(users, old)
            if password is not None:
                new = _make_user(old.name, role or old.role, password)
            else:
                new = User(old.name, role or old.role, old.password, secrets.token_hex(8))
            self._write({**users, old.name: new})
        return new

    def remove_user(self, name: str, *, keeps_admin: bool = False) -> None:
        """Remove a user, and end all sessions of the user.

        Args:
            name: Name of the user.
            keeps_admin: Whether the last administrator must stay.

        Raises:
            UnknownUserError: There is none of this name.
            IngestError: It is the last administrator.
        """
        with lock_folder(self._folder):
            users = self._read()
            gone = self._require(users, name)
            if keeps_admin:
                _require_other_admin(users, gone)
            self._write({key: user for key, user in users.items() if key != gone.name})

    @staticmethod
    def _require(users: dict[str, User], name: str) -> User:
        user = users.get(normalize_name(name))
        if user is None:
            known = ", ".join(sorted(users)) or "none"
            raise UnknownUserError(f"there is no user {name}; the users are: {known}")
        return user

    def _read(self) -> dict[str, User]:
        """Return the users, read again if the file has changed."""
        found, (read_from, users) = find_version(self._path), self._kept
        if found is None:
            users = {}
        elif found != read_from:
            users = _parse_users(self._path, read_json(self._path))
        # One assignment, because other threads read: none of them may take the old users for those of the new
        # file. A file that is replaced after `find_version` has another version, and is read again.
        self._kept = (found, users)
        return users

    def _write(self, users: dict[str, User]) -> None:
        content = {
            user.name: {"role": user.role.word, "password": user.password, "version": user.version}
            for user in users.values()
        }
        try:
            write_json(self._path, {"users": content})
        except OSError as error:
            raise IngestError(
                f"{self._path}: {error.strerror}; run the command as the user of the node"
            ) from None


def _require_other_admin(users: Mapping[str, User], leaving: User) -> None:
    others = [user for user in users.values() if user.role is Role.ADMIN and user.name != leaving.name]
    if leaving.role is Role.ADMIN and not others:
        raise IngestError(
            f"{leaving.name} is the last administrator; make another one first, or use `ingest console user` "
            "on the host"
        )


def normalize_name(name: str) -> str:
    """Return a name as it is compared: two spellings of one name are one user."""
    return unicodedata.normalize("NFKC", name).strip()


def normalize_password(password: str) -> str:
    """Return a password as it is hashed (RFC 8265 4.2: NFC, spaces stay)."""
    return unicodedata.normalize("NFC", password)


def _make_user(name: str, role: Role, password: str) -> User:
    if len(normalize_password(password)) < MIN_PASSWORD_LENGTH:
        raise IngestError(f"the password is too short; use {MIN_PASSWORD_LENGTH} characters or more")
    if len(password.encode()) > MAX_PASSWORD_BYTES:
        raise IngestError(f"the password is too long; use {MAX_PASSWORD_BYTES} bytes or fewer")
    return User(name, role, _HASHER.hash(normalize_password(password)), secrets.token_hex(8))


def _parse_users(path: Path, content: dict[str, Any]) -> dict[str, User]:
    try:
        return {
            name: User(name, USER_ROLES_BY_WORD[each["role"]], str(each["password"]), str(each["version"]))
            for name, each in content["users"].items()
        }
    except (KeyError, TypeError, AttributeError):
        raise IngestError(f"{path}: is damaged; restore it, or remove it and add its users again") from None
