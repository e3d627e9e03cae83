"""Observed certificates: record those that callers and destinations present in handshakes.

A node that trusts an authority has no file with the certificates that the authority issued. It sees them in
handshakes only. Each process that verifies such a certificate records it here, and `ingest.tls.expiry` warns
before it ends.

A record has one of three roles: "peer" for a caller that `[[peers]]` binds, "destination", and "caller" for
every verified caller certificate, bound or not. Persist workers bring the last ones into the ledger.
"""

import contextlib
import hashlib
import json
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from ingest.tls.identity import CertificateIdentity

FOLDER: Final = "seen"
CALLER: Final = "caller"
NOTED_MAX: Final = 4096
"""Number of recorded certificates that one process remembers, to avoid writing them again."""
KEPT_MAX: Final = 256
"""Records kept for one peer or destination. Short-lived certificates may each have a new subject."""
CALLERS_KEPT_MAX: Final = 1024
"""The same for role "caller", which has one record for each certificate."""
LEFT_SECONDS: Final = 3600.0
"""Age at which an unfinished file is removed: its writer was killed."""


@dataclass(frozen=True, slots=True)
class ObservedCaller:
    """A verified caller certificate; times are Unix milliseconds.

    Attributes:
        not_before_ms, not_after_ms: Begin and end of validity.
        observed_ms: When a process observed the certificate for the first time since its start.
    """

    fingerprint: str
    subject: str
    issuer: str
    not_before_ms: int
    not_after_ms: int
    observed_ms: int


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
        if not self._is_new((role, whose, identity.fingerprint)):
            return
        told = {
            "role": role,
            "whose": whose,
            "subject": identity.subject,
            "fingerprint": identity.fingerprint,
            "not_after": identity.not_after.isoformat(),
        }
        self._write("\0".join((role, whose, identity.subject)), told)

    def record_caller(self, identity: CertificateIdentity) -> None:
        """Record a caller certificate if its chain was verified. The AE title does not matter."""
        if identity.trust_anchor is None or not self._is_new((CALLER, "", identity.fingerprint)):
            return
        told = {
            "role": CALLER,
            "whose": "",
            "subject": identity.subject,
            "issuer": identity.issuer,
            "fingerprint": identity.fingerprint,
            "not_before": identity.not_before.isoformat() if identity.not_before else "",
            "not_after": identity.not_after.isoformat(),
        }
        self._write("\0".join((CALLER, identity.fingerprint)), told)

    def _is_new(self, mark: tuple[str, str, str]) -> bool:
        if mark in self._noted:
            return False
        if len(self._noted) >= NOTED_MAX:
            self._noted.clear()
        self._noted.add(mark)
        return True

    def _write(self, key: str, told: dict[str, str]) -> None:
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        path = self._folder / f"{name}.json"
        # A record only serves warnings. A fault of the folder must never end an association.
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o750, exist_ok=True)
            new = path.with_suffix(f".{told['fingerprint'][:16]}")
            new.write_text(json.dumps(told))
            new.replace(path)


def read_change_ns(run_dir: Path) -> int:
    """Return when the folder of records changed last, in nanoseconds; 0 without a folder."""
    try:
        return (run_dir / FOLDER).stat().st_mtime_ns
    except OSError:
        return 0


def list_observed_callers(run_dir: Path) -> list[ObservedCaller]:
    """Return the verified caller certificates that listeners of this node observed."""
    found = []
    for path in (run_dir / FOLDER).glob("*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            told = json.loads(path.read_text())
            if told["role"] != CALLER:
                continue
            found.append(
                ObservedCaller(
                    told["fingerprint"],
                    told["subject"],
                    told["issuer"],
                    _parse_ms(told["not_before"]),
                    _parse_ms(told["not_after"]),
                    round(path.stat().st_mtime * 1000),
                )
            )
    return found


def _parse_ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000) if text else 0


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
    for (role, _), those in kept.items():
        most = CALLERS_KEPT_MAX if role == CALLER else KEPT_MAX
        for _, path in sorted(those)[:-most]:
            with contextlib.suppress(OSError):
                path.unlink()
