"""Rules of the bindings of `[[peers]]` and `[[destinations]]`: bindings that no certificate can match."""

import ipaddress
from collections.abc import Iterator
from typing import Final, Protocol

from ingest.config.faults import Fault
from ingest.config.model import Config
from ingest.tls.identity import explain_unmatchable

_REMEDY: Final = (
    "write a SHA-256 fingerprint (`ingest certs inspect` prints it), or the whole subject as `openssl x509 "
    "-subject` prints it"
)


class Binding(Protocol):
    """The binding of one of `[[peers]]` or `[[destinations]]`."""

    @property
    def certificate(self) -> str: ...
    @property
    def issuer(self) -> str: ...


def check_bindings(config: Config) -> Iterator[Fault]:
    """Yield a fault for each binding that no peer can ever satisfy."""
    for index, peer in enumerate(config.peers):
        for at, host in enumerate(peer.hosts):
            try:
                ipaddress.ip_network(host)
            except ValueError as error:
                remedy = "write an address or a network, such as 10.1.2.3 or 10.1.0.0/16"
                yield Fault(f"peers[{index}].hosts[{at}]", str(error), remedy)
        is_plain = bool(config.listeners) and all(listener.tls is False for listener in config.listeners)
        cause = "no listener speaks TLS, so no peer can present a certificate" if is_plain else ""
        yield from _check_binding(f"peers[{index}]", peer, cause, "remove it, or give a listener tls")
    for index, destination in enumerate(config.destinations):
        cause, remedy = "", ""
        if destination.tls is False:
            cause, remedy = (
                "it has tls = false, so it presents no certificate",
                "remove it, or name a [tls.NAME]",
            )
        elif destination.tls in config.tls and config.tls[destination.tls].peer_certificate == "none":
            cause = f'[tls.{destination.tls}] has peer_certificate = "none", so no certificate is verified'
            remedy = 'remove it, or set peer_certificate = "required"'
        yield from _check_binding(f"destinations[{index}]", destination, cause, remedy)


def _check_binding(key: str, bound: Binding, cause: str, remedy: str) -> Iterator[Fault]:
    """Yield the faults of one binding: it is pointless for `cause`, or its value is malformed."""
    for name, value in (("certificate", bound.certificate), ("issuer", bound.issuer)):
        if value and cause:
            yield Fault(f"{key}.{name}", cause, remedy)
        elif value and (error := explain_unmatchable(value, issuer=name == "issuer")):
            more = "" if name == "issuer" else ", or an alternative name: DNS:…, IP:…, URI:… or email:…"
            yield Fault(f"{key}.{name}", f'"{value}" {error}', _REMEDY + more)
