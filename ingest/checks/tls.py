"""Looks at the certificates and keys that a configuration names: do they fit, and until when."""

import contextlib
import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from ingest.config.faults import Fault, FaultKind
from ingest.config.model import TLS, Config
from ingest.errors import ConfigError, IngestError
from ingest.tls import expiry, revocation
from ingest.tls.contexts import client_context, rehearse, server_context
from ingest.tls.expiry import ExpiringCertificate
from ingest.tls.identity import UNREADABLE
from ingest.tls.keys.loading import read_pair
from ingest.tls.keys.pairs import read_certificates

_NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Term:
    """How long something that a section needs is good; RFC 5280 4.1.2.5, and 5.1.2.5 of a CRL.

    Attributes:
        digest: SHA-256 of what it is, so that it is known again whatever its file and section.
        key: In the configuration.
        what: File and name, for a message.
        remedy: What to do when it is not good.
        issuer: Of a CRL; else empty.
    """

    digest: str
    key: str
    what: str
    begin: datetime
    end: datetime
    remedy: str
    issuer: str = ""


def terms(config: Config, now: datetime) -> list[Term]:
    """Of our own certificates, of each `trusted` as a whole, and of CRLs that must be fresh, where used.

    What cannot be looked at is left out: OpenSSL is less strict, and may have taken it.
    """
    used = {each.tls for each in config.listeners} | {each.tls for each in config.destinations}
    found: list[Term] = []
    for name, tls in config.tls.items():
        if name not in used:
            continue
        for each in (_own_term(name, tls), _trusted_term(name, tls, now), _list_terms(name, tls, now)):
            with contextlib.suppress(IngestError, *UNREADABLE):
                found += each
    return found


def untimely(new: Sequence[Term], held: Collection[Term], now: datetime) -> list[str]:
    """Why a reload must not take what is new in a configuration: it has ended, or is not good yet.

    What is in force already is no reason: to refuse would not make it good, and keep out what else is new. No
    more is a CRL of an issuer that has no good one in force either: it may publish late.

    Args:
        new: Of the configuration that is to be taken.
        held: Of the one in force.
        now: With a time zone.
    """
    known = {term.digest for term in held}
    fresh = {term.issuer for term in held if term.begin <= now < term.end}
    return [
        str(Fault(term.key, f"{term.what} {_untimely(term, now)}", term.remedy))
        for term in new
        if term.digest not in known
        and not term.begin <= now < term.end
        and (not term.issuer or term.issuer in fresh)
    ]


def _untimely(term: Term, now: datetime) -> str:
    if now < term.begin:
        return f"is not valid before {term.begin:%Y-%m-%d %H:%M} UTC"
    return f"ended on {term.end:%Y-%m-%d %H:%M} UTC"


def _own_term(name: str, tls: TLS) -> Iterator[Term]:
    """Not of its chain: peers may know another way from there on."""
    for path, (own, *_) in _own(tls):
        yield Term(
            own.fingerprint(hashes.SHA256()).hex(),
            _where(f"tls.{name}", tls),
            f"{path}: the certificate ({own.subject.rfc4514_string()})",
            own.not_valid_before_utc,
            own.not_valid_after_utc,
            "name one that is valid now, or correct the clock",
        )


def _trusted_term(name: str, tls: TLS, now: datetime) -> Iterator[Term]:
    """One for all: that one of them has ended keeps its peer out, and nobody else."""
    found = read_certificates(tls.trusted, tls.password_file)
    if not found:
        return

    def worth(each: x509.Certificate) -> tuple[bool, datetime]:
        return each.not_valid_before_utc <= now < each.not_valid_after_utc, each.not_valid_after_utc

    best = max(found, key=worth)
    digests = sorted(each.fingerprint(hashes.SHA256()).hex() for each in found)
    yield Term(
        hashlib.sha256("".join(digests).encode()).hexdigest(),
        f"tls.{name}.trusted",
        "all that is in it" if len(found) > 1 else "the one that is in it",
        best.not_valid_before_utc,
        best.not_valid_after_utc,
        "name certificates that are valid now, or correct the clock",
    )


