"""The client of the Redis that carries references.

INVARIANT 2: Redis is a hint. The sweep publishes again everything that Redis loses.

INVARIANT 12: Redis is input. Any client of that Redis may write anything to our keys. Replies are therefore
bounded, and keys with foreign contents are removed. Nothing is executed, opened or removed because of a value
in Redis alone.
"""

import contextlib
import hashlib
import os
import socket
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import redis
import structlog
from redis._parsers.hiredis import NOT_ENOUGH_DATA, _HiredisParser
from redis.backoff import NoBackoff
from redis.retry import Retry

from ingest.config.model import Config
from ingest.network.dialer import dial_host

SOCKET_PATH_BYTES: Final = 107
"""The longest path of a Unix socket, without the final NUL; see unix(7)."""

REPLY_BYTES_MAX: Final = 16 << 20
"""The longest reply that a client reads. Our longest, one page of a stream, has some hundred KiB."""

VALUE_BYTES_MAX: Final = 1024
"""Upper bound for our strings. The longest one, the name of an owner, is shorter."""

CONNECT_SECONDS: Final = 10.0
"""Deadline for a connection if its client sets none."""

log = structlog.get_logger()


class ReplyTooLongError(redis.ConnectionError):
    """Redis sent more bytes than any command of ours can return; the connection is closed."""


