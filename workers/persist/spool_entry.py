"""Spool entries with their open files, for each carrier."""

import contextlib
import itertools
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self, cast

import redis
import structlog

from ingest.dicom.file_header import InstanceHeader
from ingest.errors import EntryGoneError, PathEscapesError, SpoolError
from ingest.filesystem.beneath import open_beneath
from ingest.queue.client import remove_foreign_keys
from ingest.queue.consumer import StreamEntry
from ingest.queue.keys import data_key
from ingest.spool import segment
from ingest.spool.reference import Reference
from ingest.workers.store.filesystem import FileStore, SourceFile

_NO_HEADER: Final = InstanceHeader()

log = structlog.get_logger()


@dataclass(slots=True)
class SpoolEntry:
    """One received instance of the current batch.

    Attributes:
        stream_entry: The stream entry that named it.
        source: Its open Part 10 file.
        received_at: Time of reception in Unix milliseconds.
        damage: Why its bytes are not the bytes that were received, or empty.
        header: The header of the file, once it was read.
        attempts: How often this batch tried to store it.
        is_given_up: Whether it was put into quarantine because it fails again and again.
    """

    stream_entry: StreamEntry
    source: SourceFile
    received_at: int
    damage: str = ""
    header: InstanceHeader = field(default=_NO_HEADER)
    attempts: int = 0
    is_given_up: bool = False

    @property
    def spool_ref(self) -> str:
        """The name of the reference in the ledger."""
        return spool_ref(self.stream_entry)


def spool_ref(reference: Reference) -> str:
    """Return the name of a reference in the ledger. No other reference ever has the same one."""
    return f"{reference.spool}:{reference.location.name}"


