"""Our own node as a receiver: its listeners alone, or the whole of it."""

import contextlib
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

import redis

from benchmarks.accounting import Group
from benchmarks.receivers import Durability, Facts, Pki, Target, Unavailable, target_of, wait_until
from ingest.errors import BootError
from ingest.queue.server_program import find_server_program
from ingest.spool import segment

MAX_ASSOCIATIONS: Final = 4000
LEDGER_SECONDS: Final = 30.0
READY: Final = re.compile(r"dicom-tls://\S+?:(\d+)")
_INSTANCE_UID: Final = re.compile(rb"\x02\x00\x03\x00UI(..)", re.DOTALL)  # PS3.10 7.1
_FILE_META_BYTES: Final = 1024

VALKEY: Final = ("--save", "", "--appendonly", "no", "--logfile", "log")
CONFIGURATION: Final = """
[node]
data_dir = "var"
drain_seconds = 5
[[listeners]]
host = "127.0.0.1"
port = 0
tls = "node"
[tls.node]
certificate = "{keys.certificate}"
private_key = "{keys.key}"
trusted = ["{keys.trusted}"]
[receive]
durability = "{durability}"
processes = {processes}
segment_max_bytes = {segments}
max_associations = {associations}
max_associations_per_peer = {associations}
min_free_bytes = 0
[queue]
url = "{queue}"
[workers]
persist = {persist}
forward = {forward}
[log]
level = "warning"
file = "log"
"""
DESTINATION: Final = """
[[destinations]]
name = "next"
ae_title = "{target.called_ae}"
host = "{target.host}"
port = {target.port}
tls = "node"
associations = {associations}
async_operations = {operations}
[[routes]]
to = ["next"]
"""
CONSOLE: Final = """
[console]
port = {port}
"""


@dataclass(frozen=True, slots=True)
class Node:
    """A running node of ours.

    Attributes:
        group: The listeners with the supervisor that started them; of a whole node, also workers and Valkey
            (`group.by_name()` tells them apart).
        queue: What `[queue] url` says; empty in a whole node, which has its own.
    """

    facts: Facts
    target: Target
    group: Group
    folder: Path
    queue: str

    def waiting(self) -> int:
        """Instances that are promised and not yet in the store."""
        return sum(1 for _ in self._spooled()) + sum(1 for _ in self._in_segments())

    def recorded(self) -> int:
        """Instances that a whole node's ledger has: cheaply, by the number of its last row."""
        address = f"file:{self.folder / 'var' / 'ledger.db'}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True, timeout=LEDGER_SECONDS)) as ledger:
            return int(ledger.execute("SELECT max(id) FROM instances").fetchone()[0] or 0)

    def stored(self) -> int:
        """Instances in spool and store."""
        return len(self._uids())

    def missing(self, uids: Iterable[str]) -> list[str]:
        """Those that are neither in the spool nor in the store."""
        there = self._uids()
        return [uid for uid in uids if uid not in there]

    def clear(self) -> None:
        """Remove the files of spool and store; a ledger keeps its rows."""
        for entry in (*self._spooled(), *self._kept()):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(entry.path)
        for opened, record in self._in_segments(marking=True):
            opened.mark_persisted(record.offset)
        if self.queue:
            with contextlib.closing(redis.Redis.from_url(self.queue)) as client:
                client.flushall()

    def _uids(self) -> set[str]:
        # The spool first: what moves on meanwhile is then found in the store.
        found = {uid for entry in self._spooled() if (uid := _instance_uid(entry))}
        for opened, record in self._in_segments():
            found.add(_uid_in(os.pread(opened.fd, _FILE_META_BYTES, record.offset)))
        return found | {entry.name.removesuffix(".dcm") for entry in self._kept()}

    def _spooled(self) -> Iterator["os.DirEntry[str]"]:
        for folder in (self.folder / "var" / "spool").glob("L*/ready"):
            yield from _files(folder)

    def _in_segments(self, *, marking: bool = False) -> Iterator[tuple[segment.Segment, segment.Record]]:
        for path in (self.folder / "var" / "spool").glob("L*/segments/*.seg"):
            with (
                contextlib.suppress(FileNotFoundError),
                segment.Segment(path, marking=marking) as opened,
            ):
                yield from ((opened, record) for record in opened.waiting())

    def _kept(self) -> Iterator["os.DirEntry[str]"]:
        store = self.folder / "var" / "store"
        for series in store.glob("[0-9]*/[0-9]*"):
            yield from _files(series)


