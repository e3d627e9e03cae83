"""What `ingest check` looks at beyond the file itself: certificates, folders, Redis, the ledger.

Nothing is changed: no folder is made, no table, no key in Redis.
"""

import contextlib
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ingest.checks.bindings import examine_bindings
from ingest.checks.tls import check_tls, due
from ingest.config.faults import Fault, FaultKind
from ingest.config.model import Config
from ingest.config.serialization import mask_url_password
from ingest.cores import usable_cores
from ingest.errors import IngestError
from ingest.filesystem import node_lock
from ingest.filesystem.folder_identity import read_ledger_mark
from ingest.spool import store_capacity
from ingest.tls import profiles

__all__ = ["Fault", "check", "choices", "notices"]

PROBE_SECONDS = 5.0
"""Longest wait for Redis, the ledger or the embedded server's program."""


def check(config: Config) -> list[Fault]:
    """Every fault, and notes on what works but may surprise, in the order of the file."""
    return [
        *check_tls(config, datetime.now(UTC)),
        *_folders(config),
        *_file_systems(config),
        *_room(config),
        *_queue(config),
        *_ledger(config),
        *_agreement(config),
        *_flow(config),
        *choices(config),
    ]


def notices(config: Config) -> list[Fault]:
    """What a node says at every start and reload: choices that others should know, lists that are due.

    Certificates that end are said by `ingest.tls.expiry`. Our own is not refused then: peers may not mind,
    and a node that is down helps none.
    """
    found = choices(config)
    for name, tls in config.tls.items():
        with contextlib.suppress(
            IngestError
        ):  # the context, made at the same start, raises what is wrong with it
            found += due(f"tls.{name}", tls, datetime.now(UTC))
    return found


def choices(config: Config) -> list[Fault]:
    """Notes on settings that weaken a node, whether or not its files can be used."""
    found = []
    if config.receive.durability == "page-cache":
        cause = "Success does not mean durable: a power cut loses acknowledged instances"
        found.append(Fault("receive.durability", cause, 'set it to "fsync"', kind=FaultKind.NOTE))
    for name, tls in config.tls.items():
        found += [
            Fault(f"tls.{name}.{key}", cause, remedy, kind=FaultKind.NOTE)
            for key, cause, remedy in profiles.weaknesses(tls)
        ]
        for key, whom in (("crl_missing", "no CRL"), ("crl_expired", "only a CRL past its nextUpdate")):
            if tls.crl and getattr(tls, key) == "allow":
                cause = f"lets in peers of whose issuer there is {whom}, revoked or not"
                found.append(Fault(f"tls.{name}.{key}", cause, 'set it to "refuse"', kind=FaultKind.NOTE))
        if tls.peer_certificate != "required":
            cause = f'peer_certificate = "{tls.peer_certificate}" lets in peers that nobody vouches for'
            found.append(
                Fault(f"tls.{name}.peer_certificate", cause, 'set it to "required"', kind=FaultKind.NOTE)
            )
    return [*found, *examine_bindings(config)]


def _folders(config: Config) -> Iterator[Fault]:
    folders = {
        "node.data_dir": config.data_dir,
        "receive.spool_dir": config.spool_dir,
        "store.root": config.store_root,
    }
    for key, path in folders.items():
        yield from _folder(key, path, config.receive.min_free_bytes)
    if _device(config.spool_dir) != _device(config.store_root):
        cause = "spool and store are on two file systems, so each instance is copied instead of linked"
        yield Fault("store.root", cause, "put both on one for speed; it works as it is", kind=FaultKind.NOTE)


def _file_systems(config: Config) -> Iterator[Fault]:
    from ingest.checks import file_systems  # noqa: PLC0415 - it imports this room

    yield from file_systems.faults(config)


def _folder(key: str, path: Path, min_free: int) -> Iterator[Fault]:
    """A folder, or the nearest one above it that is there, can be written and has space."""
    there = _nearest(path)
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
        free = shutil.disk_usage(there).free
    except OSError as error:
        yield Fault(
            key, f"{there} cannot be written: {error.strerror}", "let this user write it, or name another"
        )
        return
    if free < min_free:
        cause = f"{there} has {free // 1024**2} MiB free, less than [receive] min_free_bytes"
        yield Fault(key, cause, "free space, or name a larger file system")


