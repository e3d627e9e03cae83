"""Checks of everything that a configuration names: certificates, folders, Redis, ledger.

The checks change nothing: they create no folder, no table and no key in Redis.
"""

import contextlib
import difflib
import os
import shutil
import sqlite3
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ingest.alarms import CONDITIONS
from ingest.checks.access import check_access, is_folder_usable
from ingest.checks.file_systems import check_file_systems, find_existing_folder
from ingest.checks.listening import check_listening
from ingest.checks.tls import check_tls, check_validity_now
from ingest.checks.versions import check_data_format, check_ledger_version
from ingest.checks.weak_settings import find_weak_settings
from ingest.config.attribute_map import find_misfits
from ingest.config.extra_rules import LEDGER_ROLES, check_extras
from ingest.config.faults import Fault, FaultKind
from ingest.config.model import Config
from ingest.config.serialization import mask_url_password
from ingest.cores import usable_cores
from ingest.errors import ConfigError, IngestError
from ingest.extras import explain_import_error, explain_missing_extra, find_missing_modules
from ingest.filesystem import node_lock
from ingest.filesystem.barriers import find_barrier
from ingest.filesystem.folder_identity import read_ledger_mark
from ingest.spool import store_capacity

PROBE_SECONDS = 5.0
"""Deadline for Redis, the ledger, and the program of the embedded server."""


def check_node(config: Config, *, user: str = "") -> list[Fault]:
    """Return every fault, and notes on settings that may surprise, in the order of the file.

    Args:
        config: The configuration.
        user: Name of a user whose rights this process has taken; empty for the user that started it.
    """
    return [
        *check_extras(config, {*LEDGER_ROLES, "console"}),
        *check_listening(config, user=user),
        *check_tls(config, datetime.now(UTC)),
        *check_data_format(config),
        *check_access(config),
        *_check_folders(config),
        *check_file_systems(config),
        *_check_store_capacity(config),
        *_check_queue(config),
        *_check_ledger(config),
        *_check_store_agreement(config),
        *_check_alerts(config),
        *_check_webhooks(config),
        *_check_changes(config),
        *_check_flow(config),
        *find_weak_settings(config),
    ]


def list_start_notices(config: Config) -> list[Fault]:
    """Return the notices that a node logs at each start and reload: weak settings, and CRLs that are due.

    `ingest.tls.expiry` logs certificates that end. An own certificate that has ended does not stop the node:
    some peers accept it, and a node that is down receives nothing.
    """
    found = find_weak_settings(config)
    for name, tls in config.tls.items():
        # The TLS context of the same start raises the faults of the files.
        with contextlib.suppress(IngestError):
            found += check_validity_now(f"tls.{name}", tls, datetime.now(UTC))
    return found


def _check_folders(config: Config) -> Iterator[Fault]:
    folders = {
        "node.data_dir": config.data_dir,
        "receive.spool_dir": config.spool_dir,
        "store.root": config.store_root,
    }
    for key, path in folders.items():
        yield from _check_folder(key, path, config.receive.min_free_bytes)
    if _find_device(config.spool_dir) != _find_device(config.store_root):
        cause = "spool and store are on two file systems, so each instance is copied instead of linked"
        yield Fault("store.root", cause, "put both on one for speed; it works as it is", kind=FaultKind.NOTE)


def _check_folder(key: str, path: Path, min_free: int) -> Iterator[Fault]:
    """Check that a folder, or the nearest existing one above it, can be written and has space."""
    if find_barrier(path) is not None or not is_folder_usable(path):
        return  # `check_access` has reported it
    there = find_existing_folder(path)
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
        free = shutil.disk_usage(there).free
    except OSError as error:
        yield Fault(
            key,
            f"{there} cannot be written: {error.strerror}",
            "let this user write it, or name another folder",
        )
        return
    if free < min_free:
        cause = f"{there} has {free // 1024**2} MiB free, less than [receive] min_free_bytes"
        yield Fault(key, cause, "free space, or name a folder on a larger file system")


def _check_changes(config: Config) -> Iterator[Fault]:
    """Report wrong lines in maps of destinations, and who may still see values that are changed."""
    for index, destination in enumerate(config.destinations):
        if destination.remove and destination.original_attributes:
            cause = "the Original Attributes Sequence still has the removed values"
            remedy = "set original_attributes = false if they must not leave the node"
            yield Fault(f"destinations[{index}].remove", cause, remedy, kind=FaultKind.NOTE)
        if destination.transcode != "never" and find_missing_modules("transcode"):
            cause = "compressed images are sent as they are stored: the extra `transcode` is not installed"
            remedy = explain_missing_extra("transcode")[1]
            yield Fault(f"destinations[{index}].transcode", cause, remedy, kind=FaultKind.NOTE)
        path, key = destination.map, f"destinations[{index}].map"
        if path is None:
            continue
        for cause, remedy in find_misfits(path):
            yield Fault(key, cause, remedy)
        with contextlib.suppress(OSError):
            if path.stat().st_mode & stat.S_IROTH:
                cause = f"{path} may name patients, and every user of this host can read it"
                yield Fault(key, cause, f"chmod o-r {path}", kind=FaultKind.NOTE)


