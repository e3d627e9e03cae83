"""The recorder of caller certificates: brings them from File Meta and from run/seen into the ledger.

The File Meta of each instance names fingerprint and subject of the sender's certificate. The records of
listeners on this host (`ingest.tls.observed_certificates`) also have issuer and dates. An instance costs one
look into a dictionary. The ledger is written at most every few seconds, and its faults only delay that.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog

from ingest.errors import LedgerError
from ingest.ledger import Ledger
from ingest.ledger.callers import CallerCertificate
from ingest.tls.observed_certificates import list_observed_callers, read_change_ns

NEW_SECONDS: Final = 5.0
"""Shortest time between two writes if there is a new certificate or AE title."""
KNOWN_SECONDS: Final = 60.0
"""The same if there is none: only the times of the last instances change."""
PAIRS_MAX: Final = 4096
"""Pairs of certificate and AE title that one worker remembers."""

log = structlog.get_logger()


class CallerRecorder:
    """The recorder of one persist worker."""

    def __init__(self, run_dir: Path, ledger: Ledger) -> None:
        """Begin without certificates."""
        self._run_dir = run_dir
        self._ledger = ledger
        # By fingerprint and AE title: the subject, and the time of the last instance since the last write.
        self._noted: dict[tuple[str, str], tuple[str, int]] = {}
        self._known: set[tuple[str, str]] = set()
        self._has_new = True
        self._folder_ns = -1
        self._write_at = 0.0

    def note_instance(self, certificate: tuple[str, ...], calling_ae: str, received_ms: int) -> None:
        """Note the certificate of an instance: fingerprint, subject and names, as the File Meta has them."""
        if not certificate:
            return
        pair = certificate[0], calling_ae
        if pair not in self._known:
            if len(self._known) >= PAIRS_MAX:
                self._known.clear()
                self._noted.clear()
            self._known.add(pair)
            self._has_new = True
        self._noted[pair] = certificate[1] if len(certificate) > 1 else "", received_ms

    def write_if_due(self) -> None:
        """Write the notes to the ledger, if they are due."""
        now = time.monotonic()
        if now < self._write_at and not (
            self._has_new and now >= self._write_at - KNOWN_SECONDS + NEW_SECONDS
        ):
            return
        self._write_at = now + KNOWN_SECONDS
        certificates = self._collect()
        try:
            self._ledger.callers.record(certificates)
        except LedgerError as error:
            self._folder_ns = -1
            log.debug("callers_not_recorded", error=str(error))
            return
        self._noted.clear()
        self._has_new = False

    def _collect(self) -> list[CallerCertificate]:
        found = {each.fingerprint: each for each in self._read_new_records()}
        for (fingerprint, calling_ae), (subject, at_ms) in self._noted.items():
            known = found.get(fingerprint) or CallerCertificate(
                fingerprint=fingerprint,
                subject=subject,
                issuer="",
                not_before=0,
                not_after=0,
                first_at=at_ms,
                last_at=at_ms,
            )
            titles = {**known.titles, calling_ae: at_ms}
            found[fingerprint] = replace(known, titles=titles, last_at=max(known.last_at, at_ms))
        return list(found.values())

    def _read_new_records(self) -> list[CallerCertificate]:
        """Return the records of listeners, if there is a new one since the last look."""
        changed_ns = read_change_ns(self._run_dir)
        if changed_ns == self._folder_ns:
            return []
        self._folder_ns = changed_ns
        return [
            CallerCertificate(
                fingerprint=each.fingerprint,
                subject=each.subject,
                issuer=each.issuer,
                not_before=each.not_before_ms,
                not_after=each.not_after_ms,
                first_at=each.observed_ms,
                last_at=each.observed_ms,
            )
            for each in list_observed_callers(self._run_dir)
        ]
