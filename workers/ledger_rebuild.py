"""`ingest ledger verify` and `rebuild`: compare the rows of the ledger with the files in the store.

Both commands walk the folders in bounded memory. A rebuild makes a row for each file without one, so the same
command again finishes the rest. It may run beside a node:

- A file that got its name a moment ago is left out, because its worker may be about to record it.
- Rows are made under the removal lock of the store, and only for files that still exist.
- If a worker and a rebuild record the same file, the ledger keeps one row.
"""

import contextlib
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

from ingest.alarms import clear_alarm
from ingest.clock import unix_ms
from ingest.config.model import Config
from ingest.dicom.file_header import InstanceHeader, read_instance_header
from ingest.dicom.study_attributes import StudyAttributeReader
from ingest.errors import PeerError
from ingest.filesystem import node_lock
from ingest.filesystem.folder_identity import read_ledger_mark, require_store, write_ledger_mark
from ingest.ledger import InstanceState, Ledger, NewInstance, Outcome
from ingest.ledger.records import Instance
from ingest.ledger.store_agreement import ALARM, find_disagreement
from ingest.ledger.store_folders import QUARANTINE, STORE
from ingest.routing.node_router import NodeRouter
from ingest.routing.router import RoutingDecision
from ingest.workers.delivery_terms import CompletionPolicy, make_completion_terms, make_terms
from ingest.workers.store.filesystem import FileStore, SourceFile
from ingest.workers.store.keys import STAGING, make_safe_name

CHUNK: Final = 200
"""Files that are handled together."""

YOUNG_SECONDS: Final = 60.0
"""A worker may be about to record a file whose name is younger."""

SHOWN: Final = 20
"""Examples of each kind that are kept."""

NOTE: Final = "rebuilt from the store"
UNKNOWN_REASON: Final = "rebuilt from the quarantine: why it was set aside is not known any more"

# The names that `ingest.workers.store.keys` gives to further copies, and to copies of refused instances.
_COPY: Final = re.compile(r"~([0-9a-f]{32})(?=[./]|$)")
_REFUSED: Final = re.compile(r"\.ready\.[^.]+\.([0-9A-F]{4})\.dcm\.[0-9]+\.dcm$")
_KINDS: Final = ("without_row", "without_file", "of_other_size", "other_objects", "unreadable")
"""Kinds of differences: files without a row, rows without a file, files that differ from their row."""


@dataclass(frozen=True, slots=True)
class _File:
    """A file of store or quarantine."""

    key: str
    status: os.stat_result

    @property
    def renamed_ms(self) -> int:
        """When the file last got or lost a name, in Unix milliseconds."""
        return self.status.st_ctime_ns // 1_000_000


@dataclass(slots=True)
class LedgerDifferences:
    """The differences between ledger and files.

    Attributes:
        files: Files that were compared.
        rows: Rows that were compared.
        counts: The number of differences of each kind.
        examples: The first names of each kind.
        doubt: Why the ledger may not belong to the store; empty if it does.
    """

    files: int = 0
    rows: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_KINDS, 0))
    examples: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in _KINDS})
    doubt: str = ""

    @property
    def differs(self) -> bool:
        """Whether there is any difference."""
        return bool(self.doubt) or any(self.counts.values())

    def to_json(self) -> dict[str, Any]:
        """Return the differences for JSON."""
        return asdict(self)

    def add_difference(self, kind: str, name: str) -> None:
        """Count a difference.

        Args:
            kind: One of `_KINDS`.
            name: The file, as `store/KEY` or `quarantine/KEY`.
        """
        self.counts[kind] += 1
        if len(self.examples[kind]) < SHOWN:
            self.examples[kind].append(name)


@dataclass(slots=True)
class RebuildReport:
    """The result of a rebuild.

    Attributes:
        files: Files that were examined.
        known: Files that had a row.
        new: Files that have a row now.
        deliveries: Deliveries of the new rows.
        young: Files that were left out beside a running node, because a worker may be about to record them.
        contested: Files that were left out, because another file of their UID has a row or they are removed.
        unreadable: Files that were left out, because they are no DICOM files or cannot be read.
        examples: The first files that were left out, with the cause.
    """

    files: int = 0
    known: int = 0
    new: int = 0
    deliveries: int = 0
    young: int = 0
    contested: int = 0
    unreadable: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def left_out(self) -> bool:
        """Whether any file was left out."""
        return bool(self.young + self.contested + self.unreadable)

    def to_json(self) -> dict[str, Any]:
        """Return the numbers for JSON."""
        return asdict(self)

    def add_example(self, name: str, cause: str) -> None:
        """Note a file that was left out."""
        if len(self.examples) < SHOWN:
            self.examples.append(f"{name}: {cause}")


