"""What is wrong, or may surprise, with certificates that `[[peers]]` and `[[destinations]]` are bound to."""

import contextlib
import ipaddress
import ssl
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Protocol

from ingest.config.faults import Fault
from ingest.config.model import TLS, Config
from ingest.dicom.admission import is_bound
from ingest.errors import IngestError
from ingest.ext.errors import PeerError
from ingest.tls.identity import (
    CertificateIdentity,
    explain_unmatchable,
    is_fingerprint,
    matches_identity,
    read_identity,
    read_trust_anchor,
)
from ingest.tls.keys import formats

_HOWTO = (
    "write a SHA-256 fingerprint (`ingest certs inspect` tells it), or the whole subject as `openssl x509 "
    "-subject` prints it"
)


class Bound(Protocol):
    """One of `[[peers]]` or `[[destinations]]`."""

    @property
    def certificate(self) -> str: ...
    @property
    def issuer(self) -> str: ...


def faults(config: Config) -> Iterator[Fault]:
    """What no peer can ever meet."""
    for index, peer in enumerate(config.peers):
        for at, host in enumerate(peer.hosts):
            try:
                ipaddress.ip_network(host)
            except ValueError as error:
                remedy = "write an address or a network, such as 10.1.2.3 or 10.1.0.0/16"
                yield Fault(f"peers[{index}].hosts[{at}]", str(error), remedy)
        plain = bool(config.listeners) and all(listener.tls is False for listener in config.listeners)
        cause = "no listener speaks TLS, so no peer can present a certificate" if plain else ""
        yield from _unusable(f"peers[{index}]", peer, cause, "remove it, or give a listener tls")
    for index, destination in enumerate(config.destinations):
        cause, remedy = "", ""
        if destination.tls is False:
            cause, remedy = (
                "it has tls = false, so it shows no certificate",
                "remove it, or name a [tls.NAME]",
            )
        elif destination.tls in config.tls and config.tls[destination.tls].peer_certificate == "none":
            cause = f'[tls.{destination.tls}] has peer_certificate = "none", so none is verified'
            remedy = 'remove it, or set peer_certificate = "required"'
        yield from _unusable(f"destinations[{index}]", destination, cause, remedy)


def _unusable(key: str, bound: Bound, cause: str, remedy: str) -> Iterator[Fault]:
    """Faults of a binding that cannot be met for `cause`, or that is no pattern."""
    for name, value in (("certificate", bound.certificate), ("issuer", bound.issuer)):
        if value and cause:
            yield Fault(f"{key}.{name}", cause, remedy)
        elif value and (wrong := explain_unmatchable(value, issuer=name == "issuer")):
            more = "" if name == "issuer" else ", or an alternative name: DNS:…, IP:…, URI:… or email:…"
            yield Fault(f"{key}.{name}", f'"{value}" {wrong}', _HOWTO + more)


def notes(config: Config) -> Iterator[Fault]:
    """What works, but means less than it seems to; looks at the files of `trusted`."""
    yield from _peers(config)
    yield from _destinations(config)


def _peers(config: Config) -> Iterator[Fault]:
    sections = {str(each.tls): config.tls[each.tls] for each in config.listeners if each.tls in config.tls}
    unasked = bool(sections) and all(tls.peer_certificate == "none" for tls in sections.values())
    trusted = _trusted(sections.values()) if any(map(is_bound, config.peers)) else []
    for index, peer in enumerate(config.peers):
        if not is_bound(peer):
            yield from _undone(config, index)
            continue
        if unasked:
            key = f"peers[{index}].{'certificate' if peer.certificate else 'issuer'}"
            cause = 'no listener asks for a certificate (peer_certificate = "none"), so all of it are refused'
            yield Fault(key, cause, 'set peer_certificate to "required", or remove the binding', note=True)
            continue
        yield from _loose(f"peers[{index}]", peer, trusted)


def _destinations(config: Config) -> Iterator[Fault]:
    """Bindings that are looser than they look, and destinations for which anybody trusted passes."""
    for name, tls in config.tls.items():
        numbered = [(index, each) for index, each in enumerate(config.destinations) if each.tls == name]
        if not numbered or tls.peer_certificate == "none":
            continue  # that nothing is verified is said of the section
        trusted = _trusted([tls])
        for index, destination in numbered:
            yield from _loose(f"destinations[{index}]", destination, trusted)
        unbound = [each.name for _, each in numbered if not (each.certificate or each.issuer)]
        only = len(trusted) == 1 and not (trusted[0].trust_anchor and trusted[0].trust_anchor.is_authority)
        if unbound and not tls.check_server_name and not only:
            cause = f"any peer with a trusted certificate could answer as {', '.join(unbound)}"
            remedy = "name certificate or issuer in these [[destinations]], or set check_server_name = true"
            yield Fault(f"tls.{name}.trusted", cause, remedy, note=True)


def _loose(key: str, bound: Bound, trusted: list[CertificateIdentity]) -> Iterator[Fault]:
    """A name that several can have: makers of certificates and authorities choose what theirs say."""
    if is_fingerprint(bound.certificate) or not (bound.certificate or bound.issuer):
        return
    name = "issuer" if bound.issuer else "certificate"  # with both, the issuer tells apart who vouches
    fitting = [
        each.fingerprint for each in trusted if matches_identity(each, bound.issuer or bound.certificate)
    ]
    if len(fitting) > 1:
        who = ", ".join(fitting)
        cause = f"several certificates in trusted have this name, and each can stand for it: {who}"
        yield Fault(f"{key}.{name}", cause, "bind by fingerprint", note=True)
    authorities = [
        each for each in trusted if each.trust_anchor is not None and each.trust_anchor.is_authority
    ]
    if len(authorities) > 1 and not bound.issuer:
        who = ", ".join(each.subject for each in authorities)
        cause = f"each authority in trusted can give this name to whom it likes: {who}"
        yield Fault(f"{key}.{name}", cause, "name `issuer` too, or bind by fingerprint", note=True)


def _undone(config: Config, index: int) -> Iterator[Fault]:
    """An entry without a binding, which lets in whom another entry of the title would refuse."""
    peer = config.peers[index]
    for other, each in enumerate(config.peers):
        same = each.ae_title.strip(" ").lower() == peer.ae_title.strip(" ").lower()
        if same and is_bound(each) and peer.allow:
            cause = f"has no certificate, so that {peer.ae_title} needs none, though peers[{other}] is bound"
            yield Fault(f"peers[{index}]", cause, "bind it too, or remove one of the two", note=True)
            return


def _trusted(sections: Iterable[TLS]) -> list[CertificateIdentity]:
    """All that may vouch for others' names, each once; files that cannot be read are told of elsewhere."""
    found: dict[str, CertificateIdentity] = {}
    for tls in sections:
        for path in tls.trusted if tls.peer_certificate != "none" else ():
            with contextlib.suppress(IngestError, ValueError):
                for _, texts in formats.iterate_certificates(path, tls.password_file):
                    identities = [_identity(ssl.PEM_cert_to_DER_cert(text)) for text in texts]
                    found |= {each.fingerprint: each for each in identities}
    return list(found.values())


def _identity(der: bytes) -> CertificateIdentity:
    """Of what is trusted: one that can be read in part only counts as an issuer by its subject."""
    try:
        return read_identity(der, [der])
    except PeerError:
        anchor = read_trust_anchor(der)
        return CertificateIdentity(
            anchor.fingerprint, anchor.subject, "", (), datetime.max.replace(tzinfo=UTC), anchor
        )
