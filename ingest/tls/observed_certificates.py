"""Leaves word of certificates that bound peers and destinations have shown.

Where an authority is trusted, what it issued is in no file of the node: it shows in handshakes only. Whoever
verified one leaves word of it, so that its end is known before it comes; `ingest.tls.expiry` reads it.
"""

import contextlib
import hashlib
import json
import time
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from ingest.tls.identity import Identity

FOLDER: Final = "seen"
NOTED_MAX: Final = 4096
"""Certificates of which one process remembers that it has noted them."""
KEPT_MAX: Final = 256
"""Certificates of one peer or destination that are kept: short-lived ones may have ever new subjects."""
LEFT_SECONDS: Final = 3600.0
"""A file that was to get its name so long ago never will: who wrote it was killed."""


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


def prune(run_dir: Path, before: datetime) -> None:
    """Forget what ended before a time, the oldest of whoever has shown too many, and what a kill has left.

    Args:
        run_dir: Of the node.
        before: With a time zone.
    """
    kept: dict[tuple[str, str], list[tuple[float, Path]]] = {}
    for path in (run_dir / FOLDER).glob("*"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            written = path.stat().st_mtime
            if path.suffix != ".json":
                if written < time.time() - LEFT_SECONDS:
                    path.unlink()
                continue
            told = json.loads(path.read_text())
            if datetime.fromisoformat(told["not_after"]) < before:
                path.unlink()
            else:
                kept.setdefault((told["role"], told["whose"]), []).append((written, path))
    for those in kept.values():
        for _, path in sorted(those)[:-KEPT_MAX]:
            with contextlib.suppress(OSError):
                path.unlink()
