"""Compare a received file with a file of the store."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final

from ingest.dicom.file_header import InstanceHeader, read_instance_header
from ingest.errors import PeerError
from ingest.workers.store.filesystem import SourceFile, Store

CHUNK: Final = 1 << 20
"""Bytes that are in memory of each file. INVARIANT 4: memory does not grow with the image."""


@contextlib.contextmanager
def open_stored_file(
    store: Store, key: str, tags: Sequence[int] = (), optional: Collection[int] = ()
) -> Iterator[tuple[SourceFile | None, InstanceHeader | None]]:
    """Open the file of a store key and read its header.

    Both are None if the file is gone. The header alone is None if the file is no DICOM file.

    Args:
        store: The store, or the quarantine.
        key: The store key.
        tags: Further top-level attributes to read.
        optional: More of them, as `read_instance_header` takes them.

    Raises:
        StoreAwayError: The store is not there.
        OSError: The disk is failing.
    """
    try:
        fd = store.open_file(key)
    except FileNotFoundError:
        yield None, None
        return
    try:
        source = SourceFile.of(key, fd, synced=True)
        try:
            header = read_instance_header(fd, source.size, tags, optional)
        except PeerError:
            header = None
        yield source, header
    finally:
        os.close(fd)


def is_same_file(one: SourceFile, other: SourceFile) -> bool:
    """Whether both are names of one file."""
    return (one.device, one.inode) == (other.device, other.inode)


def have_same_bytes(
    one: SourceFile,
    other: SourceFile,
    progress: Callable[[], None],
    *,
    offsets: tuple[int, int] = (0, 0),
) -> bool:
    """Whether two files have the same bytes. Both are read side by side, chunk by chunk.

    Args:
        one: The first file.
        other: The second file.
        progress: Called after each chunk.
        offsets: The first byte of each that counts: that of the data set, to compare data sets.

    Raises:
        OSError: A disk is failing.
    """
    if is_same_file(one, other):
        return True
    length = one.size - offsets[0]
    if other.size - offsets[1] != length:
        return False
    ours, theirs = bytearray(CHUNK), bytearray(CHUNK)
    position = 0
    while position < length:
        count = os.preadv(one.fd, [ours], offsets[0] + position)
        if count == 0 or os.preadv(other.fd, [theirs], offsets[1] + position) < count:
            return False
        if memoryview(ours)[:count] != memoryview(theirs)[:count]:
            return False
        position += count
        progress()
    return True


def compute_content_digest(
    source: SourceFile, data_set_offset: int, transfer_syntax_uid: str, progress: Callable[[], None]
) -> str:
    """Compute 128 bits of the SHA-256 of a data set and its transfer syntax, as 32 hexadecimal digits.

    Args:
        source: The file.
        data_set_offset: First byte of the data set in the file.
        transfer_syntax_uid: Part of the content: the same bytes mean something else in another syntax.
        progress: Called after each chunk.

    Raises:
        OSError: The disk is failing.
    """
    digest = hashlib.sha256(transfer_syntax_uid.encode() + b"\0")
    position = data_set_offset
    while chunk := os.pread(source.fd, CHUNK, position):
        digest.update(chunk)
        position += len(chunk)
        progress()
    return digest.hexdigest()[:32]
