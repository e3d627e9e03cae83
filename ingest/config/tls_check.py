"""Looks at the certificates and keys that a configuration names: do they fit, and until when."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID

from ingest.config.faults import Fault
from ingest.config.model import TLS, Config
from ingest.errors import ConfigError, IngestError
from ingest.tls import crl, pem
from ingest.tls.contexts import client_context, server_context
from ingest.tls.identity import Identity
from ingest.tls.pki import inspect

SOON = timedelta(days=30)
"""A certificate that ends within it is worth a word."""


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
        yield from ends(key, tls, now)
        if tls.certificate is not None and tls.private_key is not None:
            yield from _chain_order(key, tls.certificate)
            yield from _purposes(key, tls.certificate, serving=name in serving, sending=name in sending)
            yield from _secrecy(f"{key}.private_key", tls.private_key)
        yield from _trusted(key, tls, now)


def ends(key: str, tls: TLS, now: datetime) -> Iterator[Fault]:
    """Own certificates that ended, will soon, or are not valid yet; revocation lists that are due.

    Raises:
        IngestError: The file cannot be read.
    """
    yield from _lists(key, tls, now)
    if tls.certificate is None:
        return
    for index, identity in enumerate(inspect(tls.certificate)):
        which = "the certificate" if index == 0 else f"certificate {index + 1} of the chain"
        yield from _dates(f"{key}.certificate", tls.certificate, which, identity, now, note=False)
    begin = _chain(tls.certificate)[0].not_valid_before_utc
    if begin > now:
        cause = f"{tls.certificate}: is not valid before {begin:%Y-%m-%d %H:%M} UTC"
        yield Fault(f"{key}.certificate", cause, "correct the clock, or make another certificate")


def _lists(key: str, tls: TLS, now: datetime) -> Iterator[Fault]:
    """RFC 5280 5.1.2.5: a new list is to be there by nextUpdate."""
    for index, path in enumerate(tls.crl):
        for file, found in crl.lists(path):
            if found.next_update_utc is not None and found.next_update_utc <= now:
                issuer, end = found.issuer.rfc4514_string(), found.next_update_utc
                cause = f"{file}: a new CRL of {issuer} was due on {end:%Y-%m-%d %H:%M} UTC"
                remedy = f'fetch it; crl_expired = "{tls.crl_expired}" decides about its peers until then'
                yield Fault(f"{key}.crl[{index}]", cause, remedy, note=True)


def _chain_order(key: str, path: Path) -> Iterator[Fault]:
    chain = _chain(path)
    for child, parent in pairwise(chain):
        try:
            child.verify_directly_issued_by(parent)
        except (ValueError, TypeError, InvalidSignature):
            cause = f"{path}: {child.subject.rfc4514_string()} is not signed by what follows it"
            yield Fault(
                f"{key}.certificate", cause, "order the chain: own certificate, its issuer, and so on"
            )


def _chain(path: Path) -> list[x509.Certificate]:
    return [x509.load_pem_x509_certificate(text.encode()) for _, texts in pem.blocks(path) for text in texts]


def _dates(
    key: str, path: Path, which: str, identity: Identity, now: datetime, *, note: bool
) -> Iterator[Fault]:
    end = identity.not_after
    if end <= now:
        cause = f"{path}: {which} ({identity.subject}) ended on {end:%Y-%m-%d}"
        yield Fault(key, cause, "replace it", note=note)
    elif end <= now + SOON:
        cause = f"{path}: {which} ({identity.subject}) ends on {end:%Y-%m-%d}"
        yield Fault(key, cause, "replace it before", note=True)


def _purposes(key: str, path: Path, *, serving: bool, sending: bool) -> Iterator[Fault]:
    """An extended key usage, where there is one, must name the roles that the pair plays."""
    try:
        extension = _chain(path)[0].extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    except (x509.ExtensionNotFound, ValueError):
        return
    usages = set(extension.value)
    wanted = [(serving, ExtendedKeyUsageOID.SERVER_AUTH, "serverAuth", "a listener")]
    wanted.append((sending, ExtendedKeyUsageOID.CLIENT_AUTH, "clientAuth", "a destination"))
    for used, oid, name, role in wanted:
        if used and not usages & {oid, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}:
            cause = f"{path}: its extended key usage lacks {name}, so peers refuse it from {role}"
            yield Fault(
                f"{key}.certificate", cause, f"have it issued with {name}, or use another [tls.NAME] there"
            )


def _secrecy(key: str, path: Path) -> Iterator[Fault]:
    if path.stat().st_mode & 0o077:
        yield Fault(key, f"{path}: others than its owner may read it", f"chmod 600 {path}", note=True)


def _trusted(key: str, tls: TLS, now: datetime) -> Iterator[Fault]:
    """A trusted certificate that ended keeps its peer out, but not the others: a note."""
    for index, path in enumerate(tls.trusted):
        try:
            for identity in inspect(path):
                yield from _dates(
                    f"{key}.trusted[{index}]", path, "a peer's certificate", identity, now, note=True
                )
        except IngestError as error:
            yield Fault(f"{key}.trusted[{index}]", str(error), "remove what cannot be read", note=True)
