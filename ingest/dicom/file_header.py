"""The header of a Part 10 file: what its File Meta Information and the first part of its data set say."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from ingest.dicom.instance_header import (
    SERIES_INSTANCE_UID,
    SOP_CLASS_UID,
    SOP_INSTANCE_UID,
    STUDY_INSTANCE_UID,
    UIDS,
    begins_with_file_meta,
    read_data_set_header,
    strip_uid_padding,
)
from ingest.dicom.part10 import read_file_meta
from ingest.dicom.priority import MEDIUM
from ingest.errors import PeerError

HEADER_MAX_BYTES: Final = 64 << 20
"""Limit on the bytes of a data set that are read, or inflated. Skipped values do not count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceHeader:
    """The attributes that store, ledger and routes need of an instance. A text that is not known is empty.

    Attributes:
        source: Presentation address of the sender, `dicom-tls://10.0.0.7:4711`.
        size: Bytes of the whole file.
        data_set_offset: First byte of the data set in the file.
        conflict: Why the instance must not be stored.
        note: Information about the header for an operator.
        attributes: Raw values of the requested attributes that the data set has, by tag.
        receiver: The URI at which the instance was received, `dicom-tls://10.0.0.5:2762`.
        certificate: SHA-256 fingerprint, subject and alternative names of the sender's certificate.
        priority: Priority of the C-STORE request, as far as the sender may set it; 0 is MEDIUM.
        association: Id of the association that received it; 0 if it has none.
    """

    sop_instance_uid: str = ""
    sop_class_uid: str = ""
    study_uid: str = ""
    series_uid: str = ""
    transfer_syntax_uid: str = ""
    calling_ae: str = ""
    called_ae: str = ""
    source: str = ""
    size: int = 0
    data_set_offset: int = 0
    conflict: str = ""
    note: str = ""
    attributes: Mapping[int, bytes] = field(default_factory=dict)
    receiver: str = ""
    certificate: tuple[str, ...] = ()
    priority: int = MEDIUM
    association: int = 0

    @property
    def fingerprint(self) -> str:
        """SHA-256 fingerprint of the sender's certificate; empty without one."""
        return self.certificate[0] if self.certificate else ""


def read_instance_header(
    fd: int, size: int, tags: Sequence[int] = (), optional: Collection[int] = ()
) -> InstanceHeader:
    """Read File Meta Information and UIDs of a Part 10 file, but not the whole file.

    Args:
        fd: The open file.
        size: Its bytes.
        tags: Further top-level attributes to read.
        optional: Further tags, which are not searched for behind their position in ascending order.

    Raises:
        PeerError: The file is no Part 10 file, or the data set is not encoded in its transfer syntax.
        OSError: The disk is failing.
    """
    meta, offset = read_file_meta(fd)
    wanted, further = _plan_tags(tuple(tags), frozenset(optional))
    header = read_data_set_header(
        fd,
        offset,
        size - offset,
        meta.transfer_syntax_uid,
        wanted,
        HEADER_MAX_BYTES,
        further,
    )
    if header.is_empty and header.damage:
        raise PeerError(f"the data set cannot be read: {header.remarks[0]}")
    note = ""
    if header.damage:
        note = f"its header is damaged: {', '.join(header.remarks)}"
    elif not header.is_whole:
        note = f"not all attributes were found in the first {HEADER_MAX_BYTES} bytes of its header"
    conflict = ""
    if begins_with_file_meta(fd, offset, meta.transfer_syntax_uid):
        conflict = "the data set begins with group 0002"
    for tag, name, requested in (
        (SOP_CLASS_UID, "SOP Class UID", meta.sop_class_uid),
        (SOP_INSTANCE_UID, "SOP Instance UID", meta.sop_instance_uid),
    ):
        # A missing or empty UID contradicts nothing. The listener accepts it too.
        if header.uid(tag) not in {"", strip_uid_padding(requested)}:
            conflict = f"the data set has another {name} than the C-STORE request had"
    return InstanceHeader(
        sop_instance_uid=meta.sop_instance_uid,
        sop_class_uid=meta.sop_class_uid,
        study_uid=header.uid(STUDY_INSTANCE_UID),
        series_uid=header.uid(SERIES_INSTANCE_UID),
        transfer_syntax_uid=meta.transfer_syntax_uid,
        calling_ae=meta.calling_ae,
        called_ae=meta.called_ae,
        source=meta.source_address or "",
        size=size,
        data_set_offset=offset,
        conflict=conflict,
        note=note,
        attributes={tag: header.values[tag] for tag in (*tags, *further) if tag in header.values},
        receiver=meta.receiving_address or "",
        certificate=meta.certificate,
        priority=meta.priority,
        association=meta.association,
    )


@lru_cache(maxsize=16)
def _plan_tags(tags: tuple[int, ...], optional: frozenset[int]) -> tuple[tuple[int, ...], frozenset[int]]:
    """Return all tags to read, in ascending order, and those of them that are optional."""
    required = {*UIDS, *tags}
    return tuple(sorted(required | optional)), optional - required


def make_unreadable_header(fd: int, size: int, conflict: str) -> InstanceHeader:
    """Make the header of a file whose data set cannot be read, from its File Meta Information alone.

    Args:
        fd: The open file.
        size: Its bytes.
        conflict: Why it cannot be read.

    Raises:
        OSError: The disk is failing.
    """
    try:
        meta, offset = read_file_meta(fd)
    except PeerError:
        return InstanceHeader(size=size, conflict=conflict)
    return InstanceHeader(
        sop_instance_uid=meta.sop_instance_uid,
        sop_class_uid=meta.sop_class_uid,
        transfer_syntax_uid=meta.transfer_syntax_uid,
        calling_ae=meta.calling_ae,
        called_ae=meta.called_ae,
        source=meta.source_address or "",
        size=size,
        data_set_offset=offset,
        conflict=conflict,
        certificate=meta.certificate,
    )
