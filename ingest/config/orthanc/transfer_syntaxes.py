"""Transfer syntaxes of an Orthanc configuration: patterns choose among known ones, then groups come or go."""

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final

from ingest.dicom.uids import IMPLICIT_LITTLE_ENDIAN, data_set_transfer_syntaxes

_PATTERN: Final = re.compile(r"[0-9.]*[*?][0-9.*?]*")

GROUPS: Final = {
    "DeflatedTransferSyntaxAccepted": ("1.99",),
    "JpegTransferSyntaxAccepted": ("4.5?", "4.6?", "4.70"),
    "Jpeg2000TransferSyntaxAccepted": ("4.9[0-3]",),
    "JpegLosslessTransferSyntaxAccepted": ("4.80", "4.81"),  # JPEG-LS, for Orthanc
    "JpipTransferSyntaxAccepted": ("4.94", "4.95"),
    "Mpeg2TransferSyntaxAccepted": ("4.100", "4.101", "4.10[01].1"),
    "Mpeg4TransferSyntaxAccepted": ("4.10[2-6]", "4.10[2-6].1"),
    "RleTransferSyntaxAccepted": ("5",),
    "H265TransferSyntaxAccepted": ("4.107", "4.108"),
}
"""Orthanc's switches, in its order, and what stands behind 1.2.840.10008.1.2. in the UIDs of each. The
fragmentable forms of MPEG, which Orthanc does not know, go with the others."""


def accepted(patterns: Sequence[str], switches: Mapping[str, bool]) -> tuple[list[str], list[str]]:
    """UIDs, or "*" for all that DICOM defines; and the patterns that choose none.

    Args:
        patterns: `AcceptedTransferSyntaxes`. What has no wildcard is taken as it is.
        switches: Those of `GROUPS` that are set: a group is added, or taken away.
    """
    chosen: dict[str, None] = {}
    vain = []
    for pattern in patterns:
        found = _like([pattern]) if _PATTERN.fullmatch(pattern) else [pattern]
        chosen |= dict.fromkeys(found)
        if not found:
            vain.append(pattern)
    for switch, group in GROUPS.items():
        members = _like([f"{IMPLICIT_LITTLE_ENDIAN}.{end}" for end in group])
        if switches.get(switch) is True:
            chosen |= dict.fromkeys(members)
        elif switch in switches:
            chosen = {uid: None for uid in chosen if uid not in members}
    every = data_set_transfer_syntaxes()
    if chosen.keys() >= every:  # then those that are yet to come too
        return ["*", *(uid for uid in chosen if uid not in every)], vain
    return list(chosen), vain


def _like(patterns: Iterable[str]) -> list[str]:
    known = sorted(data_set_transfer_syntaxes(), key=lambda uid: [int(part) for part in uid.split(".")])
    return [uid for uid in known if any(fnmatchcase(uid, pattern) for pattern in patterns)]