@contextlib.contextmanager
def ours(
    base: Path, keys: Pki, *, durability: Durability, processes: int = 2, segments: int = 0
) -> Iterator[Node]:
    """Our listeners alone (`ingest listen`), beside a Valkey that is not counted and that nobody reads.

    Args:
        base: Folder of its data.
        keys: Its certificate, and whom it trusts.
        durability: As `[receive] durability`.
        processes: Listeners.
        segments: As `[receive] segment_max_bytes`.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as short, Group("queue") as beside:
        url = f"unix://{short}/s"
        server = beside.popen(
            [_valkey(), "--port", "0", "--unixsocket", f"{short}/s", "--dir", short, *VALKEY],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        wait_until(lambda: _answers(url), server, Path(short) / "log")
        settings = _configuration(keys, durability, processes, queue=url, segments=segments)
        with _node(base, keys, "listen", settings, durable=durability == "fsync", queue=url) as node:
            yield node


@contextlib.contextmanager
def whole(
    base: Path,
    keys: Pki,
    *,
    durability: Durability,
    processes: int = 2,
    persist: int = 1,
    to: Target | None = None,
    associations: int = 1,
    operations: int = 0,
    console_port: int = 0,
) -> Iterator[Node]:
    """Run the whole node (`ingest serve`): listeners, Valkey, persist workers and ledger.

    Args:
        base: Folder of its data.
        keys: Its certificate, and whom it trusts.
        durability: As `[receive] durability`.
        processes: Listeners.
        persist: Persist workers.
        to: Where it forwards everything, with a worker for each association; None: nowhere.
        associations: How many of them at a time.
        operations: As the destination's `async_operations`.
        console_port: Port of a web console on loopback; 0: none.
    """
    settings = _configuration(keys, durability, processes, persist=persist, forward=associations)
    if to is not None:
        settings += DESTINATION.format(target=to, associations=associations, operations=operations)
    if console_port:
        settings += CONSOLE.format(port=console_port)
    with _node(base, keys, "serve", settings, durable=durability == "fsync") as node:
        yield node


@contextlib.contextmanager
def _node(
    base: Path,
    keys: Pki,
    command: Literal["listen", "serve"],
    settings: str,
    *,
    durable: bool,
    queue: str = "",
) -> Iterator[Node]:
    base.mkdir(parents=True, exist_ok=True)
    path, output = base / "ingest.toml", base / "output"
    path.write_text(settings)
    with Group("ours") as group:
        with output.open("wb") as said:
            process = group.popen(
                [sys.executable, "-m", "ingest.cli", command, "-c", path],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )
        wait_until(lambda: READY.search(output.read_text()) is not None, process, output)
        ready = READY.search(output.read_text())
        assert ready is not None
        name = "ours" if command == "listen" else "ours, whole path"
        facts = Facts(name, metadata.version("dicom-ingest"), durable)
        yield Node(facts, target_of(keys, int(ready[1])), group, base, queue)


def _configuration(
    keys: Pki,
    durability: Durability,
    processes: int,
    *,
    queue: str = "",
    persist: int = 1,
    forward: int = 1,
    segments: int = 0,
) -> str:
    return CONFIGURATION.format(
        keys=keys,
        durability=durability,
        processes=processes,
        segments=segments,
        associations=MAX_ASSOCIATIONS,
        queue=queue,
        persist=persist,
        forward=forward,
    )


def _valkey() -> Path:
    try:
        return find_server_program()
    except BootError as error:
        raise Unavailable(str(error)) from error


def _answers(url: str) -> bool:
    with contextlib.closing(redis.Redis.from_url(url)) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False


def _files(folder: Path) -> Iterator["os.DirEntry[str]"]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".dcm"):
                yield entry


def _instance_uid(entry: "os.DirEntry[str]") -> str:
    """(0002,0003) of a file in the spool; empty where it has just moved on."""
    try:
        with open(entry.path, "rb", buffering=0) as file:
            return _uid_in(file.read(_FILE_META_BYTES))
    except FileNotFoundError:
        return ""


def _uid_in(start: bytes) -> str:
    found = _INSTANCE_UID.search(start)
    if found is None:
        return ""
    length = int.from_bytes(found[1], "little")
    return start[found.end() : found.end() + length].rstrip(b"\0").decode("ascii", "replace")