def _check_alerts(config: Config) -> Iterator[Fault]:
    """Report files that senders of alerts cannot use, and conditions that no alarm has."""
    if not config.alerts:
        return
    from ingest.events.secret_files import read_secret  # noqa: PLC0415 - most nodes have no alerts
    from ingest.events.trust import create_client_context  # noqa: PLC0415

    for index, alert in enumerate(config.alerts):
        key = f"alerts[{index}]"
        for name in ("secret_file", "password_file"):
            if (path := getattr(alert, name)) is not None:
                yield from _collect_faults(f"{key}.{name}", partial(read_secret, path))
        if alert.needs_tls and alert.tls in config.tls:
            yield from _collect_faults(f"{key}.tls", partial(create_client_context, config.tls[alert.tls]))
        for number, pattern in enumerate(alert.alarms):
            if not any(fnmatchcase(condition, pattern) for condition in CONDITIONS):
                cause = f'no alarm has the name "{pattern}"'
                similar = difflib.get_close_matches(pattern, CONDITIONS, 1)
                remedy = (
                    f"did you mean {similar[0]}?" if similar else "docs/reference/alerts.md has all names"
                )
                yield Fault(f"{key}.alarms[{number}]", cause, remedy, kind=FaultKind.NOTE)


def _check_webhooks(config: Config) -> Iterator[Fault]:
    """Report files that the sender of webhooks cannot use."""
    if not config.webhooks:
        return
    from ingest.events.secret_files import read_secret  # noqa: PLC0415 - most nodes have no webhooks
    from ingest.events.trust import create_client_context  # noqa: PLC0415

    for index, webhook in enumerate(config.webhooks):
        key = f"webhooks[{index}]"
        if webhook.secret_file is not None:
            yield from _collect_faults(f"{key}.secret_file", partial(read_secret, webhook.secret_file))
        if webhook.needs_tls and webhook.tls in config.tls:
            trust = partial(create_client_context, config.tls[webhook.tls])
            yield from _collect_faults(f"{key}.tls", trust)


def _collect_faults(key: str, use: Callable[[], object]) -> Iterator[Fault]:
    try:
        use()
    except ConfigError as error:
        for fault in error.faults:
            cause, _, remedy = fault.partition("; ")
            yield Fault(key, cause, remedy)


def _find_device(path: Path) -> int:
    return find_existing_folder(path).stat().st_dev


def _check_store_capacity(config: Config) -> Iterator[Fault]:
    """Report that a running node refuses instances, because its store is full."""
    if (
        config.retention.refuses_when_full
        and node_lock.is_node_running(config.run_dir)
        and (why := store_capacity.read_store_full(config.run_dir))
    ):
        remedy = "raise it, or remove studies: keep_days, watermarks"
        yield Fault("retention.max_bytes", f"the store is full, so the node refuses instances: {why}", remedy)


def _check_queue(config: Config) -> Iterator[Fault]:
    if config.queue.url:
        yield from _check_redis(config.queue.url)
    else:
        yield from _check_embedded_server()
    if config.queue.carrier == "redis":
        cause = "the queue carries whole data sets, that is, patient data"
        remedy = "give that Redis TLS, a password and disks like those of the store"
        yield Fault("queue.carrier", cause, remedy, kind=FaultKind.NOTE)
    elif config.queue.url and not _is_local(config.queue.url):
        cause = "Redis is on another host, and the queue carries references to files in the spool"
        remedy = f'workers there need {config.spool_dir} as a shared folder; otherwise set carrier = "redis"'
        yield Fault("queue.carrier", cause, remedy, kind=FaultKind.NOTE)
    if config.queue.url and not _is_local(config.queue.url) and config.ledger_url.startswith("sqlite"):
        cause = "Redis is on another host, and the ledger is a file on this one"
        remedy = "workers elsewhere need a ledger that all reach: postgresql+psycopg://USER@HOST/DATABASE"
        yield Fault("ledger.url", cause, remedy, kind=FaultKind.NOTE)


def _check_redis(url: str) -> Iterator[Fault]:
    import redis  # noqa: PLC0415 - a node with an embedded queue does not need it here

    from ingest.queue.client import connect_to_url  # noqa: PLC0415

    try:
        client = connect_to_url(url, timeout=PROBE_SECONDS)
    except (ValueError, TypeError):  # the message may contain the password, so it is not printed
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


def _check_embedded_server() -> Iterator[Fault]:
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


