"""Expiry of certificates: collect those of a configuration, and warn before they end."""

import contextlib
import json
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal

import structlog

from ingest.config.model import Config
from ingest.errors import IngestError
from ingest.tls.identity import CertificateIdentity, matches_identity
from ingest.tls.keys.pairs import read_identities
from ingest.tls.observed_certificates import FOLDER, remove_old_records

THRESHOLDS: Final = (1, 7, 30)
"""Days before the end at which a warning is due."""

SOON: Final = timedelta(days=THRESHOLDS[-1])
URGENT: Final = timedelta(days=THRESHOLDS[0])
LOOK_SECONDS: Final = 60.0
GONE: Final = timedelta(days=30)
"""An observed certificate that ended so long ago is forgotten: its holder no longer connects."""
IN_FORCE: Final = "certificates.json"

Mark = tuple[str, str, int | str]
"""Identifies a warning: section, fingerprint, and the threshold in days, or the day once it has ended."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class CertificateLocation:
    """A file or folder with certificates that a configuration names.

    Attributes:
        section: Section of the configuration, "tls.NAME".
        key: Key in that section: "certificate", "pkcs12" or "trusted[0]".
        path: The file or folder.
        password_file: File whose first line opens PKCS#12.
    """

    section: str
    key: str
    path: Path
    password_file: Path | None


@dataclass(frozen=True, slots=True)
class ExpiringCertificate:
    """One certificate with the key of its entry in the configuration.

    Attributes:
        location: Where the certificate was found.
        role: "own" certificate of the node; "issuer" in its chain; "peer": a `[[peers]]` is bound to it;
            "destination": a destination presented it; "trusted" otherwise.
        subjects_named: AE titles of the peers that are bound to it. For role "trusted": names of the
            destinations that use its section.
        identity: The identity in the certificate.
    """

    location: CertificateLocation
    role: Literal["own", "issuer", "peer", "destination", "trusted"]
    subjects_named: tuple[str, ...]
    identity: CertificateIdentity

    @property
    def is_needed(self) -> bool:
        """The end of the certificate stops a peer or destination of the configuration, or the node itself."""
        return self.role != "trusted"


@dataclass(frozen=True, slots=True)
class ExpiryWarning:
    """A warning that is due now.

    Attributes:
        certificate: The certificate that ends.
        days: The threshold that was passed, in days. 0 if the certificate has ended.
        mark: Identifies the warning, so that it is logged once.
    """

    certificate: ExpiringCertificate
    days: int
    mark: Mark


def iterate_locations(config: Config) -> Iterator[CertificateLocation]:
    """Yield every entry of a configuration that holds certificates, both our own and trusted ones."""
    for name, tls in config.tls.items():
        section, password_file = f"tls.{name}", tls.password_file
        if tls.pkcs12 is not None:
            yield CertificateLocation(section, "pkcs12", tls.pkcs12, password_file)
        if tls.certificate is not None:
            yield CertificateLocation(section, "certificate", tls.certificate, None)
        for index, path in enumerate(tls.trusted):
            yield CertificateLocation(section, f"trusted[{index}]", path, password_file)


def read_certificates(config: Config, place: CertificateLocation) -> list[ExpiringCertificate]:
    """Read the certificates at one location.

    Raises:
        IngestError: The location cannot be read, or holds no certificate.
    """
    found = []
    name = place.section.removeprefix("tls.")
    destinations = tuple(each.name for each in config.destinations if each.tls == name)
    for index, identity in enumerate(read_identities(place.path, place.password_file)):
        if not place.key.startswith("trusted"):
            found.append(ExpiringCertificate(place, "issuer" if index else "own", (), identity))
            continue
        bound = tuple(
            dict.fromkeys(
                peer.ae_title
                for peer in config.peers
                if peer.certificate and matches_identity(identity, peer.certificate)
            )
        )
        found.append(
            ExpiringCertificate(place, "peer" if bound else "trusted", bound or destinations, identity)
        )
    return found


def iterate_observed(config: Config) -> Iterator[ExpiringCertificate]:
    """Yield certificates that bound peers and destinations presented (`ingest.tls.observed_certificates`)."""
    callers = {peer.ae_title for peer in config.peers if peer.certificate or peer.issuer}
    known = {"peer": callers, "destination": {each.name for each in config.destinations}}
    try:
        paths = sorted((config.run_dir / FOLDER).glob("*.json"))
    except OSError:
        return  # this user may not enter the folder, or its disk fails
    for path in paths:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            told = json.loads(path.read_text())
            role, whose, end = told["role"], told["whose"], datetime.fromisoformat(told["not_after"])
            if whose in known[role] and datetime.now(UTC) < end + GONE:
                identity = CertificateIdentity(told["fingerprint"], told["subject"], "", (), end)
                yield ExpiringCertificate(
                    CertificateLocation(f"{role}s", whose, path, None), role, (whose,), identity
                )


def exclude_known(
    found: Iterable[ExpiringCertificate], known: Iterable[ExpiringCertificate]
) -> Iterator[ExpiringCertificate]:
    """Yield those of `found` that are not in `known`: a peer may present a certificate of `trusted`."""
    there = {each.identity.fingerprint for each in known}
    return (each for each in found if each.identity.fingerprint not in there)


def to_json_row(each: ExpiringCertificate) -> dict[str, Any]:
    """Convert a certificate to a row for JSON."""
    return {
        "section": each.location.section,
        "file": str(each.location.path),
        "role": each.role,
        "whose": list(each.subjects_named),
        "subject": each.identity.subject,
        "sha256": each.identity.fingerprint,
        "not_after": each.identity.not_after.isoformat(),
    }


def read_certificates_in_force(run_dir: Path) -> list[dict[str, Any]]:
    """Return the certificates that the running node uses, as rows. Empty if it has not recorded them."""
    try:
        rows: list[dict[str, Any]] = json.loads((run_dir / IN_FORCE).read_text())
    except (OSError, ValueError):
        return []
    return rows


def find_due_warnings(
    now: datetime, found: Iterable[ExpiringCertificate], said: Collection[Mark]
) -> list[ExpiryWarning]:
    """Find warnings that are due: once at 30, 7 and 1 days before the end, and daily after it.

    Args:
        now: Current time with a time zone.
        found: Certificates in any order. A certificate that occurs twice gives one warning a section.
        said: Marks of the warnings that were logged before.
    """
    due: dict[Mark, ExpiryWarning] = {}
    for each in found:
        left = each.identity.not_after - now
        passed = next((days for days in THRESHOLDS if left <= timedelta(days=days)), None)
        if passed is None:
            continue
        ended = left <= timedelta(0)
        moment = now.astimezone(UTC).date().isoformat() if ended else passed
        mark = (each.location.section, each.identity.fingerprint, moment)
        if mark not in said:
            due.setdefault(mark, ExpiryWarning(each, 0 if ended else passed, mark))
    return list(due.values())


class ExpiryWatch:
    """Logs warnings about the certificates that a running node uses.

    Only `watch_configuration` reads files, so the warnings concern the certificates in use.
    """

    def __init__(self) -> None:
        self._config = Config()
        self._found: list[ExpiringCertificate] = []
        self._said: set[Mark] = set()
        self._next = 0.0

    def watch_configuration(self, config: Config) -> None:
        """Watch the certificates of a configuration, and record them for `read_certificates_in_force`."""
        self._config, self._found, self._next = config, [], 0.0
        for place in iterate_locations(config):
            try:
                self._found += read_certificates(config, place)
            except (
                IngestError
            ) as error:  # For example, `cryptography` cannot parse a certificate of a bundle.
                key = f"{place.section}.{place.key}"
                log.warning("certificate_not_watched", key=key, error=str(error))
        path = config.run_dir / IN_FORCE
        with contextlib.suppress(OSError):  # Only `ingest status` reads the file; the node runs without it.
            new = path.with_suffix(".new")
            new.write_text(json.dumps([to_json_row(each) for each in self._found]))
            new.replace(path)

    def log_due_warnings(self) -> None:
        """Log the warnings that are due, at most once a minute."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + LOOK_SECONDS
        remove_old_records(self._config.run_dir, datetime.now(UTC) - GONE)
        found = [*self._found, *exclude_known(iterate_observed(self._config), self._found)]
        for due in find_due_warnings(datetime.now(UTC), found, self._said):
            self._said.add(due.mark)
            _log_warning(due)


def _log_warning(due: ExpiryWarning) -> None:
    each = due.certificate
    told = {
        "key": f"{each.location.section}.{each.location.key}",
        "file": str(each.location.path),
        "role": each.role,
        "whose": list(each.subjects_named),
        "subject": each.identity.subject,
        "not_after": each.identity.not_after.isoformat(),
    }
    theirs = each.location.section in {"peers", "destinations"}
    remedy = "have its holder replace it" if theirs else "replace it, then reload"
    if due.days:
        log.warning("certificate_ends", within_days=due.days, remedy=remedy, **told)
    else:
        log.error("certificate_ended", remedy=remedy, **told)
