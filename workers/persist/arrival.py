"""From a reference to an open file, and to what the ledger wants to know of it."""

import contextlib
import itertools
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self, cast

import redis
import structlog

from ingest.dicom.instance_header import (
    SERIES_INSTANCE_UID,
    SOP_CLASS_UID,
    SOP_INSTANCE_UID,
    STUDY_INSTANCE_UID,
    UIDS,
    begins_with_file_meta,
    plain_uid,
    read_header,
)
from ingest.dicom.part10 import read_file_meta
from ingest.errors import GoneError, PathEscapesError, PeerError, SpoolError
from ingest.filesystem.beneath import open_beneath
from ingest.ledger.records import SPOOL_DAMAGE
from ingest.queue.client import remove_foreign_keys
from ingest.queue.keys import data_key
from ingest.routing.router import RoutingInput
from ingest.spool import segment
from ingest.spool.reference import Reference
from ingest.workers.store.filesystem import FileStore, Source

HEADER_MAX_BYTES: Final = 64 << 20
"""Bytes of a data set that are read, or inflated, to find attributes; values passed over do not count."""


log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Facts:
    """What a Part 10 file says of itself.

    Attributes:
        size: Bytes of the file.
        data_set_offset: Where in it the data set begins.
        conflict: Why it must not be stored, or empty.
        note: What an operator should know, or empty.
        attributes: Values of the attributes that were asked for and are there, by tag.
        receiver, certificate: As in `ingest.routing.router.RoutingInput`.
    """

    sop_instance_uid: str
    sop_class_uid: str
    study_uid: str
    series_uid: str
    transfer_syntax_uid: str
    calling_ae: str
    called_ae: str
    source: str
    size: int
    data_set_offset: int
    conflict: str = ""
    note: str = ""
    attributes: Mapping[int, bytes] = field(default_factory=dict)
    receiver: str = ""
    certificate: tuple[str, ...] = ()

    @property
    def subject(self) -> RoutingInput:
        """What routes decide on."""
        return RoutingInput(
            self.calling_ae,
            self.called_ae,
            self.sop_class_uid,
            self.transfer_syntax_uid,
            self.attributes,
            self.receiver,
            self.certificate,
            self.source,
        )


@dataclass(frozen=True, slots=True)
class Arrival:
    """One instance in hand.

    Attributes:
        reference: Where it waits.
        source: Its open file.
        received_at: When it was received, in Unix milliseconds.
        damage: Why its bytes are not those that were received, or empty.
    """

    reference: Reference
    source: Source
    received_at: int
    damage: str = ""

    @property
    def spool_ref(self) -> str:
        """What the ledger calls the reference."""
        return spool_ref(self.reference)


def spool_ref(reference: Reference) -> str:
    """The name of a reference in the ledger; unique for ever."""
    return f"{reference.spool}:{reference.location.name}"