def _nearest(path: Path) -> Path:
    return next((folder for folder in (path, *path.parents) if folder.is_dir()), Path("/"))


def _device(path: Path) -> int:
    return _nearest(path).stat().st_dev


def _room(config: Config) -> Iterator[Fault]:
    """Whether a running node refuses what comes, since its store is full."""
    if (
        config.retention.refuses_when_full
        and node_lock.is_node_running(config.run_dir)
        and (why := store_capacity.read_store_full(config.run_dir))
    ):
        remedy = "make it larger, or let studies go: keep_days, watermarks"
        yield Fault("retention.max_bytes", f"the store is full, so nothing is taken: {why}", remedy)


def _queue(config: Config) -> Iterator[Fault]:
    if config.queue.url:
        yield from _redis(config.queue.url)
    else:
        yield from _embedded()
    if config.queue.carrier == "redis":
        cause = "the queue carries whole data sets, that is, patient data"
        remedy = "give that Redis TLS, a password and disks like those of the store"
        yield Fault("queue.carrier", cause, remedy, kind=FaultKind.NOTE)
    elif config.queue.url and not _is_local(config.queue.url):
        cause = "Redis is on another host, and the queue carries references to files in the spool"
        remedy = f'workers there need {config.spool_dir} as a shared folder; else set carrier = "redis"'
        yield Fault("queue.carrier", cause, remedy, kind=FaultKind.NOTE)
    if config.queue.url and not _is_local(config.queue.url) and config.ledger_url.startswith("sqlite"):
        cause = "Redis is on another host, and the ledger is a file on this one"
        remedy = "workers elsewhere need a ledger that all reach: postgresql+psycopg://USER@HOST/DATABASE"
        yield Fault("ledger.url", cause, remedy, kind=FaultKind.NOTE)


def _redis(url: str) -> Iterator[Fault]:
    import redis  # noqa: PLC0415 - the configuration is read by commands that need none

    from ingest.queue.client import connect_to_url  # noqa: PLC0415

    try:
        client = connect_to_url(url, timeout=PROBE_SECONDS)
    except (ValueError, TypeError):  # of which no word is quoted: it may be the password
        yield Fault("queue.url", f"{mask_url_password(url)} is not understood", "correct it")
        return
    try:
        client.ping()
    except redis.AuthenticationError:
        yield Fault(
            "queue.url",
            f"{mask_url_password(url)} refuses the password",
            "correct user and password in the URL",
        )
    except (redis.RedisError, OSError) as error:
        yield Fault(
            "queue.url",
            f"{mask_url_password(url)} does not answer: {error}",
            "start that Redis, or correct the URL",
        )
    finally:
        client.close()


def _embedded() -> Iterator[Fault]:
    from ingest.queue.server_program import find_server_program  # noqa: PLC0415 - most commands need none

    try:
        program = find_server_program()
        subprocess.run([program, "--version"], check=True, capture_output=True, timeout=PROBE_SECONDS)
    except IngestError as error:
        yield Fault("queue.url", "there is no embedded server for this machine", str(error))
    except (OSError, subprocess.SubprocessError) as error:
        remedy = "run a Redis and name it in queue.url"
        yield Fault("queue.url", f"the embedded server does not run: {error}", remedy)


def _is_local(url: str) -> bool:
    parts = urlsplit(url)
    if parts.scheme == "unix" or parts.hostname == "localhost":
        return True
    try:
        return ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


