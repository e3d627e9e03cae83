"""The Redis that carries references: how to reach it and what its keys are called.

Redis is a hint, never the truth: whatever is lost here is put back from spool and ledger. Our keys start
with `ingest:` and RQ's with `rq:`, so that a site may share its Redis, but not two nodes one database of it.
"""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Final
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ingest.config.model import Config

GROUP: Final = "persist"
"""The consumer group of the persist workers, on every stream."""

SPOOLS_KEY: Final = "ingest:spools"
"""Set of the ids of all spools that ever handed something off."""

SOCKET_PATH_BYTES: Final = 107
"""The longest path of a Unix socket (unix(7), without its final NUL)."""

CHUNK: Final = 1 << 20
"""Bytes of one list element where the `redis` carrier moves a file."""


def stream_key(spool: str) -> str:
    """The stream of references of the spool with this id."""
    return f"ingest:stream:{spool}"


def data_key(spool: str, name: str) -> str:
    """The list of chunks of one Part 10 file, by the name of its place (`redis` carrier)."""
    return f"ingest:data:{spool}:{name}"


def witness_key(spool: str, listener: str) -> str:
    """A key that is gone when Redis was emptied (see `ingest.spool.witness`)."""
    return f"ingest:witness:{spool}:{listener}"


def persisted_key(spool: str) -> str:
    """The list of places that the spool may let go of, since store and ledger have them (`redis` carrier)."""
    return f"ingest:persisted:{spool}"


def socket_path(data_dir: Path) -> Path:
    """Where the embedded server of this data folder's node listens; the same for every role and command.

    In its own folder, where such a path can be a socket's; else in a private one below the temporary folder,
    which a service with a temporary folder of its own does not share with commands.
    """
    name = hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:16]
    below = Path(f"dicom-ingest-{os.geteuid()}") / name / "valkey.sock"
    own, temporary = data_dir.resolve() / "queue" / "valkey.sock", Path(tempfile.gettempdir()) / below
    return next((path for path in (own, temporary) if _can_be_socket(path)), Path("/tmp") / below)  # noqa: S108


def _can_be_socket(path: Path) -> bool:
    # RQ asks for CLIENT INFO, whose fields, the socket's path among them, are set apart by spaces.
    return len(os.fsencode(path)) <= SOCKET_PATH_BYTES and not any(map(str.isspace, str(path)))


def url(config: Config) -> str:
    """`[queue] url`, or the socket of the embedded server."""
    return config.queue.url or f"unix://{quote(str(socket_path(config.data_dir)))}"


def connect(config: Config, *, timeout: float = 10.0) -> redis.Redis:
    """A client that connects at its first command and waits at most `timeout` seconds for an answer.

    It does not try again by itself: its callers do, since they must notice a Redis that was emptied
    meanwhile.
    """
    return redis.Redis.from_url(
        url(config),
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
    )
