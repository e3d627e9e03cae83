"""What lies in the store under a name, and whether it is the same as what came."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from ingest.errors import PeerError
from ingest.workers.persist.arrival import Facts, identify
from ingest.workers.store.filesystem import Source, Store

CHUNK: Final = 1 << 20


@contextlib.contextmanager
def existing(
    store: Store, key: str, tags: Sequence[int] = ()
) -> Iterator[tuple[Source | None, Facts | None]]:
    """The file under a key and what it says; None where it is gone, or is no DICOM file.

    Args:
        store: Where to look.
        key: The key.
        tags: Further top-level attributes to read.

    Raises:
        StoreAwayError: The store is not there.
        OSError: The disk is failing.
    """
    try:
        fd = store.open(key)
    except FileNotFoundError:
        yield None, None
        return
    try:
        source = Source.of(key, fd, synced=True)
        try:
            facts = identify(source, tags)
        except PeerError:
            facts = None
        yield source, facts
    finally:
        os.close(fd)


def same_file(one: Source, other: Source) -> bool:
    """Whether both are names of one file."""
    return (one.device, one.inode) == (other.device, other.inode)


def same_bytes(
    one: Source,
    other: Source,
    progress: Callable[[], None],
    *,
    skipping: tuple[int, int] = (0, 0),
) -> bool:
    """Whether two files are the same bytes; read side by side, a chunk at a time.

    Args:
        one: The first.
        other: The second.
        progress: Called between two chunks.
        skipping: How many bytes of each to leave out at its begin: up to the data set, to compare those.

    Raises:
        OSError: A disk is failing.
    """
    if same_file(one, other):
        return True
    length = one.size - skipping[0]
    if other.size - skipping[1] != length:
        return False
    ours, theirs = bytearray(CHUNK), bytearray(CHUNK)
    done = 0
    while done < length:
        count = os.preadv(one.fd, [ours], skipping[0] + done)
        if count == 0 or os.preadv(other.fd, [theirs], skipping[1] + done) < count:
            return False
        if memoryview(ours)[:count] != memoryview(theirs)[:count]:
            return False
        done += count
        progress()
    return True


def content_digest(
    source: Source, data_set_offset: int, transfer_syntax_uid: str, progress: Callable[[], None]
) -> str:
    """128 bits of the SHA-256 of a data set and its transfer syntax, in hexadecimal; reads it chunk by chunk.

    Args:
        source: The file.
        data_set_offset: Where in it the data set begins.
        transfer_syntax_uid: The same bytes mean something else in another one.
        progress: Called between two chunks.

    Raises:
        OSError: The disk is failing.
    """
    digest = hashlib.sha256(transfer_syntax_uid.encode() + b"\0")
    at = data_set_offset
    while chunk := os.pread(source.fd, CHUNK, at):
        digest.update(chunk)
        at += len(chunk)
        progress()
    return digest.hexdigest()[:32]
