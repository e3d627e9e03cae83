"""`ingest check --connect`: a C-ECHO to every destination, and what to do about each that fails."""

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from rich.console import Console
from rich.markup import escape

from ingest.config.faults import Fault, FaultKind
from ingest.config.model import Config, Destination
from ingest.dicom import uids
from ingest.errors import AssociationError, Cause, ConfigError, PeerError
from ingest.requestor.remotes import build_remotes
from ingest.requestor.store_scu import Remote, StoreSCU, Timeouts
from ingest.tls.expiry import SOON
from ingest.tls.identity import CertificateIdentity, read_identity

AT_ONCE: Final = 16

# Of a destination's key, what is at fault, and the remedy; both may use the fields of the destination.
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
        "into issuer (`ingest certs inspect` tells them)",
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
        "set certificate and private_key in [tls.{tls}]: the remote wants to see one",
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
_OTHER: Final = ("host", "look into the log of the remote at this time")


@dataclass(frozen=True, slots=True)
class Connected:
    """A destination that answered.

    Attributes:
        name: Of the destination.
        remote: It.
        seconds: From the first packet to the answer.
        certificate: What it has shown; None without TLS, or where it cannot be read.
    """

    name: str
    remote: Remote
    seconds: float
    certificate: CertificateIdentity | None = None


def ask(config: Config) -> list[Fault]:
    """Ask every destination; those that answer are printed, the others are returned.

    TLS material that cannot be used is a fault of its own, which `ingest.checks.node` reports.
    """
    try:
        results = connect_all(config)
    except ConfigError:
        return []
    console = Console(highlight=False, soft_wrap=True)
    for result in results:
        if isinstance(result, Connected):
            took = f"answered in {result.seconds * 1000:.0f} ms"
            console.print(f"[green]ok   [/green] {escape(f'{result.name}: {result.remote}')} {took}")
    found = [result for result in results if isinstance(result, Fault)]
    return found + [note for index, result in enumerate(results) for note in _ends(index, result)]


def _ends(index: int, result: Connected | Fault) -> Iterator[Fault]:
    """A note where a destination that answers has a certificate that ends soon."""
    if isinstance(result, Connected) and result.certificate is not None:
        end = result.certificate.not_after
        if end <= datetime.now(UTC) + SOON:
            cause = f"{result.name}: its certificate ({result.certificate.subject}) ends on {end:%Y-%m-%d}"
            yield Fault(
                f"destinations[{index}].tls", cause, "have the remote's replaced before", kind=FaultKind.NOTE
            )


def connect_all(config: Config) -> list[Connected | Fault]:
    """Ask every destination, several at a time; one result for each, in the order of the file.

    Raises:
        ConfigError: TLS material cannot be used.
    """
    known = build_remotes(config)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(
            pool.map(
                lambda numbered: _connect(numbered[0], numbered[1], known[numbered[1].name]),
                enumerate(config.destinations),
            )
        )


def explained(index: int, destination: Destination, calling_ae: str, error: AssociationError) -> Fault:
    """The fault that a failure means.

    Args:
        index: Of the destination in the configuration.
        destination: What the configuration says of it.
        calling_ae: Our AE title.
        error: What happened.
    """
    cause = error.cause
    if cause is Cause.CLOSED:
        # Some close without a word where they do not know our certificate, or expect TLS.
        cause = Cause.OURS_UNTRUSTED if destination.tls else Cause.TLS_WANTED
    key, remedy = _REMEDIES.get(cause, _OTHER) if cause else _OTHER
    said = remedy.format(port=destination.port, tls=destination.tls, calling=calling_ae)
    return Fault(f"destinations[{index}].{key}", f"{destination.name}: {error}", said)


def _connect(index: int, destination: Destination, remote: Remote) -> Connected | Fault:
    answer = min(destination.response_seconds, destination.connect_seconds)
    started = time.monotonic()
    try:
        status, shown = echo(remote, Timeouts(destination.connect_seconds, answer))
    except AssociationError as error:
        return explained(index, destination, remote.calling_ae, error)
    if status:
        cause = f"{destination.name}: {remote} answered the C-ECHO with {status:04X}H"
        return Fault(f"destinations[{index}].ae_title", cause, _OTHER[1])
    with contextlib.suppress(PeerError):
        certificate = read_identity(shown) if shown else None
        return Connected(destination.name, remote, time.monotonic() - started, certificate)
    return Connected(destination.name, remote, time.monotonic() - started)


def echo(remote: Remote, timeouts: Timeouts) -> tuple[int, bytes | None]:
    """C-ECHO on an association of its own; the status of the answer, and the remote's certificate, DER.

    Raises:
        AssociationError: There is no association, or it carries no Verification.
    """
    context = (uids.VERIFICATION, (uids.IMPLICIT_LITTLE_ENDIAN,))
    with StoreSCU.open(remote, [context], timeouts=timeouts) as association:
        try:
            return association.send_echo().status, association.peer_certificate()
        except LookupError as error:
            raise AssociationError(str(error), cause=Cause.NO_CONTEXT) from error