@contextlib.contextmanager
def open_spool_file(entry: StreamEntry, spool_dir: Path, *, synced: bool) -> Iterator[SpoolEntry]:
    """Open a whole file of the spool.

    Args:
        entry: A stream entry with carrier "spool".
        spool_dir: The folder of the spool.
        synced: Whether files of the spool are on stable storage.

    Raises:
        EntryGoneError: The file is not there.
        SpoolError: The reference does not name a file of this spool.
        OSError: The file cannot be read.
    """
    where = entry.path
    path = f"{spool_dir}/{where}"
    try:
        # INVARIANT 12: Redis is input. The path must not lead out of the spool through a link. O_NONBLOCK,
        # because opening a named pipe would wait for a writer.
        fd = open_beneath(spool_dir, where, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise EntryGoneError(f"{path} is not there") from None
    except PathEscapesError as error:
        raise SpoolError(f"{path}: {error}") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise SpoolError(f"{path} is not a regular file")
        yield SpoolEntry(entry, SourceFile.of(path, fd, synced=synced), status.st_mtime_ns // 1_000_000)
    finally:
        os.close(fd)


class OpenSegments:
    """The segments that one batch reads. Each is opened once, and its lock keeps it from being reused."""

    def __init__(self, spool_dir: Path) -> None:
        self._spool_dir = spool_dir
        self._open: dict[str, segment.Segment] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for opened in self._open.values():
            opened.close()
        self._open.clear()

    def read_record(self, reference: Reference) -> tuple[segment.Record, memoryview, str]:
        """Read the record of a reference: its header, its Part 10 file, and its damage or an empty text.

        Raises:
            EntryGoneError: The record is not there, or was marked as done.
            SpoolError: The reference does not name a record of this spool, or the record is incomplete.
            OSError: The segment cannot be read.
        """
        try:
            opened = self._open_segment(reference)
            found = opened.read(reference.offset, reference.length)
            if found is not None and not found[0].matches(found[1]):
                # The page cache may be wrong where the disk is right. Read the record again from the disk.
                os.posix_fadvise(opened.fd, reference.offset, reference.length, os.POSIX_FADV_DONTNEED)
                found = opened.read(reference.offset, reference.length)
            if found is not None:
                record, data = found
                damage = "" if record.matches(data) else self._describe_damage(opened, record, reference)
                return record, data, damage
        except FileNotFoundError:
            pass
        raise EntryGoneError(f"{self._spool_dir}/{reference.location.name} is not there")

    def _describe_damage(self, opened: segment.Segment, record: segment.Record, reference: Reference) -> str:
        why = opened.classify_damage(record)
        if why is None:
            raise SpoolError(f"{reference.location.name} is incomplete; its listener may still be writing it")
        log.error("record_damaged", record=reference.location.name, why=why, remedy="see `ingest quarantine`")
        return f"damaged in the spool: {why}"

    def mark_done(self, reference: Reference) -> None:
        """Mark a record as done, so that its segment can be reused.

        Raises:
            SpoolError: The reference does not name a record of this spool.
            OSError: The segment cannot be written.
        """
        with contextlib.suppress(FileNotFoundError):
            self._open_segment(reference).mark_persisted(reference.offset)

    def _open_segment(self, reference: Reference) -> segment.Segment:
        where = reference.path
        opened = self._open.get(where)
        if opened is None:
            # INVARIANT 12: Redis is input. The path must have the form of a segment's path.
            if not segment.SEGMENT_PATH.fullmatch(where):
                raise SpoolError(f"{where!r} is not a segment in the spool {self._spool_dir}")
            opened = self._open[where] = segment.Segment(f"{self._spool_dir}/{where}", marking=True)
        return opened


@contextlib.contextmanager
def copy_segment_record(entry: StreamEntry, segments: OpenSegments, store: FileStore) -> Iterator[SpoolEntry]:
    """Copy a record of a segment to a temporary file of the store.

    The store links that file later. A part of a segment cannot have a name.

    Raises:
        EntryGoneError: The record is not there, or was marked as done.
        SpoolError: The reference does not name a record of this spool.
        StoreAwayError: The store has no space for the copy.
        OSError: The segment cannot be read.
    """
    record, data, damage = segments.read_record(entry)
    with store.create_temporary_file() as (path, fd):
        store.append_data(fd, data)
        # This frame lives until the batch ends. A reference to the data set would keep all of them in memory.
        # INVARIANT 4: memory does not grow with the image.
        del data
        yield SpoolEntry(entry, SourceFile.of(path, fd, synced=False), record.received_ms, damage)


@contextlib.contextmanager
def copy_queued_file(entry: StreamEntry, client: redis.Redis, store: FileStore) -> Iterator[SpoolEntry]:
    """Copy a file that lies on the queue (carrier "redis") to a temporary file of the store.

    Raises:
        EntryGoneError: The data set is not on the queue, or not all of it.
        redis.RedisError: Redis is away.
        StoreAwayError: The store has no space for the copy.
    """
    size, key = 0, data_key(entry.spool, entry.location.name)
    with store.create_temporary_file() as (path, fd):
        # INVARIANT 4: memory does not grow with the image. Only one chunk is in memory at a time.
        for number in itertools.count():
            chunk = _fetch_chunk(client, key, number)
            if not chunk or size > entry.length:
                break
            store.append_data(fd, chunk)
            size += len(chunk)
        if size != entry.length:
            raise EntryGoneError(f"{key} holds {size} of {entry.length} bytes")
        yield SpoolEntry(entry, SourceFile.of(path, fd, synced=False), entry.added_at)


def _fetch_chunk(client: redis.Redis, key: str, number: int) -> bytes | None:
    """Fetch one chunk of a data set on the queue, or None after the last one.

    Raises:
        EntryGoneError: The key had another type, and was removed.
        redis.RedisError: Redis is away.
    """
    try:
        return cast("bytes | None", client.lindex(key, number))
    except redis.RedisError as error:
        if remove_foreign_keys(client, {key: "list"}, error):
            raise EntryGoneError(f"{key} held no data set") from error
        raise
