"""UIDs that the node uses, its own identification, and the SOP classes that can be stored.

`ingest.dicom.registry` has the tables. It is imported only when a question needs it.
"""

# ruff: noqa: PLC0415 - the registry takes a quarter of a second to import

import re
import uuid
from fnmatch import translate
from functools import cache, lru_cache

IMPLEMENTATION_CLASS_UID = "2.25.181761815639605390132969297983716919251"
"""Implementation Class UID (PS3.7 D.3.3.2), made from a UUID (PS3.5 B.2). It never changes."""
IMPLEMENTATION_VERSION = "DICOM-INGEST_01"
"""PS3.7 D.3.3.2.3: 1 to 16 characters."""

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
"""PS3.7 A.2.1: the only application context that DICOM defines."""
VERIFICATION = "1.2.840.10008.1.1"
"""PS3.4 A.4: the SOP class of C-ECHO."""

STORAGE_COMMITMENT = "1.2.840.10008.1.20.1"
"""PS3.4 J.3: the Storage Commitment Push Model SOP class."""
STORAGE_COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1.1"
"""PS3.4 J.3.5: the well-known SOP instance of all its operations."""

IMPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
DEFLATED_EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = frozenset({DEFLATED_EXPLICIT_LITTLE_ENDIAN, "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})
"""Transfer syntaxes whose whole data set is a deflate stream (PS3.5 A.5, A.7, A.10)."""

_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_NOT_STORED = ("MediaStorageDirectory", "StorageCommitment", "StorageManagement", "StoredPrint")


def is_valid_uid(text: str) -> bool:
    """Return whether `text` can be a UID: 1 to 64 characters, components of digits between single dots.

    Leading zeros in a component break PS3.5 9.1, but instances with such UIDs exist and can be kept. A valid
    UID has no path separator and no empty component, so it is a safe file name.
    """
    return len(text) <= 64 and _UID.fullmatch(text) is not None


@cache
def storage_classes() -> frozenset[str]:
    """Return the SOP class UIDs that C-STORE stores (PS3.4 B.5 and GG.3, and retired ones of PS3.6)."""
    from ingest.dicom import registry

    registered = (
        uid
        for uid, (_, kind, _, _, keyword) in registry.UIDS.items()
        if kind == "SOP Class" and "Storage" in keyword and not keyword.startswith(_NOT_STORED)
    )
    return frozenset(str(uid) for uid in (*registry.STORAGE_CLASSES, *registered))


@cache
def other_registered_uids() -> frozenset[str]:
    """Return the UIDs of PS3.6 that cannot be stored: Query/Retrieve, worklists, print, transfer syntaxes."""
    from ingest.dicom import registry

    return frozenset(str(uid) for uid in (*registry.SERVICE_UIDS, *registry.UIDS)) - storage_classes()


def is_data_set_transfer_syntax(uid: str) -> bool:
    """Return whether `uid` is a transfer syntax of DICOM for data sets (PS3.5 Annex A), now or in future.

    The arcs 6 (RFC 2557 and XML) and 7 (SMPTE streams of PS3.22) encode no data sets.
    """
    arc = f"{IMPLICIT_LITTLE_ENDIAN}."
    return uid == IMPLICIT_LITTLE_ENDIAN or (
        uid.startswith(arc) and is_valid_uid(uid) and not uid.startswith((f"{arc}6.", f"{arc}7."))
    )


@cache
def data_set_transfer_syntaxes() -> frozenset[str]:
    """Return the transfer syntaxes of PS3.6 for data sets."""
    from ingest.dicom import registry

    registered = (uid for uid, (_, kind, _, _, _) in registry.UIDS.items() if kind == "Transfer Syntax")
    return frozenset(str(uid) for uid in registered if is_data_set_transfer_syntax(uid))


def names_of(uid: str) -> tuple[str, ...]:
    """Return a UID with its keyword and name of PS3.6: the texts that a pattern is compared with."""
    from ingest.dicom import registry

    name, _, _, _, keyword = registry.UIDS.get(uid, ("", "", "", "", ""))
    return tuple(text for text in (uid, keyword, name) if text)


@lru_cache(maxsize=64)
def compile_patterns(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """Compile patterns (`*`, `?`, `[…]`; capitals count) to one expression that matches any of them.

    A requestor may propose thousands of UIDs at once. Each comparison must therefore not parse the patterns.
    """
    return re.compile("|".join(map(translate, patterns)) if patterns else "(?!)")


@lru_cache(maxsize=4096)
def matches_any_pattern(uid: str, patterns: tuple[str, ...]) -> bool:
    """Return whether a pattern matches the UID, its keyword or its name."""
    match = compile_patterns(patterns).match
    return any(match(name) is not None for name in names_of(uid))


def make_uid() -> str:
    """Return a new UID, made from a random UUID (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid4().int}"