def verify_ledger(
    config: Config, *, reads: bool, report_progress: Callable[[str], None]
) -> LedgerDifferences:
    """Compare the rows of the ledger with the files of store and quarantine.

    Args:
        config: The configuration.
        reads: Whether to read the files, and compare their UIDs.
        report_progress: Called with a text about the progress.

    Raises:
        LedgerError: The ledger is away or malformed.
    """
    differences = LedgerDifferences()
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        ledger.require_schema()
        _require_folders(config, ledger)
        for kind, root in ((STORE, config.store_root), (QUARANTINE, config.quarantine_dir)):
            for chunk in _split_into_chunks(_walk_files(root)):
                _find_files_without_row(ledger, kind, root, chunk, differences)
                report_progress(f"{differences.files} files compared")
        _compare_rows(config, ledger, differences, reads=reads, progress=report_progress)
        differences.doubt = find_disagreement(config.store_root, ledger)
    return differences


def rebuild_ledger(
    config: Config, *, makes_deliveries: bool, report_progress: Callable[[str], None]
) -> RebuildReport:
    """Make the missing rows.

    Args:
        config: The configuration.
        makes_deliveries: Whether to make the deliveries that the routes ask for.
        report_progress: Called with a text about the progress.

    Raises:
        LedgerError: The ledger is away or malformed. The same call again finishes the rest.
        StoreError: The store cannot be used.
    """
    report = RebuildReport()
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        ledger.migrate()
        _require_folders(config, ledger)
        runs_beside_workers = (
            ledger.database.dialect != "sqlite"
            or node_lock.is_node_running(config.run_dir)
            or node_lock.are_workers_running(config.run_dir)
        )
        for kind in (STORE, QUARANTINE):
            rebuild = LedgerRebuild(config, ledger, kind, report, makes_deliveries=makes_deliveries)
            rebuild.run(YOUNG_SECONDS if runs_beside_workers else 0.0, report_progress)
        if not report.young:
            old_mark = read_ledger_mark(config.store_root)
            mark = ledger.store_folders.advance_mark(old_mark.count if old_mark else 0)
            if config.store_root.is_dir():
                write_ledger_mark(config.store_root, mark)
            clear_alarm(config.run_dir, ALARM)
    return report


def _require_folders(config: Config, ledger: Ledger) -> None:
    """Require the folders that the ledger knows. On an empty mount point every file would be missing."""
    # INVARIANT 13: nothing replaces a folder that is not mounted.
    for kind, root in ((STORE, config.store_root), (QUARANTINE, config.quarantine_dir)):
        require_store(root, ledger.store_folders.find_folder(kind))


