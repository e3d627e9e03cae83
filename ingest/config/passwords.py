"""Passwords of Redis and of the ledger's database, read from files.

A URL with a password would be in the configuration, in the environment of a container and in its description.
A file can be a secret of Docker, Kubernetes or systemd.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

from ingest.config.faults import Fault
from ingest.config.model import Config
from ingest.config.source import is_regular_file

_PASSWORD_MAX: Final = 1024
_REMEDY: Final = "write the password into its first line, and let this user read the file"


def check_password_files(config: Config) -> Iterator[Fault]:
    """Yield a fault for each `password_file` of `[queue]` and `[ledger]` that cannot be used."""
    for section, url, path, needs_user in (
        ("queue", config.queue.url, config.queue.password_file, False),
        ("ledger", config.ledger.url, config.ledger.password_file, True),
    ):
        if path is None:
            continue
        key = f"{section}.password_file"
        try:
            parts = urlsplit(url)
        except ValueError:
            continue  # the rules of the URL report it
        if not url or parts.scheme.startswith("sqlite"):
            yield Fault(key, f"{section}.url names no server that asks for a password", "remove it")
        elif parts.password is not None:
            yield Fault(key, f"{section}.url has a password too", "remove one of the two")
        elif needs_user and not parts.username:
            yield Fault(key, f"{section}.url names no user", "write postgresql+psycopg://USER@HOST/DATABASE")
        elif cause := _find_fault(path):
            yield Fault(key, cause, _REMEDY)


def insert_passwords(config: Config) -> Config:
    """Return the configuration with the passwords in the URLs. `check_password_files` found no fault.

    Raises:
        OSError: A file was removed meanwhile.
        ValueError: A file was changed meanwhile, and has no password.
    """
    queue, ledger = config.queue, config.ledger
    if queue.password_file is not None:
        url = _insert_password(queue.url, _read_password(queue.password_file))
        queue = queue.model_copy(update={"url": url})
    if ledger.password_file is not None:
        url = _insert_password(ledger.url, _read_password(ledger.password_file))
        ledger = ledger.model_copy(update={"url": url})
    return config.model_copy(update={"queue": queue, "ledger": ledger})


def _insert_password(url: str, password: str) -> str:
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    user, _, host = authority.rpartition("@")
    return f"{scheme}://{user}:{quote(password, safe='')}@{host}{slash}{path}"


def remove_password(url: str) -> str:
    """Return a URL as the file has it, without the password that `insert_passwords` has put into it."""
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    user, at, host = authority.rpartition("@")
    user = user.partition(":")[0]
    return f"{scheme}://{user}{at if user else ''}{host}{slash}{path}"


def _find_fault(path: Path) -> str:
    try:
        _read_password(path)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    except ValueError as error:
        return f"{path} {error}"
    return ""


def _read_password(path: Path) -> str:
    """Read the first line of a file.

    Raises:
        OSError: The file cannot be read.
        ValueError: Its first line is no password.
    """
    # To open a pipe could block for ever.
    if not is_regular_file(path):
        raise ValueError("is not a regular file")
    line = path.read_bytes().partition(b"\n")[0].removesuffix(b"\r")
    if not 0 < len(line) <= _PASSWORD_MAX:
        raise ValueError(
            f"has a first line of {len(line)} bytes, which is no password of 1 to {_PASSWORD_MAX} bytes"
        )
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
