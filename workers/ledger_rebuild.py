"""`ingest ledger verify` and `rebuild`: the rows of the ledger against the files of store and quarantine.

Both walk the folders in bounded memory. A rebuild makes a row for each file that has none, so the same
command again does what is left. It works beside a running node:

- A file that was given its name a moment ago may be about to be recorded by a worker: it is left out.
- Rows are made while replacing and removing are excluded, and only for files that are still there.
- What a worker and a rebuild both record has one row: the ledger takes a second for one file as no event.
"""

import contextlib
import json
import os
import re
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.markup import escape

from ingest.alarms import clear_alarm
from ingest.cli.tables import printable
from ingest.clock import unix_ms
from ingest.config.model import Config
from ingest.dicom.file_header import InstanceHeader, read_instance_header
from ingest.errors import PeerError
from ingest.filesystem.folder_identity import read_ledger_mark, require_store, write_ledger_mark
from ingest.ledger import InstanceState, Ledger, NewInstance, Outcome
from ingest.ledger.records import Instance
from ingest.ledger.store_agreement import ALARM, doubt
from ingest.ledger.store_folders import QUARANTINE, STORE
from ingest.routing.node_router import NodeRouter
from ingest.routing.router import RoutingDecision
from ingest.supervisor import reload_client
from ingest.workers.store.filesystem import FileStore, SourceFile
from ingest.workers.store.keys import STAGING, make_safe_name

CHUNK: Final = 200
"""Files that are looked at together."""

YOUNG_SECONDS: Final = 60.0
"""Beside a running node, a file whose name is younger may be about to be recorded by its worker."""

SHOWN: Final = 20
"""How many files of each kind a person is shown."""

NOTE: Final = "rebuilt from the store"
UNKNOWN_REASON: Final = "rebuilt from the quarantine: why it was set aside is not known any more"

# As `ingest.workers.store.keys` names further copies, and what was refused.
_COPY: Final = re.compile(r"~([0-9a-f]{32})(?=[./]|$)")
_REFUSED: Final = re.compile(r"\.ready\.[^.]+\.([0-9A-F]{4})\.dcm\.[0-9]+\.dcm$")
_KINDS: Final = {
    "without_row": "files without a row; `ingest ledger rebuild` makes them",
    "without_file": "rows without a file; restore it, or have it sent again",
    "of_other_size": "files of another size than their row says",
    "other_objects": "files that are not what their row says",
    "unreadable": "files that cannot be read",
}


@dataclass(frozen=True, slots=True)
class _Found:
    """A file of store or quarantine."""

    key: str
    facts: os.stat_result

    @property
    def named_ms(self) -> int:
        """When it was given its name, or another of its names was taken from it."""
        return self.facts.st_ctime_ns // 1_000_000


@dataclass(slots=True)
class Differences:
    """What `verify` found; names below `store/` or `quarantine/`, the first of each kind, and how many."""

    files: int = 0
    rows: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_KINDS, 0))
    examples: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in _KINDS})

    def add(self, kind: str, name: str) -> None:
        """Note one."""
        self.counts[kind] += 1
        if len(self.examples[kind]) < SHOWN:
            self.examples[kind].append(name)


@dataclass(slots=True)
class Rebuilt:
    """What `rebuild` did.

    Attributes:
        files: Looked at.
        known: Have a row already.
        new: Have one now.
        deliveries: To be made of them, as the routes say.
        young: Left out beside a running node, since a worker may be about to record them.
        contested: Left out, since another file of their UID has a row, or they are being removed.
        unreadable: Left out, since they are no DICOM files or cannot be read.
    """

    files: int = 0
    known: int = 0
    new: int = 0
    deliveries: int = 0
    young: int = 0
    contested: int = 0
    unreadable: int = 0
    examples: list[str] = field(default_factory=list)

    def leave(self, name: str, why: str) -> None:
        """Note a file that is left out, for a person."""
        if len(self.examples) < SHOWN:
            self.examples.append(f"{name}: {why}")