class LedgerRebuild:
    """Makes the missing rows of one folder."""

    def __init__(
        self, config: Config, ledger: Ledger, kind: str, report: RebuildReport, *, makes_deliveries: bool
    ) -> None:
        self._ledger = ledger
        self._kind = kind
        self._report = report
        self._root = config.store_root if kind == STORE else config.quarantine_dir
        self._router = NodeRouter(config)
        self._completion = CompletionPolicy.from_config(config)
        self._attribute_reader = StudyAttributeReader(config.ledger.index)
        self._makes_deliveries = makes_deliveries
        # Not prepared, because only its removal lock is used.
        shared_lock = ledger.create_removal_lock() if kind == STORE else None
        self._store = FileStore(self._root, shared_lock=shared_lock)

    def run(self, young_seconds: float, progress: Callable[[str], None]) -> None:
        """Walk the folder once, and make the missing rows.

        Args:
            young_seconds: Files whose name is younger are left out.
            progress: Shows a text to a person.

        Raises:
            LedgerError: The ledger is away.
            StoreError: The removal lock cannot be acquired.
        """
        report = self._report
        if self._root.is_dir():
            (self._root / STAGING).mkdir(mode=0o750, exist_ok=True)  # for the lock
        for chunk in _split_into_chunks(_walk_files(self._root)):
            report.files += len(chunk)
            missing = self._find_without_row(chunk)
            report.known += len(chunk) - len(missing)
            last_ms = unix_ms() - round(young_seconds * 1000)
            old = [file for file in missing if file.renamed_ms <= last_ms or not young_seconds]
            report.young += len(missing) - len(old)
            rows = [row for file in old if (row := self._make_row_if_sound(file)) is not None]
            if rows:
                self._record_rows(rows)
            progress(f"{report.files} files compared, {report.new} rows made")

    def _find_without_row(self, chunk: Sequence[_File]) -> list[_File]:
        claimed = self._ledger.instances.find_claimed_keys([file.key for file in chunk])
        return [file for file in chunk if file.key not in claimed]

    def _make_row_if_sound(self, file: _File) -> tuple[_File, NewInstance] | None:
        """Make the row of a file; None if the file is left out."""
        try:
            with _open_file(self._root, file.key) as source:
                header = read_instance_header(
                    source.fd, source.size, self._router.tags, self._attribute_reader.tags
                )
        except FileNotFoundError:
            return None
        except (PeerError, OSError) as error:
            if self._kind == QUARANTINE and isinstance(error, PeerError):
                return file, self._make_quarantined_row(file, _NO_HEADER)
            self._report.unreadable += 1
            self._report.add_example(f"{self._kind}/{file.key}", str(error))
            return None
        if self._kind == QUARANTINE:
            return file, self._make_quarantined_row(file, header)
        state, digest = _parse_state(file.key, header)
        routing = self._router.route_instance(header)
        return file, self._make_row(file, header, state, NOTE, routing, copy_digest=digest)

    def _make_quarantined_row(self, file: _File, header: InstanceHeader) -> NewInstance:
        refused = _REFUSED.search(file.key)
        status = int(refused[1], 16) if refused else 0
        state = InstanceState.QUARANTINED
        return self._make_row(file, header, state, UNKNOWN_REASON, None, refused_status=status)

    def _make_row(
        self,
        file: _File,
        header: InstanceHeader,
        state: InstanceState,
        note: str,
        routing: RoutingDecision | None,
        **more: Any,
    ) -> NewInstance:
        destinations = routing.destinations if routing is not None and self._makes_deliveries else ()
        modified_ms = file.status.st_mtime_ns // 1_000_000
        return NewInstance(
            state=state,
            sop_instance_uid=header.sop_instance_uid,
            sop_class_uid=header.sop_class_uid,
            study_uid=header.study_uid,
            series_uid=header.series_uid,
            transfer_syntax_uid=header.transfer_syntax_uid,
            store_key=file.key,
            size=file.status.st_size,
            data_set_offset=header.data_set_offset,
            calling_ae=header.calling_ae,
            called_ae=header.called_ae,
            source=header.source,
            certificate=header.fingerprint,
            spool_ref=f"rebuilt:{uuid.uuid4().hex}",
            note=note,
            received_at=modified_ms,
            # A file restored from a backup has a new ctime. Retention must not take it for new.
            stored_at=min(file.renamed_ms, modified_ms),
            routed=f"{NOTE}: {routing.routed if destinations else 'no deliveries asked for'}"
            if routing
            else "",
            destinations=destinations,
            terms=make_terms(routing, header) if routing is not None and destinations else {},
            completion=make_completion_terms(self._completion, routing, header)
            if routing is not None and destinations
            else None,
            attributes=self._attribute_reader.read_attributes(header.attributes),
            **more,
        )

    def _record_rows(self, rows: Sequence[tuple[_File, NewInstance]]) -> None:
        """Record the rows of files that are still the same, under the removal lock."""
        with self._store.open_batch() as batch:
            self._store.acquire_removal_lock(batch)
            leaving = self._find_leaving_keys([row for _, row in rows])
            new_rows = []
            for file, row in rows:
                if not self._is_unchanged(file):
                    continue
                if row.store_key in leaving:
                    self._add_contested(row, "it is being removed or replaced")
                else:
                    new_rows.append(row)
            outcomes = self._ledger.instances.record(new_rows)
        for row, outcome in zip(new_rows, outcomes, strict=True):
            if outcome is Outcome.RECORDED:
                self._report.new += 1
                self._report.deliveries += len(row.destinations)
            elif row.store_key in self._ledger.instances.find_claimed_keys([row.store_key]):
                self._report.known += 1  # a worker was faster
            else:
                cause = f"another file of the SOP instance UID {row.sop_instance_uid} has a row"
                self._add_contested(row, cause)

    def _add_contested(self, row: NewInstance, cause: str) -> None:
        self._report.contested += 1
        self._report.add_example(f"{self._kind}/{row.store_key}", cause)

    def _find_leaving_keys(self, rows: Sequence[NewInstance]) -> set[str]:
        if self._kind == QUARANTINE:
            return set()
        keys = self._ledger.instances.find_store_keys({row.sop_instance_uid for row in rows})
        return set().union(*keys.removing.values(), *keys.replaced.values())

    def _is_unchanged(self, file: _File) -> bool:
        with contextlib.suppress(OSError):
            now = os.stat(self._root / file.key, follow_symlinks=False)
            return (now.st_dev, now.st_ino) == (file.status.st_dev, file.status.st_ino)
        return False


