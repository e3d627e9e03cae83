"""Small private files of the console: read whole, and replaced whole."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ingest.errors import IngestError


def find_version(path: Path) -> tuple[int, int, int] | None:
    """Return what differs after each change of a file: its time, inode and size; None if there is no file.

    Raises:
        IngestError: The file cannot be read.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise IngestError(f"{path}: cannot be read: {error.strerror}; see to the disk") from None
    return status.st_mtime_ns, status.st_ino, status.st_size


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file; empty if the file does not exist.

    Raises:
        IngestError: The file cannot be read, or holds no JSON object.
    """
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise IngestError(
            f"{path}: cannot be read: {error.strerror}; see to its owner and the disk"
        ) from None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise IngestError(f"{path}: is damaged; restore it, or remove it and add its entries again")
    return found


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace a file, which only this user may read.

    Raises:
        OSError: The folder cannot be written.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(fd)
    new.replace(path)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Exclude other commands that change files of this folder.

    Raises:
        IngestError: The folder cannot be used.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise IngestError(f"{folder}: {error.strerror}; run the command as the user of the node") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