def verify(config: Config, *, reads: bool, as_json: bool) -> int:
    """Compare, print, and return the exit code: 1 where something differs.

    Args:
        config: The configuration.
        reads: Whether to read the files, and compare what they say of themselves.
        as_json: Whether to print for programs.

    Raises:
        LedgerError: The ledger is away or malformed.
    """
    found = Differences()
    with contextlib.closing(Ledger(config.ledger_url)) as ledger, _progress() as say:
        ledger.require_schema()
        _require_folders(config, ledger)
        for kind, root in ((STORE, config.store_root), (QUARANTINE, config.quarantine_dir)):
            for chunk in _chunks(_walk(root)):
                _find_files_without_row(ledger, kind, root, chunk, found)
                say(f"{found.files} files looked at")
        _compare_rows(config, ledger, found, reads=reads, say=say)
        cause = doubt(config.store_root, ledger)
    console = Console(highlight=False, soft_wrap=True)
    if as_json:
        console.print(json.dumps({**asdict(found), "doubt": cause}), markup=False)
    else:
        for line in _lines(found, cause):
            console.print(line, markup=False)
    return int(bool(cause) or any(found.counts.values()))


def rebuild(config: Config, *, makes_deliveries: bool, as_json: bool) -> int:
    """Make the rows that are missing, print how many, and return the exit code: 1 where a file was left out.

    Args:
        config: The configuration.
        makes_deliveries: Whether what the routes say is to be delivered.
        as_json: Whether to print for programs.

    Raises:
        LedgerError: The ledger is away or malformed; the same again does what is left.
        StoreError: The store cannot be used.
    """
    done = Rebuilt()
    with contextlib.closing(Ledger(config.ledger_url)) as ledger, _progress() as say:
        ledger.migrate()
        _require_folders(config, ledger)
        beside = (
            ledger.database.dialect != "sqlite"
            or reload_client.is_running(config.run_dir)
            or reload_client.workers_run(config.run_dir)
        )
        for kind in (STORE, QUARANTINE):
            rebuilder = Rebuilder(config, ledger, kind, done, makes_deliveries=makes_deliveries)
            rebuilder.run(YOUNG_SECONDS if beside else 0.0, say)
        if not done.young:
            remembered = read_ledger_mark(config.store_root)
            mark = ledger.store_folders.advance_mark(remembered.count if remembered else 0)
            if config.store_root.is_dir():
                write_ledger_mark(config.store_root, mark)
            clear_alarm(config.run_dir, ALARM)
    console = Console(highlight=False, soft_wrap=True)
    if as_json:
        console.print(json.dumps(asdict(done)), markup=False)
    else:
        for line in _told(done):
            console.print(line, markup=False)
    return int(bool(done.young + done.contested + done.unreadable))


def _require_folders(config: Config, ledger: Ledger) -> None:
    """Compare with no mount point: every file would be missing there."""
    for kind, root in ((STORE, config.store_root), (QUARANTINE, config.quarantine_dir)):
        require_store(root, ledger.store_folders.find_folder(kind))


