"""Transfer syntaxes of an Orthanc configuration: patterns choose, then switches add or remove groups."""

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
"""Orthanc's switches in its order, each with the ends of its UIDs after 1.2.840.10008.1.2.

Orthanc does not know the fragmentable forms of MPEG. Here they belong to the group of the other forms.
"""


def choose_transfer_syntaxes(
    patterns: Sequence[str], switches: Mapping[str, bool]
) -> tuple[list[str], list[str]]:
    """Return the chosen UIDs ("*" for all that DICOM defines), and the patterns that match none.

    Args:
        patterns: `AcceptedTransferSyntaxes`. A UID without wildcards need not be known.
        switches: The switches of `GROUPS` in the file. True adds a group, false removes it.
    """
    chosen: dict[str, None] = {}
    useless = []
    for pattern in patterns:
        found = _match_known([pattern]) if _PATTERN.fullmatch(pattern) else [pattern]
        chosen |= dict.fromkeys(found)
        if not found:
            useless.append(pattern)
    for switch, group in GROUPS.items():
        members = _match_known([f"{IMPLICIT_LITTLE_ENDIAN}.{end}" for end in group])
        if switches.get(switch) is True:
            chosen |= dict.fromkeys(members)
        elif switch in switches:
            chosen = {uid: None for uid in chosen if uid not in members}
    every = data_set_transfer_syntaxes()
    if chosen.keys() >= every:  # a pattern, so that future transfer syntaxes match too
        return ["*", *(uid for uid in chosen if uid not in every)], useless
    return list(chosen), useless


def _match_known(patterns: Iterable[str]) -> list[str]:
    known = sorted(data_set_transfer_syntaxes(), key=lambda uid: [int(part) for part in uid.split(".")])
    return [uid for uid in known if any(fnmatchcase(uid, pattern) for pattern in patterns)]
