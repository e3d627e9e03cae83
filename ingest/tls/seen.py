"""Leaves word of certificates that bound peers and destinations have shown.

Where an authority is trusted, what it issued is in no file of the node: it shows in handshakes only. Whoever
verified one leaves word of it, so that its end is known before it comes; `ingest.tls.expiry` reads it.
"""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Final, Literal

from ingest.tls.identity import Identity

FOLDER: Final = "seen"
NOTED_MAX: Final = 4096
"""Certificates of which one process remembers that it has noted them."""


class Sightings:
    """What one process has seen."""

    def __init__(self, run_dir: Path) -> None:
        """Prepare; nothing is written yet.

        Args:
            run_dir: Of the node.
        """
        self._folder = run_dir / FOLDER
        self._noted: set[tuple[str, str, str]] = set()

    def note(self, role: Literal["peer", "destination"], whose: str, identity: Identity) -> None:
        """Leave word of a certificate that was verified.

        Args:
            role: Who has shown it.
            whose: The AE title of the peer, or the name of the destination.
            identity: It. One of the same subject that `whose` has shown before is forgotten: it was renewed.
        """
        mark = (role, whose, identity.fingerprint)
        if mark in self._noted:
            return
        if len(self._noted) >= NOTED_MAX:
            self._noted.clear()
        self._noted.add(mark)
        told = {
            "role": role,
            "whose": whose,
            "subject": identity.subject,
            "fingerprint": identity.fingerprint,
            "not_after": identity.not_after.isoformat(),
        }
        name = hashlib.sha256("\0".join((role, whose, identity.subject)).encode()).hexdigest()[:32]
        path = self._folder / f"{name}.json"
        # It is a courtesy: whatever is wrong with the folder must cost nobody an association.
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o750, exist_ok=True)
            new = path.with_suffix(f".{identity.fingerprint[:16]}")
            new.write_text(json.dumps(told))
            new.replace(path)