class Rebuilder:
    """Makes the missing rows of one folder."""

    def __init__(
        self, config: Config, ledger: Ledger, kind: str, done: Rebuilt, *, makes_deliveries: bool
    ) -> None:
        self._ledger = ledger
        self._kind = kind
        self._done = done
        self._root = config.store_root if kind == STORE else config.quarantine_dir
        self._router = NodeRouter(config)
        self._makes_deliveries = makes_deliveries
        # Never prepared: it gives no names, and its lock alone is used.
        self._store = FileStore(
            self._root, shared_lock=ledger.create_removal_lock() if kind == STORE else None
        )

    def run(self, young_seconds: float, say: Callable[[str], None]) -> None:
        """Walk the folder once.

        Raises:
            LedgerError: The ledger is away.
            StoreError: Files cannot be kept from being removed.
        """
        done = self._done
        if self._root.is_dir():
            (self._root / STAGING).mkdir(mode=0o750, exist_ok=True)  # for the lock
        for chunk in _chunks(_walk(self._root)):
            done.files += len(chunk)
            missing = self._without_row(chunk)
            done.known += len(chunk) - len(missing)
            last_ms = unix_ms() - round(young_seconds * 1000)
            old = [one for one in missing if one.named_ms <= last_ms or not young_seconds]
            done.young += len(missing) - len(old)
            rows = [row for one in old if (row := self._row(one)) is not None]
            if rows:
                self._record(rows)
            say(f"{done.files} files looked at, {done.new} rows made")

    def _without_row(self, chunk: Sequence[_Found]) -> list[_Found]:
        claimed = self._ledger.instances.find_claimed_keys([one.key for one in chunk])
        return [one for one in chunk if one.key not in claimed]

    def _row(self, found: _Found) -> tuple[_Found, NewInstance] | None:
        """The row of a file; None where it is left out, which is noted."""
        name = f"{self._kind}/{found.key}"
        try:
            with _opened(self._root, found.key) as source:
                facts = read_instance_header(source.fd, source.size, self._router.tags)
        except FileNotFoundError:
            return None
        except (PeerError, OSError) as error:
            if self._kind == QUARANTINE and isinstance(error, PeerError):
                return found, self._quarantined(found, _NO_FACTS)
            self._done.unreadable += 1
            self._done.leave(name, str(error))
            return None
        if self._kind == QUARANTINE:
            return found, self._quarantined(found, facts)
        state, digest = _standing(found.key, facts)
        routing = self._router.route_instance(facts)
        return found, self._new(found, facts, state, NOTE, routing, copy_digest=digest)

    def _quarantined(self, found: _Found, facts: InstanceHeader) -> NewInstance:
        refused = _REFUSED.search(found.key)
        status = int(refused[1], 16) if refused else 0
        return self._new(found, facts, InstanceState.QUARANTINED, UNKNOWN_REASON, None, refused_status=status)

    def _new(
        self,
        found: _Found,
        facts: InstanceHeader,
        state: InstanceState,
        note: str,
        routing: RoutingDecision | None,
        **more: Any,
    ) -> NewInstance:
        wanted = routing.destinations if routing is not None and self._makes_deliveries else ()
        return NewInstance(
            state=state,
            sop_instance_uid=facts.sop_instance_uid,
            sop_class_uid=facts.sop_class_uid,
            study_uid=facts.study_uid,
            series_uid=facts.series_uid,
            transfer_syntax_uid=facts.transfer_syntax_uid,
            store_key=found.key,
            size=found.facts.st_size,
            data_set_offset=facts.data_set_offset,
            calling_ae=facts.calling_ae,
            called_ae=facts.called_ae,
            source=facts.source,
            spool_ref=f"rebuilt:{uuid.uuid4().hex}",
            note=note,
            received_at=found.facts.st_mtime_ns // 1_000_000,
            # A restored file has a new ctime; for retention it is as old as it was.
            stored_at=min(found.named_ms, found.facts.st_mtime_ns // 1_000_000),
            routed=f"{NOTE}: {routing.routed if wanted else 'no deliveries asked for'}" if routing else "",
            destinations=wanted,
            **more,
        )

    def _record(self, rows: Sequence[tuple[_Found, NewInstance]]) -> None:
        """Record what is still the file that was read, while nothing is replaced or removed."""
        with self._store.open_batch() as batch:
            self._store.acquire_removal_lock(batch)
            leaving = self._leaving([row for _, row in rows])
            meant = []
            for found, row in rows:
                if not self._is_there(found):
                    continue
                if row.store_key in leaving:
                    self._contest(row, "it is being removed or replaced")
                else:
                    meant.append(row)
            outcomes = self._ledger.instances.record(meant)
        for row, outcome in zip(meant, outcomes, strict=True):
            if outcome is Outcome.RECORDED:
                self._done.new += 1
                self._done.deliveries += len(row.destinations)
            elif row.store_key in self._ledger.instances.find_claimed_keys([row.store_key]):
                self._done.known += 1  # a worker was quicker
            else:
                self._contest(row, f"another file of the SOP instance UID {row.sop_instance_uid} has a row")

    def _contest(self, row: NewInstance, why: str) -> None:
        self._done.contested += 1
        self._done.leave(f"{self._kind}/{row.store_key}", why)

    def _leaving(self, rows: Sequence[NewInstance]) -> set[str]:
        if self._kind == QUARANTINE:
            return set()
        held = self._ledger.instances.find_store_keys({row.sop_instance_uid for row in rows})
        return set().union(*held.removing.values(), *held.replaced.values())

    def _is_there(self, found: _Found) -> bool:
        with contextlib.suppress(OSError):
            now = os.stat(self._root / found.key, follow_symlinks=False)
            return (now.st_dev, now.st_ino) == (found.facts.st_dev, found.facts.st_ino)
        return False


_NO_FACTS: Final = InstanceHeader()


def _standing(key: str, facts: InstanceHeader) -> tuple[InstanceState, str]:
    """What a file's name says that it is, and the digest of a further copy."""
    copy = _COPY.search(key)
    if copy:
        return InstanceState.STORED, copy[1]
    name = key.rpartition("/")[2]
    if f"~{make_safe_name(facts.transfer_syntax_uid, 'no-syntax')}" in name:
        return InstanceState.VARIANT, ""
    return InstanceState.STORED, ""


def _chunks(found: Iterator[_Found]) -> Iterator[list[_Found]]:
    while chunk := list(islice(found, CHUNK)):
        yield chunk


def _walk(root: Path) -> Iterator[_Found]:
    """All files below a folder, in no order; nothing of a folder is kept in memory but its subfolders."""
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            entries = os.scandir(root / folder)
        except FileNotFoundError:
            continue
        with entries:
            for entry in entries:
                key = f"{folder}/{entry.name}" if folder else entry.name
                if key == STAGING:
                    continue
                with contextlib.suppress(FileNotFoundError):
                    facts = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(facts.st_mode):
                        folders.append(key)
                    elif stat.S_ISREG(facts.st_mode):
                        yield _Found(key, facts)


@contextlib.contextmanager
def _opened(root: Path, key: str) -> Iterator[SourceFile]:
    path = root / key
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        yield SourceFile.of(str(path), fd, synced=True)
    finally:
        os.close(fd)


def _find_files_without_row(
    ledger: Ledger, kind: str, root: Path, chunk: Sequence[_Found], found: Differences
) -> None:
    found.files += len(chunk)
    claimed = ledger.instances.find_claimed_keys([one.key for one in chunk])
    for one in chunk:
        # Of one that is gone by now there is nothing to say; nor of one that a worker is about to record.
        young = time.time() - one.facts.st_ctime < YOUNG_SECONDS
        if one.key in claimed:
            continue
        if young and not _stays_without(ledger, one.key):
            continue
        if (root / one.key).exists():
            found.add("without_row", f"{kind}/{one.key}")


def _stays_without(ledger: Ledger, key: str, seconds: float = 2.0) -> bool:
    """Whether a file that was just named has no row a moment later, either."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if ledger.instances.find_claimed_keys([key]):
            return False
        time.sleep(0.1)
    return True


def _compare_rows(
    config: Config, ledger: Ledger, found: Differences, *, reads: bool, say: Callable[[str], None]
) -> None:
    last = 0
    while rows := ledger.instances.list_with_files(last, CHUNK):
        for row in rows:
            _compare(config, ledger, row, found, reads=reads)
        found.rows += len(rows)
        last = rows[-1].id
        say(f"{found.files} files and {found.rows} rows looked at")


def _compare(config: Config, ledger: Ledger, row: Instance, found: Differences, *, reads: bool) -> None:
    quarantined = row.state is InstanceState.QUARANTINED
    root, kind = (config.quarantine_dir, QUARANTINE) if quarantined else (config.store_root, STORE)
    name = f"{kind}/{row.store_key}"
    try:
        with _opened(root, row.store_key) as source:
            if source.size != row.size:
                found.add("of_other_size", name)
            elif reads and not quarantined:
                facts = read_instance_header(source.fd, source.size)
                said = (facts.sop_instance_uid, facts.sop_class_uid, facts.transfer_syntax_uid)
                if said != (row.sop_instance_uid, row.sop_class_uid, row.transfer_syntax_uid):
                    found.add("other_objects", name)
    except FileNotFoundError:
        # It may have been removed since the row was read, which the ledger then says.
        if ledger.instances.find_claimed_keys([row.store_key]):
            found.add("without_file", name)
    except (PeerError, OSError):
        found.add("unreadable", name)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Says how far it is, in a terminal."""
    with Console(stderr=True).status("looking") as status:
        yield lambda text: status.update(escape(text))


def _lines(found: Differences, cause: str) -> Iterator[str]:
    if cause:
        yield cause
    yield f"{found.files} files, {found.rows} rows with a file"
    for kind, said in _KINDS.items():
        if found.counts[kind]:
            yield f"{found.counts[kind]} {said}"
            yield from (f"  {printable(name)}" for name in found.examples[kind])


def _told(done: Rebuilt) -> Iterator[str]:
    yield f"{done.files} files: {done.known} had a row, {done.new} have one now"
    yield f"{done.deliveries} deliveries are to be made, as the routes say"
    if done.young:
        yield (
            f"{done.young} were stored within {YOUNG_SECONDS:.0f} s, and workers may be about to record "
            "them: run the same again"
        )
    if done.contested:
        yield f"{done.contested} were left out, since another file of their UID has a row or they are leaving"
    if done.unreadable:
        yield f"{done.unreadable} were left out, since they cannot be read"
    yield from (f"  {printable(one)}" for one in done.examples)
