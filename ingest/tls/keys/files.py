"""Files of keys, certificates and passwords: read without waiting, written whole or not at all."""

import codecs
import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ingest.errors import ConfigError, IngestError

PASSWORD_MAX: Final = 1024
"""Bytes; Python's limit for the password of a key."""


@dataclass(frozen=True, slots=True)
class _Read:
    """What was read so far."""

    contents: dict[Path, bytes] = field(default_factory=dict)
    listings: dict[Path, list[Path]] = field(default_factory=dict)


_once: ContextVar[_Read | None] = ContextVar("once", default=None)


@contextlib.contextmanager
def reading_once() -> Iterator[None]:
    """Within it each file is read once, so that what is used is what was looked at.

    Sites replace files while a node reads them: several contexts, and what is said of their certificates, are
    made of the same bytes all the same.
    """
    token = _once.set(_Read())
    try:
        yield
    finally:
        _once.reset(token)


def listing(folder: Path) -> list[Path]:
    """The files of a folder, whatever their names.

    Raises:
        OSError: It cannot be read.
    """
    kept = _once.get()
    if kept is not None and folder in kept.listings:
        return kept.listings[folder]
    found = sorted(entry for entry in folder.iterdir() if entry.is_file())
    if kept is not None:
        kept.listings[folder] = found
    return found


def read(path: Path, most: int = -1) -> bytes:
    """What a regular file holds, or so many bytes of it; a pipe could keep who reads it for ever.

    Raises:
        OSError: It cannot be read, or is no regular file.
    """
    kept = _once.get()
    if kept is None:
        return _read(path, most)
    if path not in kept.contents:
        kept.contents[path] = _read(path, -1)
    return kept.contents[path][: most if most >= 0 else None]


def _read(path: Path, most: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        kind = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(kind):
            raise OSError(errno.EINVAL, "Is a pipe or a device", str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(most)
    finally:
        os.close(descriptor)


def read_password(path: Path) -> bytes:
    """The first line of a password file, without the mark that some editors put before UTF-8.

    Raises:
        ConfigError: It cannot be read, is empty, is UTF-16, or is longer than a key's password may be.
    """
    try:
        content = read(path)
    except OSError as error:
        remedy = "name a password file that this user may read"
        raise ConfigError([f"{path}: {error.strerror}; {remedy}"]) from None
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ConfigError([f"{path}: is UTF-16; save the password file as UTF-8"])
    password = content.removeprefix(codecs.BOM_UTF8).partition(b"\n")[0].removesuffix(b"\r")
    if not password:
        cause = f"{path}: its first line is empty; write the password there"
        raise ConfigError([f"{cause}, or name no password file for PKCS#12 whose password is empty"])
    if len(password) > PASSWORD_MAX:
        raise ConfigError([f"{path}: its first line is no password of 1 to {PASSWORD_MAX} bytes; correct it"])
    return password


def read_store_password(path: Path) -> bytes:
    """The same for PKCS#12, which has it in UTF-16 (RFC 7292 B.1): its characters must be known.

    Raises:
        ConfigError: As before, or it is not UTF-8.
    """
    password = read_password(path)
    try:
        password.decode()
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: is not UTF-8; save the password file as UTF-8"]) from None
    return password


def beside(prefix: Path, ending: str) -> Path:
    """`PREFIX.ending`.

    Raises:
        IngestError: The prefix is no name.
    """
    if prefix.name in ("", ".."):
        raise IngestError(f"{prefix}: names a folder, no file in it; write a prefix such as pki/node")
    return prefix.with_name(f"{prefix.name}.{ending}")


def refuse_existing(*paths: Path, force: bool, remedy: str) -> None:
    """Before anything is written.

    Raises:
        IngestError: One of them exists and `force` is not set.
    """
    for path in paths:
        # Unlike Path.exists, it never raises: what cannot be looked at is told when it is written.
        if os.path.exists(path) and not force:
            raise IngestError(f"{path} exists; {remedy}, or --force to replace it")


def write_file(path: Path, content: bytes, mode: int, *, force: bool) -> None:
    """Make a file with these permissions from its first byte on, whole or not at all, with its folder.

    What is replaced keeps its owner and group, where we may say so: who reads it still can.

    Raises:
        IngestError: It exists and `force` is not set, or the folder cannot be written.
    """
    if path.name in ("", ".."):
        raise IngestError(f"{path}: names a folder; name a file in it")
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                if force:
                    _keep_owner(descriptor, path)
                os.fchmod(descriptor, mode)  # whatever the umask
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            if force:
                new.replace(path)
            else:
                path.hardlink_to(new)  # unlike a rename, it never replaces
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        raise IngestError(f"{path}: {error.strerror}; name a place that can be written") from None


def _keep_owner(descriptor: int, path: Path) -> None:
    try:
        there = path.stat()
    except OSError:
        return
    for owner in (there.st_uid, -1):  # the group alone may be given to members of it
        with contextlib.suppress(OSError):
            os.fchown(descriptor, owner, there.st_gid)
            return
