"""Compare an instance in quarantine with the stored one of its SOP instance UID, attribute by attribute.

The result holds patient data: it is for a person who decides, and never for a log.

Files may be of any size and damaged anywhere. Long values are therefore not read into memory: they are
compared by size and digest, which are computed chunk by chunk (INVARIANT 4).
"""

import contextlib
import hashlib
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ingest.config.model import Config
from ingest.dicom.part10 import read_file_meta
from ingest.dicom.uids import DEFLATED, names_of
from ingest.errors import NotQuarantinedError, PathEscapesError, PeerError
from ingest.filesystem.beneath import open_beneath
from ingest.ledger import Instance, InstanceState, Ledger
from ingest.operations.instances import name_quarantine_kind
from ingest.operations.times import format_iso_time

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.dataelem import RawDataElement

DIFFERENCES_MAX: Final = 500
"""Differences that one comparison lists."""

DEPTH_MAX: Final = 8
"""Sequences within sequences that are compared item by item; deeper ones are compared as a whole."""

SHORT_BYTES: Final = 1024
"""Values that are longer are compared by size and digest."""

SEQUENCE_BYTES_MAX: Final = 16 << 20
INFLATED_BYTES_MAX: Final = 32 << 20
WAIT_SECONDS: Final = 10.0

_COMPARING: Final = threading.BoundedSemaphore(1)
"""Inflated data sets are held in memory: one comparison of a process at a time bounds it."""

TEXT_MAX: Final = 300
CHUNK: Final = 1 << 20

_BULK: Final = frozenset({"OB", "OW", "OF", "OD", "OL", "OV", "UN"})
_UNDEFINED: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class AttributeDifference:
    """An attribute that differs.

    Attributes:
        path: Tag, with the tags and numbers of the items around it: `(0040,0275)[1].(0008,0050)`.
        keyword: Keyword of PS3.6; empty for a private or unknown attribute.
        vr: Value representation.
        quarantined: Value of the object in quarantine; None if it has no such attribute. A long value is
            given as size and digest.
        stored: The same for the stored object.
    """

    path: str
    keyword: str
    vr: str
    quarantined: str | None
    stored: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineComparison:
    """The comparison of an instance in quarantine.

    Attributes:
        quarantined: Its row.
        stored: The row of the stored object; None if there is none.
        kind: "refused" or "conflict", as in `ingest quarantine list`.
        differences: Attributes that differ, by tag.
        is_complete: Whether all differences are listed.
        fault: Why nothing could be compared, or empty.
    """

    quarantined: Instance
    stored: Instance | None
    kind: str
    differences: tuple[AttributeDifference, ...] = field(default=())
    is_complete: bool = True
    fault: str = ""

    @property
    def reason(self) -> str:
        """Why the instance is in quarantine."""
        return self.quarantined.note

    @property
    def remark(self) -> str:
        """How much differs, or why nothing was compared."""
        if self.fault:
            return f"Not compared: {self.fault}."
        count = len(self.differences)
        if not self.is_complete:
            return f"The first {count} differences."
        return "1 attribute differs." if count == 1 else f"{count} attributes differ."

    def to_json(self) -> dict[str, Any]:
        """Return the comparison for JSON."""
        return {
            "id": self.quarantined.id,
            "sop_instance_uid": self.quarantined.sop_instance_uid,
            "kind": self.kind,
            "reason": self.reason,
            "quarantined": _row_to_json(self.quarantined),
            "stored": None if self.stored is None else _row_to_json(self.stored),
            "differences": [asdict(each) for each in self.differences],
            "is_complete": self.is_complete,
            "fault": self.fault,
        }


def compare_quarantined(config: Config, number: int) -> QuarantineComparison:
    """Compare an instance in quarantine with the stored object of its SOP instance UID.

    Args:
        config: The configuration.
        number: Id of its row.

    Raises:
        NotQuarantinedError: The id is unknown, or its instance is not in quarantine.
        LedgerError: The ledger is away.
    """
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        ledger.require_schema()
        row = ledger.instances.find_by_ids([number]).get(number)
        if row is None or row.state is not InstanceState.QUARANTINED:
            raise NotQuarantinedError(f"{number}: not in quarantine; see `ingest quarantine list`")
        same = ledger.instances.find_by_sop_instance_uid(row.sop_instance_uid)
    stored = next(
        (each for each in same if each.state is InstanceState.STORED and not each.copy_digest), None
    )
    kind = name_quarantine_kind(row)
    if stored is None:
        fault = "no object of its SOP instance UID is stored"
        return QuarantineComparison(quarantined=row, stored=None, kind=kind, fault=fault)
    try:
        with (
            _one_at_a_time(),
            _open(config.quarantine_dir, row.store_key) as ours,
            _open(config.store_root, stored.store_key) as theirs,
        ):
            found = tuple(_limit(_compare_files(ours, theirs)))
    except _UnreadableError as error:
        return QuarantineComparison(quarantined=row, stored=stored, kind=kind, fault=str(error))
    return QuarantineComparison(
        quarantined=row,
        stored=stored,
        kind=kind,
        differences=found[:DIFFERENCES_MAX],
        is_complete=len(found) <= DIFFERENCES_MAX,
    )


