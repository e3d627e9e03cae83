"""Notes on settings that weaken a node, whether or not its files can be used."""

from collections.abc import Iterator
from ipaddress import ip_network
from typing import Final

from ingest.config.faults import Fault, FaultKind
from ingest.config.model import TLS, Config

_UNCHECKED_REVOCATION = {"crl_missing": "no CRL", "crl_expired": "only a CRL past its nextUpdate"}

_WIDEST_PROXIES: Final = {4: 24, 6: 64}
"""Shortest prefix, for each version of IP, of a network that is likely to hold nothing but proxies."""


def find_weak_settings(config: Config) -> list[Fault]:
    """Return a note for each setting that weakens the node."""
    notes = []
    if config.receive.durability == "page-cache":
        cause = "Success does not mean durable: a power cut loses acknowledged instances"
        notes.append(Fault("receive.durability", cause, 'set it to "fsync"', FaultKind.NOTE))
    if config.audit is not None and config.audit.tls is False:
        cause = (
            "audit messages, which name patients, leave over UDP: anyone on the way can read and drop them"
        )
        notes.append(Fault("audit.allow_plain", cause, "name a [tls.NAME] in audit.tls", FaultKind.NOTE))
    for index, text in enumerate(config.console.trusted_proxies if config.console is not None else ()):
        network = ip_network(text)
        if network.prefixlen < _WIDEST_PROXIES[network.version]:
            cause = f"{text} is wide: a client in it can pretend to have another address"
            remedy = "name the addresses of the proxies alone"
            notes.append(Fault(f"console.trusted_proxies[{index}]", cause, remedy, FaultKind.NOTE))
    for name, tls in config.tls.items():
        notes += _find_weak_tls(f"tls.{name}", tls)
    if config.tls or config.peers:
        from ingest.checks.bindings import examine_bindings  # noqa: PLC0415 - it imports cryptography

        notes += examine_bindings(config)
    return notes


def _find_weak_tls(key: str, tls: TLS) -> Iterator[Fault]:
    from ingest.tls import profiles  # noqa: PLC0415 - a node without TLS does not need it

    for name, cause, remedy in profiles.list_weaknesses(tls):
        yield Fault(f"{key}.{name}", cause, remedy, FaultKind.NOTE)
    for name, reason in _UNCHECKED_REVOCATION.items():
        if tls.crl and getattr(tls, name) == "allow":
            cause = f"admits peers, revoked or not, whose issuer has {reason}"
            yield Fault(f"{key}.{name}", cause, 'set it to "refuse"', FaultKind.NOTE)
    if tls.peer_certificate != "required":
        cause = f'peer_certificate = "{tls.peer_certificate}" admits peers without a verified certificate'
        yield Fault(f"{key}.peer_certificate", cause, 'set it to "required"', FaultKind.NOTE)
