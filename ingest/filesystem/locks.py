"""Locks on regular files, and names that no other process on any host has.

A lock is an open file description lock (fcntl(2), F_OFD_SETLK) on a whole regular file. NFS and SMB carry
such locks to the server, so that they hold between hosts. flock(2) on a folder does not: an NFS client keeps
it to itself, and two hosts then hold "the" lock. Unlike the locks of F_SETLK, these end with the descriptor
that took them, and not when the process closes another descriptor of the same file.

A lock can still be kept to one host (the mount options `nolock` and `local_lock`). Whatever is deleted or
overwritten therefore never depends on a lock alone: names are unique (`Owner`), and what is young stays.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import re
import secrets
import struct
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

# fcntl(2), struct flock: l_type, l_whence, l_start, l_len, l_pid; l_pid must be 0.
_FLOCK: Final = struct.Struct("hhqqi4x")
_NAME: Final = re.compile(
    r"(?P<kernel>[0-9a-f]{12})-(?P<namespace>[0-9a-f]+)-(?P<pid>[0-9a-f]+)-(?P<started>[0-9a-f]+)"
    r"-(?P<chance>[0-9a-f]{12})"
)


def lock(fd: int, *, shared: bool = False) -> bool:
    """Lock an open regular file, without waiting; False while another descriptor holds it.

    Args:
        fd: Open for writing, or for reading if `shared`; the lock ends when it is closed.
        shared: Whether others may hold a shared lock, too.

    Raises:
        OSError: The file system has no locks (ENOLCK, EOPNOTSUPP), or `fd` is not open as it has to be.
    """
    kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        # fcntl(2): POSIX.1 allows either of them for a lock that is held.
        if error.errno in {errno.EAGAIN, errno.EACCES}:
            return False
        raise
    return True


@dataclass(frozen=True, slots=True)
class Owner:
    """One process, under a name that no other process on any host has or had.

    Attributes:
        kernel: Twelve hexadecimal digits for a running kernel.
        namespace: Its namespace of process ids there: of the host, or of a container.
        pid: The process there.
        started: When it began, in ticks since that kernel's start; a process id is used again later.
        chance: 48 random bits, as twelve hexadecimal digits.
    """

    kernel: str
    namespace: int
    pid: int
    started: int
    chance: str

    @classmethod
    def me(cls) -> Self:
        """The calling process; another name at each call."""
        pid = os.getpid()
        return cls(kernel_token(), _namespace(), pid, _started(pid) or 0, secrets.token_hex(6))

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """The owner with this name; None for any other text."""
        found = _NAME.fullmatch(name)
        if found is None:
            return None
        namespace, pid, started = (int(found[key], 16) for key in ("namespace", "pid", "started"))
        return cls(found["kernel"], namespace, pid, started, found["chance"])

    def __str__(self) -> str:
        return f"{self.kernel}-{self.namespace:x}-{self.pid:x}-{self.started:x}-{self.chance}"

    @property
    def is_of_this_kernel(self) -> bool:
        """Whether the process runs, or ran, on this kernel, whose locks hold for all of its processes."""
        return self.kernel == kernel_token()

    @property
    def is_dead(self) -> bool:
        """Whether the process has certainly ended; False where we cannot see such a process."""
        return self.is_visible and not _runs(self.pid, self.started)

    @property
    def is_visible(self) -> bool:
        """Whether this process could see that one, if it runs."""
        return self.is_of_this_kernel and self.namespace == _namespace()


@functools.cache
def kernel_token() -> str:
    """Twelve hexadecimal digits for this running kernel; others after a restart of the machine.

    Not made from the host's name or /etc/machine-id alone: copies of a virtual machine share both.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = f"{os.uname().nodename} {uuid.getnode()}"
    return hashlib.sha256(boot.encode()).hexdigest()[:12]


def _namespace() -> int:
    with contextlib.suppress(OSError):
        return os.stat("/proc/self/ns/pid").st_ino
    return 0


def _started(pid: int) -> int | None:
    """When a process began; None where there is none, or only its remains.

    Raises:
        OSError: It cannot be told.
    """
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        # proc(5): the name, in parentheses, may hold anything; field 3 is the state and field 22 the start.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    return None


def _runs(pid: int, started: int) -> bool:
    try:
        found = _started(pid)
        if found is not None:
            return found == started
        os.kill(pid, 0)  # procfs hides other users' processes where it is mounted with hidepid
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return not Path(f"/proc/{pid}").exists()  # hidden; what procfs shows without a start is a zombie
