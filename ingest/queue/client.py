"""The Redis that carries references: how to reach it and what its keys are called.

Redis is a hint, never the truth: whatever is lost here is put back from spool and ledger. Redis is input as
well: a client that may write to it may write anything to our keys. So answers are bounded, keys that hold
what is not ours are removed and made again, and nothing is executed, opened or removed by what stands there
alone. Our keys start with `ingest:` and RQ's with `rq:`, so that a site may share its Redis, but not two
nodes one database of it.
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

GROUP: Final = "persist"
"""The consumer group of the persist workers, on every stream."""

SPOOLS_KEY: Final = "ingest:spools"
"""Set of the ids of all spools that ever handed something off."""

SOCKET_PATH_BYTES: Final = 107
"""The longest path of a Unix socket (unix(7), without its final NUL)."""

CHUNK: Final = 1 << 20
"""Bytes of one list element where the `redis` carrier moves a file."""


ANSWER_BYTES_MAX: Final = 16 << 20
"""The longest answer to one command that is taken; the longest of ours, a page of a stream, has some hundred
KiB."""

VALUE_BYTES_MAX: Final = 1024
"""The longest of our strings, an owner's name, has less."""

CONNECT_SECONDS: Final = 10.0
"""Where a client has no deadline of its own."""

log = structlog.get_logger()


class AnswerTooLongError(redis.ConnectionError):
    """Redis began an answer longer than any that we could have asked for; the connection is closed."""


class _BoundedReader:
    """hiredis's reader, which counts the bytes of an answer that is not complete."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self._taken = 0
        self.has_data = reader.has_data

    def feed(self, data: bytearray, start: int, count: int) -> None:
        self._taken += count
        if self._taken > ANSWER_BYTES_MAX:
            raise AnswerTooLongError(f"an answer has more than {ANSWER_BYTES_MAX} bytes")
        self._reader.feed(data, start, count)

    def gets(self, *how: bool) -> Any:
        answer = self._reader.gets(*how)
        if answer is not NOT_ENOUGH_DATA:
            self._taken = 0
        return answer


class BoundedParser(_HiredisParser):
    """redis-py's parser on hiredis, which reads no answer that would fill the memory."""

    def on_connect(self, connection: Any, **how: Any) -> None:
        """Begin with a connection."""
        super().on_connect(connection, **how)  # type: ignore[no-untyped-call]
        self._reader = _BoundedReader(self._reader)  # type: ignore[assignment]


def mend_keys(client: redis.Redis, kinds: Mapping[str, str], error: Exception) -> list[str]:
    """Remove those of our keys that hold what is not ours, after a command has failed.

    What they held of ours is put back from spool and ledger.

    Args:
        client: Of Redis.
        kinds: Our keys, and the type of each as TYPE names it.
        error: What the command failed with. Where it says nothing of a key, nothing is done.

    Returns:
        What was removed. Empty, too, where Redis went away meanwhile.
    """
    too_long = isinstance(error, AnswerTooLongError)
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


def stream_key(spool: str) -> str:
    """The stream of references of the spool with this id."""
    return f"ingest:stream:{spool}"


def data_key(spool: str, name: str) -> str:
    """The list of chunks of one Part 10 file, by the name of its place (`redis` carrier)."""
    return f"ingest:data:{spool}:{name}"


def witness_key(spool: str, listener: str) -> str:
    """A key that is gone when Redis was emptied (see `ingest.queue.epoch`)."""
    return f"ingest:witness:{spool}:{listener}"


def persisted_key(spool: str) -> str:
    """The list of places that the spool may let go of, since store and ledger have them (`redis` carrier)."""
    return f"ingest:persisted:{spool}"


def socket_places(data_dir: Path) -> list[Path]:
    """Where the embedded server of this data folder's node may listen, the best place first.

    In its own folder, where such a path can be a socket's. That folder may be on a file system that has no
    Unix sockets (SMB, vfat): then in a private one below a runtime folder, or below the temporary folder,
    which a service with a temporary folder of its own does not share with commands. Nothing here depends on
    the environment of a service, since commands have another.
    """
    name, user = hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:16], os.geteuid()
    runtime = [Path(f"/run/user/{user}"), Path("/run"), Path(tempfile.gettempdir()), Path("/tmp")]  # noqa: S108 - `_private`
    below = Path(f"dicom-ingest-{user}") / name / "valkey.sock"
    usable = [folder for folder in runtime if os.access(folder, os.W_OK | os.X_OK)]
    places = [data_dir.resolve() / "queue" / "valkey.sock", *(folder / below for folder in usable)]
    return [place for place in dict.fromkeys(places) if _can_be_socket(place)]


def socket_path(data_dir: Path) -> Path:
    """Where the embedded server listens now; the same for every role and command.

    If it does not run, where it will listen unless that place turns out to have no sockets: so a client asks
    again whenever it connects.
    """
    places = socket_places(data_dir)
    return next((place for place in places if _is_socket(place)), places[0])


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False


def _can_be_socket(path: Path) -> bool:
    # RQ asks for CLIENT INFO, whose fields, the socket's path among them, are set apart by spaces.
    return len(os.fsencode(path)) <= SOCKET_PATH_BYTES and not any(map(str.isspace, str(path)))


def connect(config: Config, *, timeout: float = 10.0) -> redis.Redis:
    """A client that connects at its first command and waits at most `timeout` seconds for an answer.

    It does not try again by itself: its callers do, since they must notice a Redis that was emptied
    meanwhile.
    """
    if config.queue.url:
        return client_of(config.queue.url, timeout=timeout)
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


def client_of(address: str, *, timeout: float) -> redis.Redis:
    """As `connect`, for the URL of a Redis.

    Raises:
        ValueError: The URL cannot be read.
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
    """The embedded server, wherever it listens when the connection is made."""

    def __init__(self, *, data_dir: Path, **how: Any) -> None:
        super().__init__(path=str(socket_path(data_dir)), **how)  # type: ignore[no-untyped-call]
        self._data_dir = data_dir

    def _connect(self) -> socket.socket:
        self.path = str(socket_path(self._data_dir))
        return cast("socket.socket", super()._connect())  # type: ignore[no-untyped-call]


class _Connection(redis.connection.Connection):
    """TCP to Redis, with a deadline for the lookup of its name too, which redis-py has not."""

    def _connect(self) -> socket.socket:
        connected = dial_host(self.host, self.port, self.socket_connect_timeout or CONNECT_SECONDS)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connected.settimeout(self.socket_timeout)
        return connected


class _TLSConnection(redis.connection.SSLConnection, _Connection):
    """The same below TLS: `SSLConnection._connect` wraps what the next class gives."""