def _check_ledger(config: Config) -> Iterator[Fault]:
    import sqlalchemy  # noqa: PLC0415 - slow to import, and only needed here

    from ingest.ledger.database import MALFORMED_REMEDY, is_malformed  # noqa: PLC0415
    from ingest.ledger.server_address import resolve_hosts  # noqa: PLC0415

    try:
        url = sqlalchemy.make_url(config.ledger_url)
    except (ValueError, sqlalchemy.exc.ArgumentError):  # the message may contain the password
        yield Fault("ledger.url", f"{mask_url_password(config.ledger_url)} is not a URL", "correct it")
        return
    options: dict[str, object] = {}
    if url.get_backend_name() == "sqlite":
        file = Path(url.database or "")
        if not os.path.exists(file):
            yield from _check_folder("ledger.url", file.parent, 0)
            return
        url = url.set(database=file.absolute().as_uri(), query={"mode": "ro", "uri": "true"})
    else:
        options["connect_timeout"] = int(PROBE_SECONDS)
    is_sqlite = url.get_backend_name() == "sqlite"
    try:
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=options)
        resolve_hosts(engine)
        with engine.connect() as connection:
            # SQLite opens the file only when a table is read.
            connection.execute(
                sqlalchemy.text("SELECT count(*) FROM sqlite_master" if is_sqlite else "SELECT 1")
            )
            damage = _find_damage(connection) if is_sqlite else ""
            if not damage:
                yield from check_ledger_version(connection, mask_url_password(config.ledger_url))
        if damage:
            yield Fault(
                "ledger.url",
                f"{mask_url_password(config.ledger_url)} is malformed: {damage}",
                MALFORMED_REMEDY,
            )
    except ImportError as error:
        if explain_import_error(error) is None:  # otherwise `check_extras` reports it
            yield Fault("ledger.url", f"its driver does not load: {error}", "install what it names")
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


def _find_damage(connection: Any) -> str:
    """Return the first damage that SQLite finds in its file within PROBE_SECONDS, or nothing."""
    driver = connection.connection.driver_connection
    until = time.monotonic() + PROBE_SECONDS
    driver.set_progress_handler(lambda: time.monotonic() > until, 10_000)
    try:
        found = [str(row[0]) for row in driver.execute("PRAGMA quick_check(1)")]
    except sqlite3.DatabaseError as error:
        from ingest.ledger.database import is_malformed  # noqa: PLC0415 - slow to import

        # Otherwise the check was interrupted, or the file is busy: no damage is known.
        found = [str(error)] if is_malformed(error) else []
    finally:
        driver.set_progress_handler(None, 0)
    return "" if found in ([], ["ok"]) else found[0].partition("\n")[0]


def _check_store_agreement(config: Config) -> Iterator[Fault]:
    """Report a ledger that is not the one that the store was last used with."""
    from ingest.ledger import Ledger, store_agreement  # noqa: PLC0415 - slow to import, and only needed here

    if read_ledger_mark(config.store_root) is None:
        return
    with contextlib.suppress(IngestError), contextlib.closing(Ledger(config.ledger_url)) as ledger:
        if cause := store_agreement.find_disagreement(config.store_root, ledger):
            yield Fault("ledger.url", cause, store_agreement.REMEDY)


def _check_completion(config: Config) -> Iterator[Fault]:
    whole = {name for route in config.routes if route.on == "study" for name in route.to}
    whole |= {member for group in config.groups if group.name in whole for member in group.members}
    for index, destination in enumerate(config.destinations):
        if destination.one_association_per_study and destination.name not in whole:
            cause = "no route waits for whole studies, so a study may need several associations"
            remedy = f'set on = "study" in the [[routes]] that name "{destination.name}"'
            key = f"destinations[{index}].one_association_per_study"
            yield Fault(key, cause, remedy, kind=FaultKind.NOTE)
    for index, route in enumerate(config.routes):
        if route.on != "instance" and route.hold:
            cause = f"hold counts before it: a release does not wait for the {route.on}"
            yield Fault(f"routes[{index}].on", cause, "remove one of the two", kind=FaultKind.NOTE)


def _check_group_use(config: Config, routed: Collection[str]) -> Iterator[Fault]:
    for index, group in enumerate(config.groups):
        if group.name not in routed:
            remedy = "name it in a [[routes]] to forward to it"
            yield Fault(f"groups[{index}]", "no route names it", remedy, kind=FaultKind.NOTE)
        if len(group.members) == 1:
            cause = "has one member, so there is nothing to choose"
            yield Fault(f"groups[{index}].members", cause, "name another one", kind=FaultKind.NOTE)


def _check_flow(config: Config) -> Iterator[Fault]:
    """Report settings that are valid alone, but useless together."""
    routed = {name for route in config.routes for name in route.to}
    yield from _check_group_use(config, routed)
    routed |= {member for group in config.groups if group.name in routed for member in group.members}
    # Reports of storage commitment need no route, and `@sender` names the destinations of peers.
    used = routed | {peer.destination for peer in config.peers}
    for index, destination in enumerate(config.destinations):
        if destination.name not in used:
            cause = "no route names it"
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
                f"{destination.associations} associations for {config.workers.forward} workers, "
                "and one worker stays free for other destinations"
            )
            if destination.associations > 1:
                remedy = f"set workers.forward to {destination.associations + 1} or more"
                yield Fault(f"destinations[{index}].associations", cause, remedy, kind=FaultKind.NOTE)
    yield from _check_completion(config)
    cores = usable_cores()
    if config.receive.processes > 4 * cores:
        cause = f"{config.receive.processes} listeners share {cores} cores"
        yield Fault("receive.processes", cause, "0 starts one listener for each core", kind=FaultKind.NOTE)
