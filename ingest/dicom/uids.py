"""UIDs with a meaning here, who we are on the wire, and which SOP classes can be stored.

`ingest.dicom.registry` has the tables. It is imported only for a question that needs it.
"""

# ruff: noqa: PLC0415 - the registry takes a quarter of a second to import

import re
from fnmatch import translate
from functools import cache, lru_cache

IMPLEMENTATION_CLASS_UID = "2.25.181761815639605390132969297983716919251"
"""PS3.7 D.3.3.2; made once from a UUID (PS3.5 B.2), never changes."""
IMPLEMENTATION_VERSION = "DICOM-INGEST_01"
"""PS3.7 D.3.3.2.3: 1 to 16 characters."""

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
"""PS3.7 A.2.1: the only application context that DICOM defines."""
VERIFICATION = "1.2.840.10008.1.1"
"""PS3.4 A.4: the SOP class of C-ECHO."""

IMPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
DEFLATED_EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = frozenset({DEFLATED_EXPLICIT_LITTLE_ENDIAN, "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})
"""Transfer syntaxes whose whole data set is a deflate stream (PS3.5 A.5, A.7, A.10)."""

_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_NOT_STORED = ("MediaStorageDirectory", "StorageCommitment", "StorageManagement", "StoredPrint")


def is_valid_uid(text: str) -> bool:
    """Whether `text` may be used as a UID: 1 to 64 characters, digits in components between single dots.

    Leading zeros in a component break PS3.5 9.1, but instances that carry them exist and can be kept. What
    this lets pass holds no path separator and no empty component, so it is a safe file name.
    """
    return len(text) <= 64 and _UID.fullmatch(text) is not None


@cache
def storage_classes() -> frozenset[str]:
    """SOP class UIDs that are stored with C-STORE (PS3.4 B.5 and GG.3, and what PS3.6 lists as retired)."""
    from ingest.dicom import registry

    registered = (
        uid
        for uid, (_, kind, _, _, keyword) in registry.UIDS.items()
        if kind == "SOP Class" and "Storage" in keyword and not keyword.startswith(_NOT_STORED)
    )
    return frozenset(str(uid) for uid in (*registry.STORAGE_CLASSES, *registered))


@cache
def other_registered() -> frozenset[str]:
    """UIDs that PS3.6 gives to what cannot be stored: Query/Retrieve, worklists, print, transfer syntaxes."""
    from ingest.dicom import registry

    return frozenset(str(uid) for uid in (*registry.SERVICE_UIDS, *registry.UIDS)) - storage_classes()


def is_data_set_transfer_syntax(uid: str) -> bool:
    """Whether `uid` is, or may come to be, an encoding of a data set that DICOM defines (PS3.5 Annex A).

    The arcs 6 (RFC 2557 and XML, for what is not a data set) and 7 (SMPTE streams of PS3.22) are none.
    """
    arc = f"{IMPLICIT_LITTLE_ENDIAN}."
    return uid == IMPLICIT_LITTLE_ENDIAN or (
        uid.startswith(arc) and is_valid_uid(uid) and not uid.startswith((f"{arc}6.", f"{arc}7."))
    )


@cache
def data_set_transfer_syntaxes() -> frozenset[str]:
    """The transfer syntaxes of PS3.6 that `is_data_set_transfer_syntax` holds for."""
    from ingest.dicom import registry

    registered = (uid for uid, (_, kind, _, _, _) in registry.UIDS.items() if kind == "Transfer Syntax")
    return frozenset(str(uid) for uid in registered if is_data_set_transfer_syntax(uid))


def names_of(uid: str) -> tuple[str, ...]:
    """A UID, its keyword and its name in PS3.6, as far as it has them: what a pattern may be like."""
    from ingest.dicom import registry

    name, _, _, _, keyword = registry.UIDS.get(uid, ("", "", "", "", ""))
    return tuple(text for text in (uid, keyword, name) if text)


@lru_cache(maxsize=64)
def any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """One expression that matches what one of the patterns (`*`, `?`, `[…]`; capitals count) matches.

    A caller may name thousands of UIDs in one request, so a question about one of them must not cost the
    parsing of each pattern.
    """
    return re.compile("|".join(map(translate, patterns)) if patterns else "(?!)")


@lru_cache(maxsize=4096)
def is_like(uid: str, patterns: tuple[str, ...]) -> bool:
    """Whether one of the patterns (as of `any_of`) is like one of the names of a UID."""
    match = any_of(patterns).match
    return any(match(name) is not None for name in names_of(uid))
