"""Files of keys, certificates and passwords: read without blocking, written completely or not at all."""

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
"""Upper limit of Python's `ssl` module for the password of a key, in bytes."""


@dataclass(frozen=True, slots=True)
class _FileCache:
    """Contents and folder listings that were read so far."""

    contents: dict[Path, bytes] = field(default_factory=dict)
    listings: dict[Path, list[Path]] = field(default_factory=dict)


_file_cache: ContextVar[_FileCache | None] = ContextVar("once", default=None)


@contextlib.contextmanager
def cache_file_reads() -> Iterator[None]:
    """Read each file only once within this block, and reuse its content.

    A site may replace a certificate while a node reads it. Several TLS contexts, and the checks of their
    certificates, must all be made from the same bytes.
    """
    token = _file_cache.set(_FileCache())
    try:
        yield
    finally:
        _file_cache.reset(token)


def list_folder(folder: Path) -> list[Path]:
    """Return the files of a folder, sorted by name.

    Raises:
        OSError: The folder cannot be read.
    """
    kept = _file_cache.get()
    if kept is not None and folder in kept.listings:
        return kept.listings[folder]
    found = sorted(entry for entry in folder.iterdir() if entry.is_file())
    if kept is not None:
        kept.listings[folder] = found
    return found


def read_regular_file(path: Path, most: int = -1) -> bytes:
    """Read a regular file, or its first `most` bytes.

    Pipes and devices are refused, because reading one could block for ever.

    Raises:
        OSError: The file cannot be read, or is not a regular file.
    """
    kept = _file_cache.get()
    if kept is None:
        return _open_and_read(path, most)
    if path not in kept.contents:
        kept.contents[path] = _open_and_read(path, -1)
    return kept.contents[path][: most if most >= 0 else None]


def _open_and_read(path: Path, most: int) -> bytes:
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
    """Read the first line of a password file, without a UTF-8 byte order mark.

    Raises:
        ConfigError: The file cannot be read, is empty, is UTF-16, or its first line is too long.
    """
    try:
        content = read_regular_file(path)
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
    """Read the password of a PKCS#12 file, which must be UTF-8.

    PKCS#12 encodes its password as UTF-16 (RFC 7292 B.1), so the characters must be known.

    Raises:
        ConfigError: As for `read_password`, or the password is not UTF-8.
    """
    password = read_password(path)
    try:
        password.decode()
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: is not UTF-8; save the password file as UTF-8"]) from None
    return password


def path_with_ending(prefix: Path, ending: str) -> Path:
    """Return `PREFIX.ending`.

    Raises:
        IngestError: The prefix names a folder instead of a file.
    """
    if prefix.name in ("", ".."):
        raise IngestError(f"{prefix}: names a folder, no file in it; write a prefix such as pki/node")
    return prefix.with_name(f"{prefix.name}.{ending}")


def refuse_existing(*paths: Path, force: bool, remedy: str) -> None:
    """Check that no file would be replaced without `force`. Call it before the first file is written.

    Raises:
        IngestError: A file exists and `force` is not set.
    """
    for path in paths:
        # Unlike Path.exists it never raises. Writing the file reports the error.
        if os.path.exists(path) and not force:
            raise IngestError(f"{path} exists; {remedy}, or --force to replace it")


def write_file(path: Path, content: bytes, mode: int, *, force: bool) -> None:
    """Write a file and its folder atomically. The permissions hold from the first byte on.

    A replaced file keeps its owner and group if this user may set them, so that its readers keep access.

    Raises:
        IngestError: The file exists and `force` is not set, or the folder cannot be written.
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
                os.fchmod(descriptor, mode)  # The umask must not narrow or widen it.
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            if force:
                new.replace(path)
            else:
                path.hardlink_to(new)  # Unlike a rename, a link never replaces a file.
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        raise IngestError(f"{path}: {error.strerror}; name a path that can be written") from None


def _keep_owner(descriptor: int, path: Path) -> None:
    try:
        there = path.stat()
    except OSError:
        return
    for owner in (there.st_uid, -1):  # An ordinary user may set the group, but not the owner.
        with contextlib.suppress(OSError):
            os.fchown(descriptor, owner, there.st_gid)
            return
