"""Checks of the addresses that a node listens on: its listeners and its console.

Each address is bound for a moment, as a start would do. The socket never listens, and it has SO_REUSEADDR. A
node that starts at the same moment can therefore bind the same address.

The ports of a node that runs with this data folder are in use, too, and are no fault. Its lock in the run
folder names the process, and procfs shows which process holds the socket of a port. If procfs hides that, as
it does for another user's processes, the user that owns the socket decides.
"""

import errno
import os
import pwd
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final

from ingest.config.faults import Fault, FaultKind
from ingest.config.model import Config, ConsoleSettings, ListenerSettings
from ingest.errors import IngestError
from ingest.filesystem import node_lock
from ingest.network.resolver import RESOLVER

LOOKUP_SECONDS: Final = 5.0
"""Deadline of the lookup of a host name."""

CAPABILITY: Final = "CAP_NET_BIND_SERVICE"

_PORT_START: Final = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
_TCP_TABLES: Final = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_STATE_LISTEN: Final = "0A"
"""TCP_LISTEN in the column `st` of /proc/net/tcp."""


@dataclass(frozen=True, slots=True)
class ListeningSocket:
    """A row of /proc/net/tcp: a socket that listens.

    Attributes:
        address: The address that it is bound to.
        inode: Number of the socket; its links in /proc/PID/fd have it.
        uid: User that owns the socket.
    """

    address: IPv4Address | IPv6Address
    inode: str
    uid: int


def check_listening(config: Config, *, user: str = "") -> Iterator[Fault]:
    """Yield the listeners and the console that could not listen on their address.

    Args:
        config: The configuration.
        user: Name of a user whose rights this process has taken; empty for the user that started it. A
            service manager may give that user a capability that this process does not have.
    """
    if not config.listeners:
        yield _describe_missing_listener(config)
    for index, listener in enumerate(config.listeners):
        yield from _check_address(config, f"listeners[{index}]", listener, user)
    if config.console is not None:
        yield from _check_address(config, "console", config.console, user)


def _describe_missing_listener(config: Config) -> Fault:
    if config.queue.url:
        cause = "there is no listener, so `ingest serve` does not start; `ingest work` does"
        return Fault("listeners", cause, "add a [[listeners]] where instances arrive", kind=FaultKind.WARNING)
    return Fault("listeners", "there is no listener, so the node receives nothing", "add a [[listeners]]")


def _check_address(
    config: Config, key: str, settings: ListenerSettings | ConsoleSettings, user: str
) -> Iterator[Fault]:
    host, port = settings.host, settings.port
    try:
        found = RESOLVER.resolve(host, port, LOOKUP_SECONDS)
    except OSError as error:
        cause = f"the name {host} has no address: {error.strerror or error}"
        yield Fault(f"{key}.host", cause, "correct the name, or write an address of this machine")
        return
    if isinstance(settings, ConsoleSettings) and ":" not in host:
        # The console listens on IPv4, unless its host is an IPv6 address.
        found = [each for each in found if each[0] == socket.AF_INET] or found
    family, kind, protocol, _, address = found[0]
    try:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if not _is_held_by_node(config, address[0], port):
            yield _explain_failure(key, settings, address[0], error, user)


def _explain_failure(
    key: str, settings: ListenerSettings | ConsoleSettings, address: str, error: OSError, user: str
) -> Fault:
    host, port = settings.host, settings.port
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        cause = f"{shown} is in use by {_describe_holder(address, port)}"
        return Fault(f"{key}.port", cause, "stop that program, or choose another port")
    if error.errno == errno.EADDRNOTAVAIL:
        remedy = "write an address that `ip address` lists, or 0.0.0.0 for all of them"
        return Fault(f"{key}.host", f"{host} is no address of this machine", remedy)
    start = _read_unprivileged_start()
    if error.errno in {errno.EACCES, errno.EPERM} and port < start:
        cause = f"port {port} is below {start}, and {user or 'this user'} does not have {CAPABILITY}"
        remedy = f"give the service AmbientCapabilities={CAPABILITY} (`systemctl edit dicom-ingest`), "
        kind = FaultKind.WARNING if user else FaultKind.FAULT
        return Fault(f"{key}.port", cause, f"{remedy}or choose a port from {start} on", kind=kind)
    return Fault(f"{key}.port", f"{shown} cannot be bound: {error.strerror}", "choose another host or port")


def _read_unprivileged_start() -> int:
    """Return the first port that needs no capability (ip_unprivileged_port_start in tcp(7))."""
    try:
        return int(_PORT_START.read_text())
    except (OSError, ValueError):
        return 1024


def _is_held_by_node(config: Config, host: str, port: int) -> bool:
    """Return whether the port belongs to the node, or to the workers, that run on this data folder."""
    try:
        pid = node_lock.find_node_pid(config.run_dir)
    except IngestError:
        pid = 0
    # Workers have no process id in the run folder. `ingest work console` is one of them.
    has_workers = node_lock.are_workers_running(config.run_dir)
    if not pid and not has_workers:
        return False
    for each in _find_sockets(host, port):
        holders = _find_holders(each.inode)
        if pid and any(pid in {holder, _find_parent(holder)} for holder in holders):
            return True
        # Without holders they are hidden from this user, or in another process namespace.
        if (has_workers or not holders) and each.uid == _find_owner(config.run_dir):
            return True
    return False


def _describe_holder(host: str, port: int) -> str:
    for each in _find_sockets(host, port):
        for pid in _find_holders(each.inode):
            try:
                name = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
            except OSError:
                continue
            return f"process {pid} ({name})"
        return f"a process of the user {find_user_name(each.uid)}"
    return "another program"


def _find_sockets(host: str, port: int) -> Iterator[ListeningSocket]:
    """Yield the sockets that listen on this port at the same address, or at all of them."""
    wanted = _normalize(ip_address(host.partition("%")[0]))
    for table in _TCP_TABLES:
        try:
            rows = table.read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            # Columns of proc(5): sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode
            columns = row.split()
            address, _, number = columns[1].rpartition(":")
            if columns[3] == _STATE_LISTEN and int(number, 16) == port:
                found = ListeningSocket(_parse_address(address), columns[9], int(columns[7]))
                if found.address == wanted or found.address.is_unspecified or wanted.is_unspecified:
                    yield found


def _parse_address(text: str) -> IPv4Address | IPv6Address:
    """Parse an address of /proc/net/tcp: 32-bit words in hexadecimal, in the byte order of this machine."""
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    return _normalize(ip_address(struct.pack(f"={len(words)}I", *words)))


def _normalize(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    return getattr(address, "ipv4_mapped", None) or address


def _find_holders(inode: str) -> list[int]:
    """Return the processes that hold a socket, as far as this user may see, the oldest number first."""
    wanted, holders = f"socket:[{inode}]", []
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        folder = f"/proc/{pid}/fd"
        try:
            if any(_read_link(f"{folder}/{fd}") == wanted for fd in os.listdir(folder)):
                holders.append(pid)
        except OSError:
            continue  # it has ended, or belongs to another user
    return holders


def _read_link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _find_parent(pid: int) -> int:
    """Return the parent of a process; 0 if it has ended."""
    try:
        # proc(5): pid, comm in parentheses, state, ppid
        return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def _find_owner(path: Path) -> int:
    try:
        return path.stat().st_uid
    except OSError:
        return -1


def find_user_name(uid: int) -> str:
    """Return the name of a user, or the number if there is no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