def _row_to_json(row: Instance) -> dict[str, Any]:
    names = ("id", "transfer_syntax_uid", "size", "calling_ae", "called_ae", "source", "certificate")
    return {name: getattr(row, name) for name in names} | {"received_at": format_iso_time(row.received_at)}


class _UnreadableError(Exception):
    """A file cannot be read as DICOM."""


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    if not _COMPARING.acquire(timeout=WAIT_SECONDS):
        raise _UnreadableError("another comparison is under way; try again")
    try:
        yield
    finally:
        _COMPARING.release()


@dataclass(frozen=True, slots=True)
class _File:
    fd: int
    transfer_syntax_uid: str
    data_set: "Dataset"

    @property
    def is_deflated(self) -> bool:
        return self.transfer_syntax_uid in DEFLATED


@contextlib.contextmanager
def _open(root: Path, key: str) -> Iterator[_File]:
    """Open a file of store or quarantine, and read its data set without its long values."""
    try:
        fd = open_beneath(root, key)
    except (OSError, PathEscapesError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _UnreadableError(f"{root / key} cannot be read: {reason}") from error
    try:
        yield _read(fd, root / key)
    finally:
        os.close(fd)


def _read(fd: int, path: Path) -> _File:
    from pydicom import dcmread  # noqa: PLC0415 - slow to import

    try:
        meta, offset = read_file_meta(fd)
        is_deflated = meta.transfer_syntax_uid in DEFLATED
        if is_deflated:
            _require_inflatable(fd, offset)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # A deferred value is read from the file of this name, and an inflated one has no place there.
            data_set = dcmread(f"/proc/self/fd/{fd}", defer_size=None if is_deflated else SHORT_BYTES)
    except (PeerError, OSError) as error:
        raise _UnreadableError(f"{path.name} cannot be read: {error}") from error
    except Exception as error:
        # pydicom raises errors of many kinds for damaged files. Their texts may contain values.
        raise _UnreadableError(f"{path.name} cannot be read as DICOM: {type(error).__name__}") from None
    return _File(fd, meta.transfer_syntax_uid, data_set)


def _require_inflatable(fd: int, offset: int) -> None:
    """Refuse a data set that inflates to more than memory should hold."""
    inflater, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    try:
        while chunk := os.pread(fd, CHUNK, offset):
            offset += len(chunk)
            while chunk:
                total += len(inflater.decompress(chunk, CHUNK))
                chunk = inflater.unconsumed_tail
                if total > INFLATED_BYTES_MAX:
                    raise PeerError(f"it inflates to more than {INFLATED_BYTES_MAX >> 20} MB")
    except zlib.error as error:
        raise PeerError("it cannot be inflated") from error


def _limit(found: Iterator[AttributeDifference]) -> Iterator[AttributeDifference]:
    for number, each in enumerate(found):
        yield each
        if number == DIFFERENCES_MAX:
            return


# --- data sets


def _compare_files(ours: _File, theirs: _File) -> Iterator[AttributeDifference]:
    if ours.transfer_syntax_uid != theirs.transfer_syntax_uid:
        names = [_name_syntax(each.transfer_syntax_uid) for each in (ours, theirs)]
        yield AttributeDifference("(0002,0010)", "TransferSyntaxUID", "UI", *names)
    yield from _compare(ours, ours.data_set, theirs, theirs.data_set, "", 0)


def _name_syntax(uid: str) -> str:
    names = [name for name in names_of(uid) if name != uid]
    return f"{uid} ({names[-1]})" if names else uid


def _compare(  # noqa: PLR0917 - a file and a data set on each side
    ours: _File, one: "Dataset", theirs: _File, other: "Dataset", path: str, depth: int
) -> Iterator[AttributeDifference]:
    for tag in sorted({*one.keys(), *other.keys()}):
        values = [_read_value(file, of, tag) for file, of in ((ours, one), (theirs, other))]
        mine, stored = values
        where = f"{path}({tag.group:04X},{tag.elem:04X})"
        if mine and stored and mine.items is not None and stored.items is not None and depth < DEPTH_MAX:
            yield from _compare_items(ours, mine, theirs, stored, where, depth)
        elif (mine and mine.text) != (stored and stored.text):
            vr = (mine or stored or _NOTHING).vr
            texts = [None if each is None else each.text for each in values]
            yield AttributeDifference(where, _keyword_of(tag), vr, *texts)


def _compare_items(  # noqa: PLR0917 - as `_compare`
    ours: _File, mine: "_Value", theirs: _File, stored: "_Value", where: str, depth: int
) -> Iterator[AttributeDifference]:
    one, other = mine.items or [], stored.items or []
    for number, (left, right) in enumerate(zip(one, other, strict=False), 1):
        yield from _compare(ours, left, theirs, right, f"{where}[{number}].", depth + 1)
    if len(one) != len(other):
        yield AttributeDifference(where, mine.keyword, "SQ", f"{len(one)} items", f"{len(other)} items")


@dataclass(frozen=True, slots=True)
class _Value:
    vr: str
    text: str
    items: "list[Dataset] | None" = None
    keyword: str = ""


_NOTHING: Final = _Value("", "")


def _keyword_of(tag: Any) -> str:
    from pydicom.datadict import keyword_for_tag  # noqa: PLC0415 - slow to import

    return keyword_for_tag(tag)


def _read_value(file: _File, data_set: "Dataset", tag: Any) -> _Value | None:
    """Return the value of an attribute as text; None if the data set does not have it."""
    from pydicom.dataelem import RawDataElement  # noqa: PLC0415 - slow to import

    if tag not in data_set:
        return None
    raw = data_set.get_item(tag)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if isinstance(raw, RawDataElement) and raw.value is None and raw.length:
                return _read_deferred(file, data_set, raw)
            return _format_element(data_set[tag], tag)
    except Exception as error:
        # pydicom raises errors of many kinds for damaged values.
        vr = getattr(raw, "VR", None) or "UN"
        return _Value(vr, f"cannot be read ({type(error).__name__}), {_digest_raw(raw)}")


def _digest_raw(raw: Any) -> str:
    value = getattr(raw, "value", None)
    return _describe_bytes(value) if isinstance(value, bytes) else "no bytes"


def _read_deferred(file: _File, data_set: "Dataset", raw: "RawDataElement") -> _Value:
    """Describe a value that was not read: a sequence by its items, anything else by size and digest."""
    from pydicom.datadict import dictionary_VR  # noqa: PLC0415 - slow to import

    vr = raw.VR
    if vr is None:
        try:
            vr = dictionary_VR(raw.tag)
        except KeyError:
            vr = "UN"
    if vr == "SQ" and raw.length <= SEQUENCE_BYTES_MAX:
        value = os.pread(file.fd, raw.length, raw.value_tell)
        data_set[raw.tag] = raw._replace(value=value)
        return _format_element(data_set[raw.tag], raw.tag)
    if raw.length != _UNDEFINED:
        digest, size = hashlib.sha256(), 0
        size = _digest_range(file.fd, raw.value_tell, raw.length, digest)
        return _Value(vr, f"{size} bytes, sha256 {digest.hexdigest()}")
    return _Value(vr, _describe_fragments(file.fd, raw.value_tell))


def _digest_range(fd: int, start: int, length: int, digest: Any) -> int:
    position, end = start, start + length
    while position < end and (chunk := os.pread(fd, min(CHUNK, end - position), position)):
        digest.update(chunk)
        position += len(chunk)
    return position - start


def _describe_fragments(fd: int, position: int) -> str:
    """Describe encapsulated pixel data (PS3.5 A.4): the fragments up to the sequence delimitation item."""
    digest, total, count = hashlib.sha256(), 0, 0
    while len(header := os.pread(fd, 8, position)) == 8:
        group, element, length = struct.unpack("<HHL", header)
        if (group, element) != (0xFFFE, 0xE000) or length == _UNDEFINED:
            break
        total += _digest_range(fd, position + 8, length, digest)
        count += 1
        position += 8 + length
    return f"{total} bytes in {count} items, sha256 {digest.hexdigest()}"


def _format_element(element: Any, tag: Any) -> _Value:
    value, vr = element.value, str(element.VR)
    if vr == "SQ":
        return _Value(vr, f"{len(value)} items", list(value), _keyword_of(tag))
    if isinstance(value, bytes):
        return _Value(vr, value.hex(" ") if len(value) <= 16 else _describe_bytes(value))
    is_multiple = isinstance(value, list | tuple) or type(value).__name__ == "MultiValue"
    text = "\\".join(map(str, value)) if is_multiple else ("" if value is None else str(value))
    if len(text) > TEXT_MAX:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        return _Value(vr, f"{text[:TEXT_MAX]}… ({len(text)} characters, sha256 {digest})")
    return _Value(vr, text)


def _describe_bytes(value: bytes) -> str:
    return f"{len(value)} bytes, sha256 {hashlib.sha256(value).hexdigest()}"
