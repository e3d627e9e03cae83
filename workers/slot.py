"""A worker's place on its host: a small number, the same again for whoever takes the place of a dead one."""

import contextlib
import fcntl
import itertools
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from ingest.errors import BootError


@contextlib.contextmanager
def slot(run_dir: Path, kind: str) -> Iterator[str]:
    """Take the first free place of a kind; yields its name: host, kind and number.

    Args:
        run_dir: Where the locks lie; they end with the process, however it ends.
        kind: What takes places, such as "persist".

    Raises:
        BootError: The folder cannot be used.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
        number, lock = _take(run_dir, kind)
    except OSError as error:
        raise BootError(f"{run_dir} cannot be used: {error.strerror}; see [node] data_dir") from error
    try:
        yield f"{socket.gethostname()}-{kind}-{number}"
    finally:
        os.close(lock)


def _take(run_dir: Path, kind: str) -> tuple[int, int]:
    for number in itertools.count():
        lock = os.open(run_dir / f"{kind}.{number}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            return number, lock
    raise AssertionError("unreachable")  # pragma: no cover - itertools.count has no end
