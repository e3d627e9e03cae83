"""A worker's place in its group: a name that no other worker has, whatever host it runs on.

Whoever takes the place of a worker that died on the same host gets the same name, and with it what that
worker had in hand.
"""

import contextlib
import errno
import hashlib
import itertools
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ingest.errors import BootError
from ingest.filesystem.locks import kernel_token, lock

_FULL_OR_FAILING: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENOLCK})


@contextlib.contextmanager
def slot(run_dir: Path, kind: str) -> Iterator[str]:
    """Take the first free place of a kind; yields its name: host, kind, number and what tells hosts apart.

    Hosts may have one name: copies of a virtual machine, containers. So the name ends with a hash of the
    running kernel and of the folder that the locks lie in.

    Args:
        run_dir: Where the locks lie; they end with the process, however it ends. Where it takes no file, the
            place has a random number: what its worker leaves is taken over by others, a little later.
        kind: What takes places, such as "persist".

    Raises:
        BootError: The folder cannot be used.
    """
    held: int | None = None
    try:
        number, held = _take(run_dir, kind)
    except OSError as error:
        if error.errno not in _FULL_OR_FAILING:
            raise BootError(f"{run_dir} cannot be used: {error.strerror}; see [node] data_dir") from error
        number = secrets.token_hex(6)
    try:
        yield f"{socket.gethostname()}-{kind}-{number}-{_where(run_dir)}"
    finally:
        if held is not None:
            os.close(held)


def _take(run_dir: Path, kind: str) -> tuple[str, int]:
    run_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
    for number in itertools.count():
        fd = os.open(run_dir / f"{kind}.{number}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o640)
        try:
            if lock(fd):
                return str(number), fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
    raise AssertionError("unreachable")  # pragma: no cover - itertools.count has no end


def _where(run_dir: Path) -> str:
    """Eight hexadecimal digits for this running kernel and this folder, which only its processes share."""
    with contextlib.suppress(OSError):
        facts = run_dir.stat()
        place = f"{kernel_token()} {facts.st_dev} {facts.st_ino}"
        return hashlib.sha256(place.encode()).hexdigest()[:8]
    return secrets.token_hex(4)
