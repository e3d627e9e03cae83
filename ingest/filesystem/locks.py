"""Locks on regular files, and names that no other process on any host has.

INVARIANT 3: a held lock proves a live owner. A lock is an open file description lock (fcntl(2),
F_OFD_SETLK) on a whole regular file. NFS and SMB carry such locks to the server, so they hold between hosts.
flock(2) on a folder does not: an NFS client keeps it local, and two hosts can hold it at once. Locks of
F_SETLK would end when the process closes any descriptor of the file. These locks end with their own
descriptor.

A mount may still keep locks to one host (mount options `nolock` and `local_lock`). No deletion and no
overwrite therefore depends on a lock alone. Names are unique (`Owner`), and young files stay.
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


def try_lock(fd: int, *, shared: bool = False) -> bool:
    """Lock an open regular file without waiting; return False if another descriptor has the lock.

    Args:
        fd: Descriptor, open for writing, or for reading if `shared`. The lock ends when it is closed.
        shared: Whether other descriptors may have a shared lock too.

    Raises:
        OSError: The file system has no locks (ENOLCK, EOPNOTSUPP), or `fd` is open in the wrong mode.
    """
    kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        # fcntl(2): POSIX.1 allows either error for a conflicting lock.
        if error.errno in {errno.EAGAIN, errno.EACCES}:
            return False
        raise
    return True


# INVARIANT 14: a spool reference never names a second instance. Kernel, namespace, process id, start and
# random bits together name one process for ever.
@dataclass(frozen=True, slots=True)
class Owner:
    """A process, under a name that no other process on any host has or had.

    Attributes:
        kernel: Twelve hexadecimal digits that identify a running kernel.
        namespace: Namespace of process ids, of the host or of a container.
        pid: Process id in that namespace.
        started: Start of the process, in ticks since the start of the kernel. Process ids are reused.
        chance: 48 random bits, as twelve hexadecimal digits.
    """

    kernel: str
    namespace: int
    pid: int
    started: int
    chance: str

    @classmethod
    def current(cls) -> Self:
        """Name the calling process, with another name at each call."""
        pid = os.getpid()
        return cls(read_kernel_token(), _read_namespace(), pid, _read_start(pid) or 0, secrets.token_hex(6))

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Return the owner with this name; None for any other text."""
        found = _NAME.fullmatch(name)
        if found is None:
            return None
        namespace, pid, started = (int(found[key], 16) for key in ("namespace", "pid", "started"))
        return cls(found["kernel"], namespace, pid, started, found["chance"])

    def __str__(self) -> str:
        return f"{self.kernel}-{self.namespace:x}-{self.pid:x}-{self.started:x}-{self.chance}"

    @property
    def is_of_this_kernel(self) -> bool:
        """Whether the process runs, or ran, on this kernel. Locks hold between all processes of a kernel."""
        return self.kernel == read_kernel_token()

    @property
    def is_dead(self) -> bool:
        """Whether the process has certainly ended; False if we cannot see it."""
        return self.is_visible and not _is_running(self.pid, self.started)

    @property
    def is_visible(self) -> bool:
        """Whether we can see the process while it runs."""
        return self.is_of_this_kernel and self.namespace == _read_namespace()


@functools.cache
def read_kernel_token() -> str:
    """Return twelve hexadecimal digits for this running kernel. They change with each start of the machine.

    Host name and /etc/machine-id would not suffice, because copies of a virtual machine share both.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = f"{os.uname().nodename} {uuid.getnode()}"
    return hashlib.sha256(boot.encode()).hexdigest()[:12]


def _read_namespace() -> int:
    with contextlib.suppress(OSError):
        return os.stat("/proc/self/ns/pid").st_ino
    return 0


def _read_start(pid: int) -> int | None:
    """Return the start time of a process; None if it does not exist or is a zombie.

    Raises:
        OSError: procfs cannot be read.
    """
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        # proc(5): the name in parentheses may contain anything. Field 3 is the state, field 22 the start.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    return None


def _is_running(pid: int, started: int) -> bool:
    try:
        found = _read_start(pid)
        if found is not None:
            return found == started
        os.kill(pid, 0)  # with the mount option hidepid, procfs hides processes of other users
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return not Path(f"/proc/{pid}").exists()  # a visible one is a zombie