def _list_terms(name: str, tls: TLS, now: datetime) -> Iterator[Term]:
    """Of each issuer the list that lasts longest, where an old one keeps out all whom it issued.

    One that is not valid yet stands back: it may have been fetched before its time, beside the one in use.
    """
    if tls.crl_expired != "refuse":
        return
    longest: dict[str, Term] = {}
    for index, path in enumerate(tls.crl):
        for file, found in revocation.lists(path):
            if revocation.unused(found):
                continue
            try:
                issuer = found.issuer.rfc4514_string()
            except UNREADABLE:
                continue
            term = Term(
                found.fingerprint(hashes.SHA256()).hex(),
                f"tls.{name}.crl[{index}]",
                f"{file}: the CRL of {issuer}",
                found.last_update_utc,
                found.next_update_utc or _NEVER,
                'fetch it again, or set crl_expired = "allow"',
                issuer,
            )
            longest[issuer] = max(
                term, longest.get(issuer, term), key=lambda each: (each.begin <= now, each.end)
            )
    yield from longest.values()


def check_tls(config: Config, now: datetime) -> Iterator[Fault]:
    """Faults and notes of every `[tls.NAME]`."""
    serving = {listener.tls for listener in config.listeners}
    sending = {destination.tls for destination in config.destinations}
    for name, tls in config.tls.items():
        key = f"tls.{name}"
        try:
            if name in serving:
                server_context(tls)
            if name in sending or name not in serving:
                client_context(tls)
            rehearse(tls)
        except ConfigError as error:
            for cause in error.faults:  # each names its remedy
                yield Fault(key, cause, "")
            continue  # what cannot be loaded cannot be looked at either
        try:
            yield from due(key, tls, now)
            yield from _pair(key, tls, serving=name in serving, sending=name in sending)
        except IngestError as error:  # OpenSSL is less strict, and has taken it
            yield Fault(key, f"{error}", "have it issued again; it may work as it is", kind=FaultKind.NOTE)
        if tls.password_file is not None:
            yield from _secrecy(f"{key}.password_file", tls.password_file)
        yield from _ends(config, f"tls.{name}", now)
    yield from _shown(config, now)


def due(key: str, tls: TLS, now: datetime) -> Iterator[Fault]:
    """An own certificate that is not valid yet, and revocation lists that are due.

    Raises:
        IngestError: A file cannot be read.
    """
    yield from _lists(key, tls, now)
    for path, chain in _own(tls):
        begin = chain[0].not_valid_before_utc
        if begin > now:
            cause = f"{path}: is not valid before {begin:%Y-%m-%d %H:%M} UTC"
            yield Fault(_where(key, tls), cause, "correct the clock, or make another certificate")


def _pair(key: str, tls: TLS, *, serving: bool, sending: bool) -> Iterator[Fault]:
    where = _where(key, tls)
    for path, chain in _own(tls):
        yield from _secrecy(f"{key}.private_key" if tls.private_key else where, tls.private_key or path)
        yield from _chain_order(where, path, chain)
        yield from _purposes(where, path, chain[0], serving=serving, sending=sending)


def _where(key: str, tls: TLS) -> str:
    return f"{key}.certificate" if tls.pkcs12 is None else f"{key}.pkcs12"


def _own(tls: TLS) -> Iterator[tuple[Path, list[x509.Certificate]]]:
    """The own certificate with its chain, where there is one, and its file."""
    own = read_pair(tls)
    if own is None:
        return
    pair, path, _ = own
    try:
        chain = [x509.load_pem_x509_certificate(text.encode()) for text in pair.certificates]
    except UNREADABLE as error:
        raise IngestError(f"{path}: its certificate cannot be looked at: {error}") from None
    yield path, chain


