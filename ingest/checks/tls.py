"""Checks of the certificates, keys and CRLs that a configuration names."""

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
from ingest.tls.contexts import build_client_context, build_server_context, rehearse_handshake
from ingest.tls.expiry import ExpiringCertificate
from ingest.tls.identity import UNREADABLE
from ingest.tls.keys.loading import read_pair
from ingest.tls.keys.pairs import read_certificates

_NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Validity:
    """The validity of a certificate or CRL (RFC 5280 4.1.2.5 and 5.1.2.5).

    Attributes:
        digest: SHA-256 of the content. It identifies the content in every file and section.
        key: The key in the configuration.
        subject: File and name, for a message.
        begin: Begin of the validity.
        end: End of the validity.
        remedy: What to do outside the validity.
        issuer: The issuer of a CRL; empty for a certificate.
    """

    digest: str
    key: str
    subject: str
    begin: datetime
    end: datetime
    remedy: str
    issuer: str = ""


def list_validities(config: Config, now: datetime) -> list[Validity]:
    """Return the validities of own certificates, of each `trusted` as a whole, and of required CRLs.

    Only sections that are used count. A file that cannot be parsed is left out: OpenSSL is less strict, and
    may have accepted it.
    """
    used = _list_serving(config) | {each.tls for each in config.destinations}
    found: list[Validity] = []
    for name, tls in config.tls.items():
        if name not in used:
            continue
        for each in (
            _find_own_validity(name, tls),
            _find_trusted_validity(name, tls, now),
            _find_crl_validities(name, tls, now),
        ):
            with contextlib.suppress(IngestError, *UNREADABLE):
                found += each
    return found


def find_untimely(new: Sequence[Validity], in_force: Collection[Validity], now: datetime) -> list[str]:
    """Return why a reload must refuse a configuration: new files that are not valid now.

    A file that is in force already is no reason: a refusal would not make it valid, and would keep out the
    other changes. Neither is a CRL if its issuer has no valid CRL in force: the issuer may publish late.

    Args:
        new: Validities of the new configuration.
        in_force: Validities of the configuration in force.
        now: The time, with a time zone.
    """
    known = {each.digest for each in in_force}
    timely_issuers = {each.issuer for each in in_force if each.begin <= now < each.end}
    return [
        str(Fault(each.key, f"{each.subject} {_explain_untimely(each, now)}", each.remedy))
        for each in new
        if each.digest not in known
        and not each.begin <= now < each.end
        and (not each.issuer or each.issuer in timely_issuers)
    ]


def _explain_untimely(validity: Validity, now: datetime) -> str:
    if now < validity.begin:
        return f"is not valid before {validity.begin:%Y-%m-%d %H:%M} UTC"
    return f"ended on {validity.end:%Y-%m-%d %H:%M} UTC"


def _find_own_validity(name: str, tls: TLS) -> Iterator[Validity]:
    """Yield the validity of the own certificate, not of its chain: peers may know another chain."""
    for path, (own, *_) in _read_own_chain(tls):
        yield Validity(
            own.fingerprint(hashes.SHA256()).hex(),
            _name_own_key(f"tls.{name}", tls),
            f"{path}: the certificate ({own.subject.rfc4514_string()})",
            own.not_valid_before_utc,
            own.not_valid_after_utc,
            "name one that is valid now, or correct the clock",
        )


def _find_trusted_validity(name: str, tls: TLS, now: datetime) -> Iterator[Validity]:
    """Yield one validity for all trusted certificates: if one of them ends, only its peer is affected."""
    found = read_certificates(tls.trusted, tls.password_file)
    if not found:
        return

    def rank(each: x509.Certificate) -> tuple[bool, datetime]:
        return each.not_valid_before_utc <= now < each.not_valid_after_utc, each.not_valid_after_utc

    best = max(found, key=rank)
    digests = sorted(each.fingerprint(hashes.SHA256()).hex() for each in found)
    yield Validity(
        hashlib.sha256("".join(digests).encode()).hexdigest(),
        f"tls.{name}.trusted",
        "every certificate in it" if len(found) > 1 else "the certificate in it",
        best.not_valid_before_utc,
        best.not_valid_after_utc,
        "name certificates that are valid now, or correct the clock",
    )


