"""Store keys: the relative paths of instances in the store (`[store] path`)."""

import hashlib
import re
from string import Formatter
from typing import Final

from ingest.errors import StoreError
from ingest.spool.reference import Reference

STAGING: Final = ".incoming"
"""Folder below the root of a store for files that are being copied. No store key begins with it."""

FIELDS: Final = frozenset({"study_uid", "series_uid", "sop_uid"})

# PS3.5 section 9.1: digits and periods, at most 64. Leading zeros and empty components violate it, but are
# safe in a file name.
_SAFE: Final = re.compile(r"[0-9][0-9.]{0,63}")
_NAME_MAX: Final = 255


def make_safe_name(uid: str, missing: str) -> str:
    """Make one component of a path: the UID itself if that is safe, otherwise a hash of it.

    Args:
        uid: The UID without padding.
        missing: The name for an empty UID.
    """
    if _SAFE.fullmatch(uid):
        return uid
    if not uid:
        return missing
    return "x" + hashlib.sha256(uid.encode("utf-8", "surrogatepass")).hexdigest()[:40]


class StoreKeyTemplate:
    """The template of store keys, `[store] path`."""

    def __init__(self, template: str) -> None:
        """Check the template.

        Raises:
            StoreError: It names an unknown field or no `{sop_uid}`, or it could lead out of the store.
        """
        try:
            fields = {field for _, field, spec, _ in Formatter().parse(template) if field is not None}
            sample = template.format(study_uid="1", series_uid="1", sop_uid="1")
        except (ValueError, LookupError, AttributeError) as error:
            raise StoreError(f"store.path: {template!r} cannot be read: {error}") from error
        if not fields <= FIELDS or "sop_uid" not in fields:
            raise StoreError(
                f"store.path: {template!r} must name {{sop_uid}}, and no field but {sorted(FIELDS)}"
            )
        split_key(sample)
        self._template = template

    def make_key(self, study_uid: str, series_uid: str, sop_uid: str, *, copy_digest: str = "") -> str:
        """Make the store key of an instance. No UID leads out of the store.

        Args:
            study_uid: Study Instance UID without padding, like the others.
            series_uid: Series Instance UID.
            sop_uid: SOP Instance UID.
            copy_digest: Digest of a further copy of the SOP Instance UID; empty for the first object.
        """
        suffix = f"~{copy_digest}" if copy_digest else ""
        return self._template.format(
            study_uid=make_safe_name(study_uid, "no-study"),
            series_uid=make_safe_name(series_uid, "no-series"),
            sop_uid=make_safe_name(sop_uid, "no-instance") + suffix,
        )


def make_variant_key(key: str, transfer_syntax_uid: str) -> str:
    """Make the store key of an object beside the first one of its UID: one key for each transfer syntax."""
    stem, dot, suffix = key.rpartition(".")
    if not dot or "/" in suffix:
        stem, dot, suffix = key, "", ""
    return f"{stem}~{make_safe_name(transfer_syntax_uid, 'no-syntax')}{dot}{suffix}"


def make_quarantine_key(reference: Reference) -> str:
    """Make the key below the quarantine folder. A second attempt gets the same key."""
    name = re.sub(r"[^0-9A-Za-z_-]+", ".", f"{reference.spool}.{reference.path}.{reference.offset}").strip(
        "."
    )
    if len(name) > _NAME_MAX - len(".dcm"):
        name = hashlib.sha256(name.encode()).hexdigest()
    return f"{name}.dcm"


def split_key(key: str) -> tuple[str, ...]:
    """Split a store key into its components.

    Raises:
        StoreError: The key is not a relative path that stays below the root.
    """
    parts = tuple(key.split("/"))
    if parts[0] == STAGING or any(part in {"", ".", ".."} or "\0" in part for part in parts):
        raise StoreError(f"{key!r} is not a path below the store; see [store] path")
    return parts