def _lists(key: str, tls: TLS, now: datetime) -> Iterator[Fault]:
    """Lists of no use, and what they keep from being trusted: a fault, where nothing is left."""
    for index, path in enumerate(tls.crl):
        for file, found in revocation.lists(path):
            for cause, remedy in revocation.doubts(found, tls.crl_expired, now):
                yield Fault(f"{key}.crl[{index}]", f"{file}: {cause}", remedy, kind=FaultKind.NOTE)
    out = revocation.revoked(tls)
    kind = FaultKind.NOTE if out and len(out) < len(revocation.trusted(tls)) else FaultKind.FAULT
    for each, why in out:
        subject = each.certificate.subject.rfc4514_string() if each.certificate else ""
        cause = f"{each.file}: {subject} is not trusted: {why}"
        remedy = "remove it from trusted, and name what has replaced it"
        yield Fault(f"{key}.trusted[{each.index}]", cause, remedy, kind=kind)


def _chain_order(key: str, path: Path, chain: Sequence[x509.Certificate]) -> Iterator[Fault]:
    for child, parent in pairwise(chain):
        try:
            child.verify_directly_issued_by(parent)
        except (InvalidSignature, *UNREADABLE):
            cause = f"{path}: {child.subject.rfc4514_string()} is not signed by what follows it"
            yield Fault(key, cause, "order the chain: own certificate, its issuer, and so on")


def _purposes(
    key: str, path: Path, own: x509.Certificate, *, serving: bool, sending: bool
) -> Iterator[Fault]:
    """An extended key usage, where there is one, must name the roles that the pair plays."""
    try:
        extension = own.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    except (x509.ExtensionNotFound, *UNREADABLE):
        return
    usages = set(extension.value)
    wanted = [(serving, ExtendedKeyUsageOID.SERVER_AUTH, "serverAuth", "a listener")]
    wanted.append((sending, ExtendedKeyUsageOID.CLIENT_AUTH, "clientAuth", "a destination"))
    for used, oid, name, role in wanted:
        if used and not usages & {oid, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}:
            cause = f"{path}: its extended key usage lacks {name}, so peers refuse it from {role}"
            yield Fault(key, cause, f"have it issued with {name}, or use another [tls.NAME] there")


def _secrecy(key: str, path: Path) -> Iterator[Fault]:
    if path.stat().st_mode & 0o077:
        yield Fault(
            key, f"{path}: others than its owner may read it", f"chmod 600 {path}", kind=FaultKind.NOTE
        )


def _ends(config: Config, section: str, now: datetime) -> Iterator[Fault]:
    """Certificates that ended or will soon.

    A trusted one that ended keeps its peer out, but not the others: a note, unless a peer is bound to it, or
    nobody else is trusted.
    """
    found: list[ExpiringCertificate] = []
    for place in expiry.iterate_locations(config):
        if place.section == section:
            try:
                found += expiry.read_certificates(config, place)
            except IngestError as error:
                yield Fault(
                    f"{section}.{place.key}", str(error), "remove what cannot be read", kind=FaultKind.NOTE
                )
    nobody = all(each.identity.not_after <= now for each in found if each.location.key.startswith("trusted"))
    for each in found:
        end, key = each.identity.not_after, f"{section}.{each.location.key}"
        cause = f"{each.location.path}: {_which(each)} ({each.identity.subject})"
        if end <= now:
            kind = FaultKind.FAULT if each.is_needed or nobody else FaultKind.NOTE
            yield Fault(key, f"{cause} ended on {end:%Y-%m-%d}", "replace it", kind=kind)
        elif end <= now + expiry.SOON:
            yield Fault(key, f"{cause} ends on {end:%Y-%m-%d}", "replace it before", kind=FaultKind.NOTE)


def _shown(config: Config, now: datetime) -> Iterator[Fault]:
    """What bound peers and destinations have shown lately, and is in no file."""
    for each in expiry.iterate_observed(config):
        end, key = each.identity.not_after, f"{each.location.section}.{each.location.key}"
        if end <= now + expiry.SOON:
            cause = f"its certificate ({each.identity.subject}) {'ended' if end <= now else 'ends'}"
            yield Fault(key, f"{cause} on {end:%Y-%m-%d}", "have its holder replace it", kind=FaultKind.NOTE)


def _which(each: ExpiringCertificate) -> str:
    names = ", ".join(each.subjects_named)
    return {
        "own": "the certificate",
        "issuer": "an issuer in the chain",
        "peer": f"the certificate of {names}",
        "trusted": f"a trusted certificate, used for {names}," if names else "a trusted certificate",
    }[each.role]