class _BoundedReader:
    """A reader of hiredis that counts the bytes of an incomplete reply."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self._fed_bytes = 0
        self.has_data = reader.has_data

    def feed(self, data: bytearray, start: int, count: int) -> None:
        self._fed_bytes += count
        if self._fed_bytes > REPLY_BYTES_MAX:
            raise ReplyTooLongError(f"a reply has more than {REPLY_BYTES_MAX} bytes")
        self._reader.feed(data, start, count)

    def gets(self, *how: bool) -> Any:
        reply = self._reader.gets(*how)
        if reply is not NOT_ENOUGH_DATA:
            self._fed_bytes = 0
        return reply


class BoundedParser(_HiredisParser):
    """The hiredis parser of redis-py, with a limit for the size of a reply.

    Without the limit, one foreign value could fill the memory of a process (INVARIANT 4, INVARIANT 12).
    """

    def on_connect(self, connection: Any, **how: Any) -> None:
        """Wrap the reader of a new connection."""
        super().on_connect(connection, **how)  # type: ignore[no-untyped-call]
        self._reader = _BoundedReader(self._reader)  # type: ignore[assignment]


def remove_foreign_keys(client: redis.Redis, kinds: Mapping[str, str], error: Exception) -> list[str]:
    """Remove keys of ours that hold foreign data, after a command has failed because of them.

    The sweep and the ledger restore our own data.

    Args:
        client: The client whose command failed.
        kinds: Our keys with their types, as the command TYPE names them.
        error: The error of the command. If it does not concern the contents of a key, nothing is removed.

    Returns:
        The removed keys. The list is also empty if Redis cannot be reached any more.
    """
    # Redis reports both faults of a key only as text.
    too_long = isinstance(error, ReplyTooLongError)
    exhausted = "exhausted the last possible ID" in str(error)
    if not (too_long or exhausted or "WRONGTYPE" in str(error)):
        return []
    removed = []
    with contextlib.suppress(redis.RedisError):
        for key, kind in kinds.items():
            found = cast("bytes", client.type(key)).decode("ascii", "replace")
            too_large = too_long and (found != "string" or client.strlen(key) > VALUE_BYTES_MAX)
            unusable = (exhausted and kind == "stream") or too_large
            if found != "none" and (found != kind or unusable):
                client.unlink(key)
                removed.append(key)
                cause = f"a {found}, not a {kind}" if found != kind else str(error)
                log.error(
                    "queue_key_removed", key=key, cause=cause, remedy="see who else writes to this Redis"
                )
    return removed


def list_socket_paths(data_dir: Path) -> list[Path]:
    """List the paths where the embedded server of this data folder may listen, the best one first.

    The first choice is the data folder itself. Its path may be too long for a socket, or its file system may
    have no Unix sockets (SMB, vfat). Then a private folder below a runtime folder is used, such as the one
    that systemd makes for the service, or below the temporary folder. The temporary folder comes last,
    because a service may have a private one that commands do not see. The result does not depend on
    environment variables: a service and a command have different ones.
    """
    name, user = hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:16], os.geteuid()
    own = [Path("/run/dicom-ingest"), Path(f"/run/user/{user}"), Path("/run")]
    runtime = [*own, Path(tempfile.gettempdir()), Path("/tmp")]  # noqa: S108 - `_private`
    below = Path(f"dicom-ingest-{user}") / name / "valkey.sock"
    usable = [folder for folder in runtime if os.access(folder, os.W_OK | os.X_OK)]
    paths = [data_dir.resolve() / "queue" / "valkey.sock", *(folder / below for folder in usable)]
    return [path for path in dict.fromkeys(paths) if _can_be_socket(path)]


def find_socket_path(data_dir: Path) -> Path:
    """Return the path where the embedded server listens; every role and command gets the same one.

    If the server does not run, return the path where it will probably listen. The server may have to choose
    another one, so a client calls this function again for each connection.
    """
    paths = list_socket_paths(data_dir)
    return next((path for path in paths if _is_socket(path)), paths[0])


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False


def _can_be_socket(path: Path) -> bool:
    # RQ parses the reply to CLIENT INFO. Spaces separate its fields, and the path of the socket is one of
    # them.
    return len(os.fsencode(path)) <= SOCKET_PATH_BYTES and not any(map(str.isspace, str(path)))


def connect(config: Config, *, timeout: float = 10.0) -> redis.Redis:
    """Return a client that connects with its first command and waits `timeout` seconds for each reply.

    The client never repeats a command by itself. Its callers do that, because they must notice a Redis that
    was emptied in between.
    """
    # INVARIANT 7: every wait has a deadline
    if config.queue.url:
        return connect_to_url(config.queue.url, timeout=timeout)
    return redis.Redis(
        connection_pool=redis.ConnectionPool(
            connection_class=_EmbeddedConnection,
            data_dir=config.data_dir,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
            health_check_interval=0,
            parser_class=BoundedParser,
        )
    )


def connect_to_url(address: str, *, timeout: float) -> redis.Redis:
    """Return a client as `connect` does, for the URL of a Redis.

    Raises:
        ValueError: The URL is invalid.
        TypeError: One of its parameters is unknown.
    """
    kinds = {"redis": _Connection, "rediss": _TLSConnection}
    kind = kinds.get(address.partition("://")[0].lower())
    return redis.Redis.from_url(
        address,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
        parser_class=BoundedParser,
        **({"connection_class": kind} if kind else {}),
    )


class _EmbeddedConnection(redis.connection.UnixDomainSocketConnection):
    """A connection to the embedded server, at the path where it listens at that moment."""

    def __init__(self, *, data_dir: Path, **how: Any) -> None:
        super().__init__(path=str(find_socket_path(data_dir)), **how)  # type: ignore[no-untyped-call]
        self._data_dir = data_dir

    def _connect(self) -> socket.socket:
        self.path = str(find_socket_path(self._data_dir))
        return cast("socket.socket", super()._connect())  # type: ignore[no-untyped-call]


class _Connection(redis.connection.Connection):
    """A TCP connection to Redis. Its deadline includes the lookup of the name, unlike redis-py's."""

    def _connect(self) -> socket.socket:
        connected = dial_host(self.host, self.port, self.socket_connect_timeout or CONNECT_SECONDS)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connected.settimeout(self.socket_timeout)
        return connected


class _TLSConnection(redis.connection.SSLConnection, _Connection):
    """TLS over such a connection: `SSLConnection._connect` wraps the socket of the next base class."""
