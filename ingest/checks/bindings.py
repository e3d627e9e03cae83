"""Notes about the bindings of `[[peers]]` and `[[destinations]]`: bindings that are weaker than they seem."""

import contextlib
import ssl
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from ingest.config.binding_rules import Binding
from ingest.config.faults import Fault, FaultKind
from ingest.config.model import TLS, Config
from ingest.errors import IngestError
from ingest.ext.errors import PeerError
from ingest.tls.identity import (
    CertificateIdentity,
    is_fingerprint,
    matches_identity,
    read_identity,
    read_trust_anchor,
)
from ingest.tls.keys import formats


def examine_bindings(config: Config) -> Iterator[Fault]:
    """Yield a note for each binding that is weaker than it seems. Reads the files of `trusted`."""
    yield from _examine_peers(config)
    yield from _examine_destinations(config)


def _examine_peers(config: Config) -> Iterator[Fault]:
    sections = {str(each.tls): config.tls[each.tls] for each in config.listeners if each.tls in config.tls}
    asks_nobody = bool(sections) and all(tls.peer_certificate == "none" for tls in sections.values())
    trusted = _read_trusted(sections.values()) if any(peer.is_bound for peer in config.peers) else []
    for index, peer in enumerate(config.peers):
        if not peer.is_bound:
            yield from _find_unbound_twin(config, index)
            continue
        if asks_nobody:
            key = f"peers[{index}].{'certificate' if peer.certificate else 'issuer'}"
            cause = 'no listener asks for a certificate (peer_certificate = "none"), so it is refused'
            yield Fault(
                key, cause, 'set peer_certificate to "required", or remove the binding', kind=FaultKind.NOTE
            )
            continue
        yield from _find_shared_names(f"peers[{index}]", peer, trusted)


def _examine_destinations(config: Config) -> Iterator[Fault]:
    """Yield weak bindings, and destinations for which every trusted certificate is accepted."""
    for name, tls in config.tls.items():
        numbered = [(index, each) for index, each in enumerate(config.destinations) if each.tls == name]
        if not numbered or tls.peer_certificate == "none":
            continue  # another note says that this section verifies nothing
        trusted = _read_trusted([tls])
        for index, destination in numbered:
            yield from _find_shared_names(f"destinations[{index}]", destination, trusted)
        unbound = [each.name for _, each in numbered if not each.is_bound]
        trusts_one_peer = len(trusted) == 1 and not (
            trusted[0].trust_anchor and trusted[0].trust_anchor.is_authority
        )
        if unbound and not tls.check_server_name and not trusts_one_peer:
            cause = f"any peer with a trusted certificate could answer as {', '.join(unbound)}"
            remedy = "name certificate or issuer in these [[destinations]], or set check_server_name = true"
            yield Fault(f"tls.{name}.trusted", cause, remedy, kind=FaultKind.NOTE)


def _find_shared_names(key: str, bound: Binding, trusted: list[CertificateIdentity]) -> Iterator[Fault]:
    """Yield a note if several certificates can have the bound name. Issuers choose the names."""
    if is_fingerprint(bound.certificate) or not (bound.certificate or bound.issuer):
        return
    name = "issuer" if bound.issuer else "certificate"  # with both, the issuer decides
    matching = [
        each.fingerprint for each in trusted if matches_identity(each, bound.issuer or bound.certificate)
    ]
    if len(matching) > 1:
        fingerprints = ", ".join(matching)
        cause = (
            f"several certificates in trusted have this name, and each of them satisfies it: {fingerprints}"
        )
        yield Fault(f"{key}.{name}", cause, "bind by fingerprint", kind=FaultKind.NOTE)
    authorities = [
        each for each in trusted if each.trust_anchor is not None and each.trust_anchor.is_authority
    ]
    if len(authorities) > 1 and not bound.issuer:
        subjects = ", ".join(each.subject for each in authorities)
        cause = f"each authority in trusted can issue a certificate with this name: {subjects}"
        yield Fault(f"{key}.{name}", cause, "name `issuer` too, or bind by fingerprint", kind=FaultKind.NOTE)


def _find_unbound_twin(config: Config, index: int) -> Iterator[Fault]:
    """Yield a note if an entry without a binding makes a bound entry of its AE title pointless."""
    peer = config.peers[index]
    for other, each in enumerate(config.peers):
        is_same_title = each.ae_title.strip(" ").lower() == peer.ae_title.strip(" ").lower()
        if is_same_title and each.is_bound and peer.allow:
            cause = f"has no certificate, so {peer.ae_title} needs none although peers[{other}] is bound"
            yield Fault(
                f"peers[{index}]", cause, "bind it too, or remove one of the two", kind=FaultKind.NOTE
            )
            return


def _read_trusted(sections: Iterable[TLS]) -> list[CertificateIdentity]:
    """Return the trusted certificates of `sections`, each once.

    Other checks report files that cannot be read.
    """
    found: dict[str, CertificateIdentity] = {}
    for tls in sections:
        for path in tls.trusted if tls.peer_certificate != "none" else ():
            with contextlib.suppress(IngestError, ValueError):
                for _, texts in formats.iterate_certificates(path, tls.password_file):
                    identities = [_read_identity(ssl.PEM_cert_to_DER_cert(text)) for text in texts]
                    found |= {each.fingerprint: each for each in identities}
    return list(found.values())


def _read_identity(der: bytes) -> CertificateIdentity:
    """Return the identity of a trusted certificate. If only a part can be read, only its subject counts."""
    try:
        return read_identity(der, [der])
    except PeerError:
        anchor = read_trust_anchor(der)
        return CertificateIdentity(
            anchor.fingerprint, anchor.subject, "", (), datetime.max.replace(tzinfo=UTC), anchor
        )
