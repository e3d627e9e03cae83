"""Observed certificates: record those that bound peers and destinations present in handshakes.

A node that trusts an authority has no file with the certificates that the authority issued. It sees them in
handshakes only. Each process that verifies such a certificate records it here, and `ingest.tls.expiry` warns
before it ends.
"""

import contextlib
import hashlib
import json
import time
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from ingest.tls.identity import CertificateIdentity

FOLDER: Final = "seen"
NOTED_MAX: Final = 4096
"""Number of recorded certificates that one process remembers, to avoid writing them again."""
KEPT_MAX: Final = 256
"""Records kept for one peer or destination. Short-lived certificates may each have a new subject."""
LEFT_SECONDS: Final = 3600.0
"""Age at which an unfinished file is removed: its writer was killed."""


class ObservedCertificates:
    """The certificates that one process has observed."""

    def __init__(self, run_dir: Path) -> None:
        """Prepare to record. Nothing is written yet.

        Args:
            run_dir: Run folder of the node.
        """
        self._folder = run_dir / FOLDER
        self._noted: set[tuple[str, str, str]] = set()

    def record(self, role: Literal["peer", "destination"], whose: str, identity: CertificateIdentity) -> None:
        """Record a verified certificate.

        Args:
            role: Role of the other side.
            whose: AE title of the peer, or name of the destination.
            identity: Identity in the certificate. A record with the same subject is replaced, because the
                certificate was renewed.
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
        # A record only serves warnings. A fault of the folder must never end an association.
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o750, exist_ok=True)
            new = path.with_suffix(f".{identity.fingerprint[:16]}")
            new.write_text(json.dumps(told))
            new.replace(path)


def remove_old_records(run_dir: Path, before: datetime) -> None:
    """Remove records of ended certificates, the oldest of too many, and unfinished files.

    Args:
        run_dir: Run folder of the node.
        before: Remove certificates that ended before this time, which has a time zone.
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