_NO_HEADER: Final = InstanceHeader()


def _parse_state(key: str, header: InstanceHeader) -> tuple[InstanceState, str]:
    """Parse from a store key the state of its file, and the digest of a further copy."""
    copy = _COPY.search(key)
    if copy:
        return InstanceState.STORED, copy[1]
    name = key.rpartition("/")[2]
    if f"~{make_safe_name(header.transfer_syntax_uid, 'no-syntax')}" in name:
        return InstanceState.VARIANT, ""
    return InstanceState.STORED, ""


def _split_into_chunks(files: Iterator[_File]) -> Iterator[list[_File]]:
    while chunk := list(islice(files, CHUNK)):
        yield chunk


def _walk_files(root: Path) -> Iterator[_File]:
    """Yield all files below a folder, in no order. Only names of subfolders are kept in memory."""
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
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode):
                        folders.append(key)
                    elif stat.S_ISREG(status.st_mode):
                        yield _File(key, status)


@contextlib.contextmanager
def _open_file(root: Path, key: str) -> Iterator[SourceFile]:
    path = root / key
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        yield SourceFile.of(str(path), fd, synced=True)
    finally:
        os.close(fd)


# --- verify


def _find_files_without_row(
    ledger: Ledger, kind: str, root: Path, chunk: Sequence[_File], differences: LedgerDifferences
) -> None:
    differences.files += len(chunk)
    claimed = ledger.instances.find_claimed_keys([file.key for file in chunk])
    for file in chunk:
        if file.key in claimed:
            continue
        # A worker may be about to record a young file. A file that is gone by now is no difference.
        is_young = time.time() - file.status.st_ctime < YOUNG_SECONDS
        if is_young and not _stays_without_row(ledger, file.key):
            continue
        if (root / file.key).exists():
            differences.add_difference("without_row", f"{kind}/{file.key}")


def _stays_without_row(ledger: Ledger, key: str, seconds: float = 2.0) -> bool:
    """Whether a young file still has no row a moment later."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if ledger.instances.find_claimed_keys([key]):
            return False
        time.sleep(0.1)
    return True


def _compare_rows(
    config: Config,
    ledger: Ledger,
    differences: LedgerDifferences,
    *,
    reads: bool,
    progress: Callable[[str], None],
) -> None:
    last = 0
    while rows := ledger.instances.list_with_files(last, CHUNK):
        for row in rows:
            _compare_row(config, ledger, row, differences, reads=reads)
        differences.rows += len(rows)
        last = rows[-1].id
        progress(f"{differences.files} files and {differences.rows} rows compared")


def _compare_row(
    config: Config, ledger: Ledger, row: Instance, differences: LedgerDifferences, *, reads: bool
) -> None:
    is_quarantined = row.state is InstanceState.QUARANTINED
    root, kind = (config.quarantine_dir, QUARANTINE) if is_quarantined else (config.store_root, STORE)
    name = f"{kind}/{row.store_key}"
    try:
        with _open_file(root, row.store_key) as source:
            if source.size != row.size:
                differences.add_difference("of_other_size", name)
            elif reads and not is_quarantined:
                header = read_instance_header(source.fd, source.size)
                uids = (header.sop_instance_uid, header.sop_class_uid, header.transfer_syntax_uid)
                if uids != (row.sop_instance_uid, row.sop_class_uid, row.transfer_syntax_uid):
                    differences.add_difference("other_objects", name)
    except FileNotFoundError:
        # The instance may have been removed since the row was read. Then the ledger says so.
        if ledger.instances.find_claimed_keys([row.store_key]):
            differences.add_difference("without_file", name)
    except (PeerError, OSError):
        differences.add_difference("unreadable", name)