def _find_crl_validities(name: str, tls: TLS, now: datetime) -> Iterator[Validity]:
    """Yield for each issuer the validity of its longest CRL, if an old CRL makes the node refuse peers.

    A CRL that is not valid yet counts less: it may have been fetched early, beside the CRL in use.
    """
    if tls.crl_expired != "refuse":
        return
    longest: dict[str, Validity] = {}
    for index, path in enumerate(tls.crl):
        for file, found in revocation.read_lists(path):
            if revocation.explain_unused_list(found):
                continue
            try:
                issuer = found.issuer.rfc4514_string()
            except UNREADABLE:
                continue
            term = Validity(
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
    """Yield the faults and notes of every `[tls.NAME]`."""
    serving = _list_serving(config)
    sending = {destination.tls for destination in config.destinations}
    for name, tls in config.tls.items():
        key = f"tls.{name}"
        try:
            if name in serving:
                build_server_context(tls)
            if name in sending or name not in serving:
                build_client_context(tls)
            rehearse_handshake(tls)
        except ConfigError as error:
            for cause in error.faults:  # each names its remedy
                yield Fault(key, cause, "")
            continue  # the other checks need the files too
        try:
            yield from check_validity_now(key, tls, now)
            yield from _check_pair(key, tls, serving=name in serving, sending=name in sending)
        except IngestError as error:  # OpenSSL is less strict, and has accepted it
            yield Fault(key, f"{error}", "have it issued again; it may work as it is", kind=FaultKind.NOTE)
        if tls.password_file is not None:
            yield from _check_secrecy(f"{key}.password_file", tls.password_file)
        yield from _check_expiry(config, f"tls.{name}", now)
    yield from _check_observed(config, now)


def _list_serving(config: Config) -> set[str | bool]:
    """Return the sections of listeners and console."""
    found: set[str | bool] = {listener.tls for listener in config.listeners}
    return found | {config.console.tls} if config.console is not None else found


def check_validity_now(key: str, tls: TLS, now: datetime) -> Iterator[Fault]:
    """Yield an own certificate that is not valid yet, and CRLs that are due.

    Raises:
        IngestError: A file cannot be read.
    """
    yield from _check_crls(key, tls, now)
    for path, chain in _read_own_chain(tls):
        begin = chain[0].not_valid_before_utc
        if begin > now:
            cause = f"{path}: is not valid before {begin:%Y-%m-%d %H:%M} UTC"
            yield Fault(_name_own_key(key, tls), cause, "correct the clock, or create another certificate")


def _check_pair(key: str, tls: TLS, *, serving: bool, sending: bool) -> Iterator[Fault]:
    own_key = _name_own_key(key, tls)
    for path, chain in _read_own_chain(tls):
        yield from _check_secrecy(
            f"{key}.private_key" if tls.private_key else own_key, tls.private_key or path
        )
        yield from _check_chain_order(own_key, path, chain)
        yield from _check_purposes(own_key, path, chain[0], serving=serving, sending=sending)


def _name_own_key(key: str, tls: TLS) -> str:
    return f"{key}.certificate" if tls.pkcs12 is None else f"{key}.pkcs12"


def _read_own_chain(tls: TLS) -> Iterator[tuple[Path, list[x509.Certificate]]]:
    """Yield the file and the chain of the own certificate, if there is one."""
    own = read_pair(tls)
    if own is None:
        return
    pair, path, _ = own
    try:
        chain = [x509.load_pem_x509_certificate(text.encode()) for text in pair.certificates]
    except UNREADABLE as error:
        raise IngestError(f"{path}: its certificate cannot be parsed: {error}") from None
    yield path, chain


def _check_crls(key: str, tls: TLS, now: datetime) -> Iterator[Fault]:
    """Yield CRLs without effect, and trusted certificates that are revoked.

    It is a fault if no trusted certificate is left, otherwise a note.
    """
    for index, path in enumerate(tls.crl):
        for file, found in revocation.read_lists(path):
            for cause, remedy in revocation.find_list_doubts(found, tls.crl_expired, now):
                yield Fault(f"{key}.crl[{index}]", f"{file}: {cause}", remedy, kind=FaultKind.NOTE)
    out = revocation.find_revoked_trusted(tls)
    kind = FaultKind.NOTE if out and len(out) < len(revocation.read_trusted(tls)) else FaultKind.FAULT
    for each, why in out:
        subject = each.certificate.subject.rfc4514_string() if each.certificate else ""
        cause = f"{each.file}: {subject} is not trusted: {why}"
        remedy = "remove it from trusted, and name its replacement"
        yield Fault(f"{key}.trusted[{each.index}]", cause, remedy, kind=kind)


def _check_chain_order(key: str, path: Path, chain: Sequence[x509.Certificate]) -> Iterator[Fault]:
    for child, parent in pairwise(chain):
        try:
            child.verify_directly_issued_by(parent)
        except (InvalidSignature, *UNREADABLE):
            cause = f"{path}: {child.subject.rfc4514_string()} is not signed by the next certificate"
            yield Fault(key, cause, "order the chain: own certificate, its issuer, and so on")


def _check_purposes(
    key: str, path: Path, own: x509.Certificate, *, serving: bool, sending: bool
) -> Iterator[Fault]:
    """Yield roles of the certificate that its extended key usage does not allow."""
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


def _check_secrecy(key: str, path: Path) -> Iterator[Fault]:
    if path.stat().st_mode & 0o077:
        yield Fault(key, f"{path}: other users may read it", f"chmod 600 {path}", kind=FaultKind.NOTE)


def _check_expiry(config: Config, section: str, now: datetime) -> Iterator[Fault]:
    """Yield certificates that have ended or will end soon.

    A trusted certificate that has ended affects only its peer. It is a note, unless a peer is bound to it or
    no other certificate is trusted.
    """
    found: list[ExpiringCertificate] = []
    for place in expiry.iterate_locations(config):
        if place.section == section:
            try:
                found += expiry.read_certificates(config, place)
            except IngestError as error:
                yield Fault(
                    f"{section}.{place.key}",
                    str(error),
                    "remove the file that cannot be read",
                    kind=FaultKind.NOTE,
                )
    none_is_valid = all(
        each.identity.not_after <= now for each in found if each.location.key.startswith("trusted")
    )
    for each in found:
        end, key = each.identity.not_after, f"{section}.{each.location.key}"
        cause = f"{each.location.path}: {_name_role(each)} ({each.identity.subject})"
        if end <= now:
            kind = FaultKind.FAULT if each.is_needed or none_is_valid else FaultKind.NOTE
            yield Fault(key, f"{cause} ended on {end:%Y-%m-%d}", "replace it", kind=kind)
        elif each.is_needed and end <= now + expiry.URGENT:
            cause = f"{cause} ends on {end:%Y-%m-%d %H:%M} UTC, within 24 hours"
            yield Fault(key, cause, "replace it now, then `ingest reload`", kind=FaultKind.WARNING)
        elif end <= now + expiry.SOON:
            yield Fault(key, f"{cause} ends on {end:%Y-%m-%d}", "replace it before", kind=FaultKind.NOTE)


def _check_observed(config: Config, now: datetime) -> Iterator[Fault]:
    """Yield certificates that bound peers and destinations presented lately, and that are in no file."""
    for each in expiry.iterate_observed(config):
        end, key = each.identity.not_after, f"{each.location.section}.{each.location.key}"
        if end <= now + expiry.SOON:
            cause = f"its certificate ({each.identity.subject}) {'ended' if end <= now else 'ends'}"
            yield Fault(key, f"{cause} on {end:%Y-%m-%d}", "have its holder replace it", kind=FaultKind.NOTE)


def _name_role(each: ExpiringCertificate) -> str:
    names = ", ".join(each.subjects_named)
    return {
        "own": "the certificate",
        "issuer": "an issuer in the chain",
        "peer": f"the certificate of {names}",
        "trusted": f"a trusted certificate, used for {names}," if names else "a trusted certificate",
    }[each.role]
