"""Find instances that are committed in the spool, and that no persist worker has recorded yet."""

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ingest.dicom.file_header import InstanceHeader, make_unreadable_header, read_instance_header
from ingest.errors import PathEscapesError, PeerError
from ingest.filesystem.beneath import open_beneath
from ingest.spool import inventory, segment
from ingest.spool.reference import Location

ACCESSION_NUMBER: Final = 0x0008_0050

ENTRIES_MAX: Final = 20_000
SEARCH_SECONDS: Final = 5.0
"""Limits of one search. A spool with more entries belongs to a node whose workers are behind."""


@dataclass(frozen=True, slots=True)
class WaitingInstance:
    """A committed instance that waits in the spool.

    Attributes:
        header: Its attributes, as far as they can be read.
        received_at: Time of arrival, in Unix milliseconds.
        location: `Location.name` of the entry.
    """

    header: InstanceHeader
    received_at: int
    location: str

    @property
    def accession_number(self) -> str:
        """The accession number, as far as it is ASCII."""
        raw = self.header.attributes.get(ACCESSION_NUMBER, b"")
        return raw.decode("ascii", "replace").strip(" \0")

    def name_kind(self, wanted: str) -> str:
        """Tell what `wanted` is of this instance; empty if it is nothing of it."""
        header = self.header
        kinds = {
            self.accession_number: "accession number",
            header.series_uid: "series",
            header.study_uid: "study",
            header.sop_instance_uid: "instance",
        }
        return kinds.get(wanted, "") if wanted else ""


@dataclass(frozen=True, slots=True)
class SpoolSearch:
    """The result of a search.

    Attributes:
        found: Entries that match, oldest first.
        is_complete: Whether every waiting entry was examined.
        is_fresh: Whether the search was made just now.
    """

    found: tuple[WaitingInstance, ...]
    is_complete: bool
    is_fresh: bool = True


def find_waiting(spool_dir: Path, wanted: str, *, seconds: float = SEARCH_SECONDS) -> SpoolSearch:
    """Find the waiting entries with a SOP, series or study instance UID or an accession number.

    Args:
        spool_dir: The folder of the spool.
        wanted: UID or accession number.
        seconds: Longest duration of the search. What it has found until then is its result.
    """
    found: list[WaitingInstance] = []
    until, count = time.monotonic() + seconds, 0
    for slot in inventory.list_slots(spool_dir):
        for location in inventory.list_waiting(spool_dir, slot):
            count += 1
            if count > ENTRIES_MAX or time.monotonic() > until:
                return SpoolSearch(tuple(found), False)
            for header, received_at in _read_entry(spool_dir, location):
                entry = WaitingInstance(header, received_at, location.name)
                if entry.name_kind(wanted):
                    found.append(entry)
    return SpoolSearch(tuple(sorted(found, key=lambda each: each.received_at)), True)


def _read_entry(spool_dir: Path, location: Location) -> Iterator[tuple[InstanceHeader, int]]:
    """Yield the header of an entry and its time of arrival; nothing if a worker took it meanwhile."""
    with contextlib.suppress(OSError, PathEscapesError):
        if location.offset:
            yield from _read_record(spool_dir, location)
            return
        fd = open_beneath(spool_dir, location.path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode):
                yield _read_header(fd, status.st_size), status.st_mtime_ns // 1_000_000
        finally:
            os.close(fd)


def _read_record(spool_dir: Path, location: Location) -> Iterator[tuple[InstanceHeader, int]]:
    with segment.Segment(spool_dir / location.path) as opened:
        found = opened.read(location.offset, location.length)
    if found is None:
        return
    record, data = found
    # The readers of headers take a file. A record is small, so it is copied to one in memory.
    fd = os.memfd_create("record", os.MFD_CLOEXEC)
    try:
        os.write(fd, data)
        yield _read_header(fd, len(data)), record.received_ms
    finally:
        os.close(fd)


def _read_header(fd: int, size: int) -> InstanceHeader:
    try:
        return read_instance_header(fd, size, (ACCESSION_NUMBER,))
    except PeerError as error:
        return make_unreadable_header(fd, size, str(error))
