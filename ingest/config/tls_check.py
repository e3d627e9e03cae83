"""Looks at the certificates and keys that a configuration names: do they fit, and until when."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID

from ingest.config.faults import Fault
from ingest.config.model import TLS, Config
from ingest.errors import ConfigError, IngestError
from ingest.tls import crl, expiry
from ingest.tls.contexts import client_context, server_context
from ingest.tls.expiry import Dated
from ingest.tls.identity import UNREADABLE
from ingest.tls.material import read_pair


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
        except ConfigError as error:
            for line in error.faults:
                cause, _, remedy = line.rpartition("; ")
                yield Fault(key, cause, remedy)
            continue  # what cannot be loaded cannot be looked at either
        try:
            yield from due(key, tls, now)
            yield from _pair(key, tls, serving=name in serving, sending=name in sending)
        except IngestError as error:  # OpenSSL is less strict, and has taken it
            yield Fault(key, f"{error}", "have it issued again; it may work as it is", note=True)
        if tls.password_file is not None:
            yield from _secrecy(f"{key}.password_file", tls.password_file)
        yield from _ends(config, f"tls.{name}", now)


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
    """RFC 5280 5.1.2.5: a new list is to be there by nextUpdate."""
    for index, path in enumerate(tls.crl):
        for file, found in crl.lists(path):
            if found.next_update_utc is not None and found.next_update_utc <= now:
                issuer, end = found.issuer.rfc4514_string(), found.next_update_utc
                cause = f"{file}: a new CRL of {issuer} was due on {end:%Y-%m-%d %H:%M} UTC"
                remedy = f'fetch it; crl_expired = "{tls.crl_expired}" decides about its peers until then'
                yield Fault(f"{key}.crl[{index}]", cause, remedy, note=True)


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
        yield Fault(key, f"{path}: others than its owner may read it", f"chmod 600 {path}", note=True)


def _ends(config: Config, section: str, now: datetime) -> Iterator[Fault]:
    """Certificates that ended or will soon.

    A trusted one that ended keeps its peer out, but not the others: a note, unless a peer is bound to it, or
    nobody else is trusted.
    """
    found: list[Dated] = []
    for place in expiry.places(config):
        if place.section == section:
            try:
                found += expiry.certificates(config, place)
            except IngestError as error:
                yield Fault(f"{section}.{place.key}", str(error), "remove what cannot be read", note=True)
    nobody = all(each.identity.not_after <= now for each in found if each.place.key.startswith("trusted"))
    for each in found:
        end, key = each.identity.not_after, f"{section}.{each.place.key}"
        cause = f"{each.place.path}: {_which(each)} ({each.identity.subject})"
        if end <= now:
            note = not (each.needed or nobody)
            yield Fault(key, f"{cause} ended on {end:%Y-%m-%d}", "replace it", note=note)
        elif end <= now + expiry.SOON:
            yield Fault(key, f"{cause} ends on {end:%Y-%m-%d}", "replace it before", note=True)


def _which(each: Dated) -> str:
    names = ", ".join(each.whose)
    return {
        "own": "the certificate",
        "issuer": "an issuer in the chain",
        "peer": f"the certificate of {names}",
        "trusted": f"a trusted certificate, used for {names}," if names else "a trusted certificate",
    }[each.role]
