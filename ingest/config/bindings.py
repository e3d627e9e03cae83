"""What is wrong, or may surprise, with the certificates and addresses that `[[peers]]` are bound to."""

import contextlib
import ipaddress
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime

from ext.errors import PeerError
from ingest.config.faults import Fault
from ingest.config.model import Config
from ingest.dicom.policy import is_bound
from ingest.errors import IngestError
from ingest.tls import forms
from ingest.tls.identity import Identity, anchor_of, identity_of, is_fingerprint, matches, mistake

_HOWTO = (
    "write a SHA-256 fingerprint (`ingest certs inspect` tells it), or the whole subject as `openssl x509 "
    "-subject` prints it"
)


def faults(config: Config) -> Iterator[Fault]:
    """What no peer can ever meet."""
    for index, peer in enumerate(config.peers):
        for at, host in enumerate(peer.hosts):
            try:
                ipaddress.ip_network(host)
            except ValueError as error:
                remedy = "write an address or a network, such as 10.1.2.3 or 10.1.0.0/16"
                yield Fault(f"peers[{index}].hosts[{at}]", str(error), remedy)
        plain = config.listeners and all(listener.tls is False for listener in config.listeners)
        for key, value in (("certificate", peer.certificate), ("issuer", peer.issuer)):
            if value and plain:
                cause = "no listener speaks TLS, so no peer can present a certificate"
                yield Fault(f"peers[{index}].{key}", cause, "remove it, or give a listener tls")
            elif value and (cause := mistake(value, issuer=key == "issuer")):
                more = "" if key == "issuer" else ", or an alternative name: DNS:…, IP:…, URI:… or email:…"
                yield Fault(f"peers[{index}].{key}", f'"{value}" {cause}', _HOWTO + more)


def notes(config: Config) -> Iterator[Fault]:
    """What works, but means less than it seems to; looks at the files of `trusted`."""
    listening = [config.tls[each.tls] for each in config.listeners if each.tls in config.tls]
    unasked = bool(listening) and all(tls.peer_certificate == "none" for tls in listening)
    trusted = _trusted(config) if any(map(is_bound, config.peers)) else []
    authorities = [each for each in trusted if each.anchor is not None and each.anchor.authority]
    for index, peer in enumerate(config.peers):
        if not is_bound(peer):
            yield from _undone(config, index)
            continue
        key = f"peers[{index}].{'certificate' if peer.certificate else 'issuer'}"
        if unasked:
            cause = 'no listener asks for a certificate (peer_certificate = "none"), so all of it are refused'
            yield Fault(key, cause, 'set peer_certificate to "required", or remove the binding', note=True)
            continue
        yield from _ambiguous(config, index, trusted)
        if len(authorities) > 1 and not peer.issuer and not is_fingerprint(peer.certificate):
            who = ", ".join(each.subject for each in authorities)
            cause = f"each authority in trusted can give this name to whom it likes: {who}"
            yield Fault(key, cause, "name `issuer` too, or bind by fingerprint", note=True)


def _ambiguous(config: Config, index: int, trusted: list[Identity]) -> Iterator[Fault]:
    """A name that several trusted certificates have: who makes its own certificate chooses what it says."""
    peer = config.peers[index]
    key = "issuer" if peer.issuer else "certificate"  # with both, the issuer tells apart who vouches
    fitting = [each.fingerprint for each in trusted if matches(each, peer.issuer or peer.certificate)]
    if len(fitting) > 1 and not is_fingerprint(peer.certificate):
        who = ", ".join(fitting)
        cause = f"several certificates in trusted have this name, and each can stand for it: {who}"
        yield Fault(f"peers[{index}].{key}", cause, "bind by fingerprint", note=True)


def _undone(config: Config, index: int) -> Iterator[Fault]:
    """An entry without a binding, which lets in whom another entry of the title would refuse."""
    peer = config.peers[index]
    for other, each in enumerate(config.peers):
        same = each.ae_title.strip(" ").lower() == peer.ae_title.strip(" ").lower()
        if same and is_bound(each) and peer.allow:
            cause = f"has no certificate, so that {peer.ae_title} needs none, though peers[{other}] is bound"
            yield Fault(f"peers[{index}]", cause, "bind it too, or remove one of the two", note=True)
            return


def _trusted(config: Config) -> list[Identity]:
    """All that may vouch for callers' names, each once; files that cannot be read are told of elsewhere."""
    found: dict[str, Identity] = {}
    for name in dict.fromkeys(each.tls for each in config.listeners if each.tls in config.tls):
        tls = config.tls[str(name)]
        for path in tls.trusted if tls.peer_certificate != "none" else ():
            with contextlib.suppress(IngestError, ValueError):
                for _, texts in forms.certificates(path, tls.password_file):
                    identities = [_identity(ssl.PEM_cert_to_DER_cert(text)) for text in texts]
                    found |= {each.fingerprint: each for each in identities}
    return list(found.values())


def _identity(der: bytes) -> Identity:
    """Of what is trusted: one that can be read in part only counts as an issuer by its subject."""
    try:
        return identity_of(der, [der])
    except PeerError:
        anchor = anchor_of(der)
        return Identity(anchor.fingerprint, anchor.subject, "", (), datetime.max.replace(tzinfo=UTC), anchor)