def _ledger(config: Config) -> Iterator[Fault]:
    import sqlalchemy  # noqa: PLC0415 - slow to import, and only needed here

    from ingest.ledger.database import MALFORMED_REMEDY, is_malformed  # noqa: PLC0415
    from ingest.ledger.server_address import resolve_hosts  # noqa: PLC0415

    try:
        url = sqlalchemy.make_url(config.ledger_url)
    except (ValueError, sqlalchemy.exc.ArgumentError):  # of which no word is quoted: it may be the password
        yield Fault("ledger.url", f"{mask_url_password(config.ledger_url)} is no URL", "correct it")
        return
    options: dict[str, object] = {}
    if url.get_backend_name() == "sqlite":
        file = Path(url.database or "")
        if not file.exists():
            yield from _folder("ledger.url", file.parent, 0)
            return
        url = url.set(database=file.absolute().as_uri(), query={"mode": "ro", "uri": "true"})
    else:
        options["connect_timeout"] = int(PROBE_SECONDS)
    is_sqlite = url.get_backend_name() == "sqlite"
    try:
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=options)
        resolve_hosts(engine)
        with engine.connect() as connection:
            # SQLite does not open the file for less than reading a table.
            connection.execute(
                sqlalchemy.text("SELECT count(*) FROM sqlite_master" if is_sqlite else "SELECT 1")
            )
            damage = _damage(connection) if is_sqlite else ""
        if damage:
            yield Fault(
                "ledger.url",
                f"{mask_url_password(config.ledger_url)} is malformed: {damage}",
                MALFORMED_REMEDY,
            )
    except ImportError as error:
        yield Fault("ledger.url", f"its driver is missing: {error}", "pip install 'dicom-ingest[postgresql]'")
    except sqlalchemy.exc.SQLAlchemyError as error:
        cause = str(error.__cause__ or error).strip().partition("\n")[0]
        if is_malformed(error.__cause__):
            yield Fault(
                "ledger.url",
                f"{mask_url_password(config.ledger_url)} is malformed: {cause}",
                MALFORMED_REMEDY,
            )
            return
        yield Fault(
            "ledger.url",
            f"{mask_url_password(config.ledger_url)} does not open: {cause}",
            "start it, or correct the URL",
        )


def _damage(connection: Any) -> str:
    """What SQLite finds wrong with its file within PROBE_SECONDS, or empty."""
    driver = connection.connection.driver_connection
    until = time.monotonic() + PROBE_SECONDS
    driver.set_progress_handler(lambda: time.monotonic() > until, 10_000)
    try:
        found = [str(row[0]) for row in driver.execute("PRAGMA quick_check(1)")]
    except sqlite3.DatabaseError as error:
        from ingest.ledger.database import is_malformed  # noqa: PLC0415 - slow to import

        # Otherwise it was interrupted, or is busy: nothing is known of damage.
        found = [str(error)] if is_malformed(error) else []
    finally:
        driver.set_progress_handler(None, 0)
    return "" if found in ([], ["ok"]) else found[0].partition("\n")[0]


def _agreement(config: Config) -> Iterator[Fault]:
    """Whether the ledger is the one that the store was last used with."""
    from ingest.ledger import Ledger, store_agreement  # noqa: PLC0415 - slow to import, and only needed here

    if read_ledger_mark(config.store_root) is None:
        return
    with contextlib.suppress(IngestError), contextlib.closing(Ledger(config.ledger_url)) as ledger:
        if cause := store_agreement.find_disagreement(config.store_root, ledger):
            yield Fault("ledger.url", cause, store_agreement.REMEDY)


def _flow(config: Config) -> Iterator[Fault]:
    """Parts of the configuration that are sound alone, but of no use together."""
    routed = {name for route in config.routes for name in route.to}
    for index, destination in enumerate(config.destinations):
        if destination.name not in routed:
            cause = "no route leads there"
            yield Fault(
                f"destinations[{index}]",
                cause,
                "name it in a [[routes]] to forward to it",
                kind=FaultKind.NOTE,
            )
    if routed and not config.workers.forward:
        yield Fault(
            "workers.forward",
            "is 0, so `ingest serve` forwards nothing",
            "set it to 1 or more",
            kind=FaultKind.NOTE,
        )
    for index, destination in enumerate(config.destinations):
        if len(config.destinations) > 1 and destination.associations >= config.workers.forward > 0:
            cause = (
                f"{destination.associations} at a time of {config.workers.forward} workers; one is kept "
                "free for other destinations"
            )
            if destination.associations > 1:
                remedy = f"set workers.forward to {destination.associations + 1} or more"
                yield Fault(f"destinations[{index}].associations", cause, remedy, kind=FaultKind.NOTE)
    if not config.listeners:
        yield Fault(
            "listeners",
            "there is none, so nothing can be received",
            "add a [[listeners]]",
            kind=FaultKind.NOTE,
        )
    cores = usable_cores()
    if config.receive.processes > 4 * cores:
        cause = f"{config.receive.processes} listeners share {cores} cores"
        yield Fault("receive.processes", cause, "0 starts one a core", kind=FaultKind.NOTE)