@contextlib.contextmanager
def open_spooled(reference: Reference, spool_dir: Path, *, synced: bool) -> Iterator[Arrival]:
    """Open what a reference with carrier "spool" points to.

    Raises:
        GoneError: The file is not there.
        SpoolError: The reference is not one into this spool.
        OSError: The file cannot be read.
    """
    path = f"{spool_dir}/{reference.path}"
    try:
        # O_NONBLOCK: a named pipe would wait for its other end.
        fd = open_beneath(spool_dir, reference.path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise GoneError(f"{path} is not there") from None
    except PathEscapesError as error:
        raise SpoolError(f"{path}: {error}") from None
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise SpoolError(f"{path} is no file")
        yield Arrival(reference, Source.of(path, fd, synced=synced), facts.st_mtime_ns // 1_000_000)
    finally:
        os.close(fd)


class OpenSegments:
    """The segments that one batch reads: each opened once, and not used again before the batch ends."""

    def __init__(self, spool_dir: Path) -> None:
        self._spool_dir = spool_dir
        self._open: dict[str, segment.Segment] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for opened in self._open.values():
            opened.close()
        self._open.clear()

    def read(self, reference: Reference) -> tuple[segment.Record, memoryview, str]:
        """The record that a reference points to, its Part 10 file, and why that is damaged, or empty.

        Raises:
            GoneError: It is not there, or not waited for any more.
            SpoolError: The reference is not one into a segment of this spool, or the record is not complete.
            OSError: The segment cannot be read.
        """
        try:
            opened = self._segment(reference)
            found = opened.read(reference.offset, reference.length)
            if found is not None and not found[0].matches(found[1]):
                # Once more, from the disk.
                os.posix_fadvise(opened.fd, reference.offset, reference.length, os.POSIX_FADV_DONTNEED)
                found = opened.read(reference.offset, reference.length)
            if found is not None:
                record, data = found
                return record, data, "" if record.matches(data) else self._damage(opened, record, reference)
        except FileNotFoundError:
            pass
        raise GoneError(f"{self._spool_dir}/{reference.location.name} is not there")

    def _damage(self, opened: segment.Segment, record: segment.Record, reference: Reference) -> str:
        why = opened.classify_damage(record)
        if why is None:
            raise SpoolError(f"{reference.location.name} is not complete; it may be being written")
        log.error("record_damaged", record=reference.location.name, why=why, remedy="see `ingest quarantine`")
        return f"{SPOOL_DAMAGE}: {why}"

    def mark_done(self, reference: Reference) -> None:
        """Let the spool write over what a reference points to; raises as `read`, but never GoneError."""
        with contextlib.suppress(FileNotFoundError):
            self._segment(reference).mark_persisted(reference.offset)

    def _segment(self, reference: Reference) -> segment.Segment:
        where = reference.path
        opened = self._open.get(where)
        if opened is None:
            if not segment.SEGMENT_PATH.fullmatch(where):
                raise SpoolError(f"{where!r} is not a segment in the spool {self._spool_dir}")
            opened = self._open[where] = segment.Segment(f"{self._spool_dir}/{where}", marking=True)
        return opened


@contextlib.contextmanager
def open_in_segment(reference: Reference, segments: OpenSegments, store: FileStore) -> Iterator[Arrival]:
    """Copy what a reference into a segment points to into a temporary file of the store.

    From there it is linked: a part of a file cannot have a name of its own.

    Raises:
        GoneError: It is not there, or not waited for any more.
        SpoolError: The reference is not one into a segment of this spool.
        StoreAwayError: There is no room for it.
        OSError: The segment cannot be read.
    """
    record, data, damage = segments.read(reference)
    with store.temporary() as (path, fd):
        store.append(fd, data)
        # This frame lives for as long as the batch does: nothing of the data set may stay in it.
        del data
        yield Arrival(reference, Source.of(path, fd, synced=False), record.received_ms, damage)


@contextlib.contextmanager
def open_carried(
    reference: Reference, client: redis.Redis, store: FileStore, received_at: int
) -> Iterator[Arrival]:
    """Fetch what a reference with carrier "redis" points to into a temporary file of the store.

    Raises:
        GoneError: The data set is not on the queue, or not all of it.
        redis.RedisError: Redis is away.
        StoreAwayError: There is no room for it.
    """
    key, size = data_key(reference.spool, reference.location.name), 0
    with store.temporary() as (path, fd):
        # Chunk by chunk: only one of them is in memory.
        for number in itertools.count():
            chunk = _chunk(client, key, number)
            if not chunk or size > reference.length:
                break
            store.append(fd, chunk)
            size += len(chunk)
        if size != reference.length:
            raise GoneError(f"{key} holds {size} of {reference.length} bytes")
        yield Arrival(reference, Source.of(path, fd, synced=False), received_at)


def _chunk(client: redis.Redis, key: str, number: int) -> bytes | None:
    """One chunk of a data set on the queue; None after the last one.

    Raises:
        GoneError: The key holds something else, and has been removed.
        redis.RedisError: Redis is away.
    """
    try:
        return cast("bytes | None", client.lindex(key, number))
    except redis.RedisError as error:
        if remove_foreign_keys(client, {key: "list"}, error):
            raise GoneError(f"{key} holds no data set") from error
        raise


def identify(source: Source, tags: Sequence[int] = ()) -> Facts:
    """Read File Meta and UIDs of a Part 10 file, without reading all of it.

    Args:
        source: The file.
        tags: Further top-level attributes to read.

    Raises:
        PeerError: It is no Part 10 file, or its data set cannot be read as its transfer syntax.
        OSError: The disk is failing.
    """
    meta, offset = read_file_meta(source.fd)
    wanted = sorted({*UIDS, *tags})
    header = read_header(
        source.fd, offset, source.size - offset, meta.transfer_syntax_uid, wanted, HEADER_MAX_BYTES
    )
    if header.is_empty and header.damage:
        raise PeerError(f"the data set cannot be read: {header.remarks[0]}")
    conflict = note = ""
    if header.damage:
        note = f"its header is damaged: {', '.join(header.remarks)}"
    elif not header.is_whole:
        note = f"not all attributes were found in the first {HEADER_MAX_BYTES} bytes of its header"
    if begins_with_file_meta(source.fd, offset, meta.transfer_syntax_uid):
        conflict = "the data set begins with group 0002"
    for tag, name, said in (
        (SOP_CLASS_UID, "SOP Class UID", meta.sop_class_uid),
        (SOP_INSTANCE_UID, "SOP Instance UID", meta.sop_instance_uid),
    ):
        # One that is missing or empty contradicts nothing: the listener took it, too.
        if header.uid(tag) not in {"", plain_uid(said)}:
            conflict = f"the data set has another {name} than the C-STORE request had"
    return Facts(
        sop_instance_uid=meta.sop_instance_uid,
        sop_class_uid=meta.sop_class_uid,
        study_uid=header.uid(STUDY_INSTANCE_UID),
        series_uid=header.uid(SERIES_INSTANCE_UID),
        transfer_syntax_uid=meta.transfer_syntax_uid,
        calling_ae=meta.calling_ae,
        called_ae=meta.called_ae,
        source=meta.source_address or "",
        size=source.size,
        data_set_offset=offset,
        conflict=conflict,
        note=note,
        attributes={tag: header.values[tag] for tag in tags if tag in header.values},
        receiver=meta.receiving_address or "",
        certificate=meta.certificate,
    )
