"""`ingest check --connect`: a C-ECHO to every destination, and a remedy for each failure."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from ingest.config.faults import Fault, FaultKind
from ingest.config.model import Config, Destination
from ingest.dicom import uids
from ingest.errors import AssociationError, Cause, ConfigError, PeerError
from ingest.requestor.audit_repository import connect_to_repository
from ingest.requestor.remotes import build_remotes
from ingest.requestor.store_scu import Remote, StoreSCU, Timeouts
from ingest.tls.expiry import SOON, URGENT
from ingest.tls.identity import CertificateIdentity, read_identity

MAX_PARALLEL: Final = 16

# For each cause: the key of the destination that is at fault, and the remedy, which may use its fields.
_REMEDIES: Final[dict[Cause, tuple[str, str]]] = {
    Cause.UNKNOWN_HOST: ("host", "correct the name, or enter it in the resolver of this machine"),
    Cause.NO_NAME_SERVER: (
        "host",
        "see why this machine's name servers do not answer, or write an address instead of the name",
    ),
    Cause.REFUSED: ("port", "start the remote, or correct host and port"),
    Cause.UNREACHABLE: ("host", "correct host and port, or let firewalls pass port {port}"),
    Cause.NOT_TLS: ("tls", "set tls = false for this destination, or name the port where the remote has TLS"),
    Cause.TLS_WANTED: ("tls", "name a [tls.NAME] for this destination: the remote has TLS on this port"),
    Cause.UNTRUSTED: ("tls", "add its certificate, or that of its authority, to [tls.{tls}] trusted"),
    Cause.EXPIRED: ("tls", "have the remote's certificate replaced, or correct this machine's clock"),
    Cause.REVOKED: ("tls", "have the remote's certificate replaced: its authority has revoked it"),
    Cause.NAME: (
        "host",
        "use a name or address that its certificate has, or set [tls.{tls}] check_server_name = false",
    ),
    Cause.NO_CERTIFICATE: (
        "tls",
        "remove suites without certificates (aNULL, PSK) from [tls.{tls}] ciphers and from the remote",
    ),
    Cause.UNBOUND: (
        "certificate",
        "if the remote is the right one, write its fingerprint or subject into certificate, or its issuer's "
        "into issuer (`ingest certs inspect` prints them)",
    ),
    Cause.OURS_UNTRUSTED: (
        "tls",
        "have the remote trust [tls.{tls}] certificate, or that of its authority",
    ),
    Cause.OURS_EXPIRED: ("tls", "replace [tls.{tls}] certificate, or correct the remote's clock"),
    Cause.OURS_REFUSED: (
        "tls",
        "give [tls.{tls}] a certificate that the remote accepts; its log says why not",
    ),
    Cause.OURS_MISSING: (
        "tls",
        "set certificate and private_key in [tls.{tls}]: the remote requires a certificate",
    ),
    Cause.VERSION: (
        "tls",
        "let the remote speak TLS 1.2 or later, or set minimum_version in a profile of its own",
    ),
    Cause.CIPHER: ("tls", "choose another profile or ciphers in [tls.{tls}]: none is common to both"),
    Cause.CALLED: ("ae_title", "use the AE title that the remote has"),
    Cause.CALLING: ("ae_title", "enter our AE title {calling} and this host at the remote"),
    Cause.FULL: ("associations", "ask fewer associations of it, or raise its limit; it may be busy"),
    Cause.NO_CONTEXT: ("ae_title", "enable Verification (C-ECHO) for us at the remote"),
}
_OTHER_REMEDY: Final = ("host", "look into the log of the remote at this time")


_TLS_CAUSES: Final = frozenset(cause for cause, (key, _) in _REMEDIES.items() if key == "tls")


@dataclass(frozen=True, slots=True)
class EchoAnswer:
    """The answer of a destination.

    Attributes:
        name: Name of the destination.
        remote: The destination as a remote.
        seconds: Time from the first packet to the answer.
        certificate: The certificate that it presented; None without TLS, or if it cannot be read.
    """

    name: str
    remote: Remote
    seconds: float
    certificate: CertificateIdentity | None = None


def check_destinations(config: Config) -> list[EchoAnswer | Fault]:
    """Send a C-ECHO to every destination. TLS files that cannot be used are faults of `check_node`."""
    try:
        return echo_destinations(config)
    except ConfigError:
        return []


def check_connections(config: Config) -> tuple[list[EchoAnswer], list[Fault]]:
    """Connect to every destination and to the audit repository; return the answers, and faults with notes."""
    results = check_destinations(config)
    answers = [result for result in results if isinstance(result, EchoAnswer)]
    return answers, [*list_faults(results), *_check_groups(config, answers), *check_repository(config)]


def _check_groups(config: Config, answers: Sequence[EchoAnswer]) -> Iterator[Fault]:
    """Say what groups can do while some of their members do not answer."""
    reached = {answer.name for answer in answers}
    for index, group in enumerate(config.groups):
        there = [name for name in group.members if name in reached]
        key = f"groups[{index}].members"
        if not there:
            yield Fault(key, f"{group.name}: no member answers", "see the faults of its members")
        elif len(there) < len(group.members):
            cause = f"{group.name}: of {len(group.members)} members only {', '.join(there)} answers"
            remedy = "new studies go there; see the faults of the others"
            yield Fault(key, cause, remedy, kind=FaultKind.NOTE)


def check_repository(config: Config) -> list[Fault]:
    """Connect to the audit repository, with TLS, and send nothing. Return a fault if that fails."""
    settings = config.audit
    if settings is None:
        return []
    try:
        connect_to_repository(config, settings).close()
    except AssociationError as error:
        _, remedy = _REMEDIES.get(error.cause, _OTHER_REMEDY) if error.cause else _OTHER_REMEDY
        key = "audit.tls" if error.cause in _TLS_CAUSES else "audit.host"
        return [Fault(key, str(error), remedy.format(port=settings.port, tls=settings.tls, calling=""))]
    except ConfigError:
        return []  # a fault of `check_node`
    return []


def list_faults(results: Sequence[EchoAnswer | Fault]) -> list[Fault]:
    """Return the faults among the results, and a note for each certificate that ends soon."""
    faults = [result for result in results if isinstance(result, Fault)]
    return faults + [note for index, result in enumerate(results) for note in _check_expiry(index, result)]


def _check_expiry(index: int, result: EchoAnswer | Fault) -> Iterator[Fault]:
    """Yield a note if the certificate of a destination ends soon."""
    if isinstance(result, EchoAnswer) and result.certificate is not None:
        end = result.certificate.not_after
        left = end - datetime.now(UTC)
        if left <= SOON:
            cause = f"{result.name}: its certificate ({result.certificate.subject}) ends on {end:%Y-%m-%d}"
            is_urgent = left <= URGENT
            yield Fault(
                f"destinations[{index}].tls",
                f"{cause}, within 24 hours" if is_urgent else cause,
                f"have the certificate of the remote replaced {'now' if is_urgent else 'before'}",
                kind=FaultKind.WARNING if is_urgent else FaultKind.NOTE,
            )


def echo_destinations(config: Config) -> list[EchoAnswer | Fault]:
    """Send a C-ECHO to every destination, several at a time. Return one result for each, in order.

    Raises:
        ConfigError: TLS material cannot be used.
    """
    known = build_remotes(config)
    with ThreadPoolExecutor(MAX_PARALLEL) as pool:
        return list(
            pool.map(
                lambda numbered: _echo_destination(numbered[0], numbered[1], known[numbered[1].name]),
                enumerate(config.destinations),
            )
        )


def explain_failure(index: int, destination: Destination, calling_ae: str, error: AssociationError) -> Fault:
    """Return the fault that a failure means.

    Args:
        index: Index of the destination in the configuration.
        destination: The settings of the destination.
        calling_ae: The calling AE title.
        error: The failure.
    """
    cause = error.cause
    if cause is Cause.CLOSED:
        # Some remotes close the connection if they do not trust our certificate, or if they expect TLS.
        cause = Cause.OURS_UNTRUSTED if destination.tls else Cause.TLS_WANTED
    key, remedy = _REMEDIES.get(cause, _OTHER_REMEDY) if cause else _OTHER_REMEDY
    text = remedy.format(port=destination.port, tls=destination.tls, calling=calling_ae)
    return Fault(f"destinations[{index}].{key}", f"{destination.name}: {error}", text)


def _echo_destination(index: int, destination: Destination, remote: Remote) -> EchoAnswer | Fault:
    answer = min(destination.response_seconds, destination.connect_seconds)
    started = time.monotonic()
    try:
        status, der = send_echo(remote, Timeouts(destination.connect_seconds, answer))
    except AssociationError as error:
        return explain_failure(index, destination, remote.calling_ae, error)
    if status:
        cause = f"{destination.name}: {remote} answered the C-ECHO with {status:04X}H"
        return Fault(f"destinations[{index}].ae_title", cause, _OTHER_REMEDY[1])
    with contextlib.suppress(PeerError):
        certificate = read_identity(der) if der else None
        return EchoAnswer(destination.name, remote, time.monotonic() - started, certificate)
    return EchoAnswer(destination.name, remote, time.monotonic() - started)


def send_echo(remote: Remote, timeouts: Timeouts) -> tuple[int, bytes | None]:
    """Send a C-ECHO on its own association. Return the status and the certificate of the remote (DER).

    Raises:
        AssociationError: There is no association, or it has no presentation context for Verification.
    """
    context = (uids.VERIFICATION, (uids.IMPLICIT_LITTLE_ENDIAN,))
    with StoreSCU.open(remote, [context], timeouts=timeouts) as association:
        try:
            return association.send_echo().status, association.peer_certificate()
        except LookupError as error:
            raise AssociationError(str(error), cause=Cause.NO_CONTEXT) from error
