"""A worker slot: a name in the consumer group that no other worker has, on any host.

If a worker dies, its successor on the same host takes the slot. The successor has the same name, and
therefore also the claimed entries.
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
from ingest.filesystem.locks import read_kernel_token, try_lock

_FULL_OR_FAILING: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENOLCK})


@contextlib.contextmanager
def claim_worker_slot(run_dir: Path, kind: str) -> Iterator[str]:
    """Claim the first free slot of a kind, and yield its name.

    The name consists of host, kind, number, and a token of host and folder.

    Host names alone are not unique, because of copied virtual machines and containers. The token is a hash of
    the running kernel and of the folder with the locks.

    Args:
        run_dir: Folder of the locks, which end with the process. If the folder takes no file, the slot gets a
            random number. Other workers then take over the entries of a dead worker, a little later.
        kind: Kind of the worker, such as "persist".

    Raises:
        BootError: The folder cannot be used.
    """
    fd: int | None = None
    try:
        number, fd = _lock_free_slot(run_dir, kind)
    except OSError as error:
        if error.errno not in _FULL_OR_FAILING:
            raise BootError(f"{run_dir} cannot be used: {error.strerror}; see [node] data_dir") from error
        number = secrets.token_hex(6)
    try:
        yield f"{socket.gethostname()}-{kind}-{number}-{_compute_token(run_dir)}"
    finally:
        if fd is not None:
            os.close(fd)


def _lock_free_slot(run_dir: Path, kind: str) -> tuple[str, int]:
    # INVARIANT 3: a held lock proves a live owner.
    run_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
    for number in itertools.count():
        fd = os.open(run_dir / f"{kind}.{number}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o640)
        try:
            if try_lock(fd):
                return str(number), fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
    raise AssertionError("unreachable")  # pragma: no cover - itertools.count has no end


def _compute_token(run_dir: Path) -> str:
    """Compute eight hexadecimal digits that only processes of this kernel with this folder share."""
    with contextlib.suppress(OSError):
        status = run_dir.stat()
        identity = f"{read_kernel_token()} {status.st_dev} {status.st_ino}"
        return hashlib.sha256(identity.encode()).hexdigest()[:8]
    return secrets.token_hex(4)
