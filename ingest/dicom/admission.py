"""Who is let in: a pure decision on AE title, address and certificate, made before negotiation."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Protocol

from ingest.dicom.pdus import CALLING_AE_NOT_RECOGNIZED, AssociateReject
from ingest.tls.identity import CertificateIdentity, find_binding_fault

EVERYTHING = frozenset({"echo", "store"})
ANY = "*"
"""The AE title of an entry for all who have none of their own."""


class PeerRule(Protocol):
    """One of `[[peers]]`, as `ingest.config.model.Peer` has it."""

    @property
    def ae_title(self) -> str: ...
    @property
    def hosts(self) -> tuple[str, ...]: ...
    @property
    def certificate(self) -> str: ...
    @property
    def issuer(self) -> str: ...
    @property
    def sop_classes(self) -> tuple[str, ...]: ...
    @property
    def allow(self) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls.

    Attributes:
        ae_title: Calling AE title as decoded.
        address: IP address in text, without port.
        certificate: Who its certificate says it is; None without TLS or without a certificate.
    """

    ae_title: str
    address: str
    certificate: CertificateIdentity | None = None


@dataclass(frozen=True, slots=True)
class Admission:
    """The caller is let in.

    Attributes:
        allow: What it may do: "echo", "store".
        sop_classes: Patterns of the SOP classes that it may store.
        bound: The AE title of the entry that lets it in, maybe "*", if that asks for a certificate; else "".
    """

    allow: frozenset[str]
    sop_classes: tuple[str, ...] = ("*",)
    bound: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The caller is not let in.

    Attributes:
        why: One line for the log; names the AE title and, where they decided, address, subject and binding.
        pdu: The answer.
    """

    why: str
    pdu: AssociateReject


def admit(caller: Caller, peers: Sequence[PeerRule], *, ignore_case: bool = False) -> Admission | Refusal:
    """Whether `caller` is one of `peers`: the first entry that fits decides. Without entries everybody is.

    An entry fits when its AE title is the caller's, one of its hosts (if any) holds the address, and the
    caller's certificate and its issuer (if named) are the named ones. "*" is any AE title that no other entry
    has, so that it does not let in by a side door who is refused by name; nor one that a bound entry has in
    other capitals, which people take for the same. One that allows nothing
    refuses: an association without a context would not tell a stranger why.

    Args:
        caller: Who calls.
        peers: `[[peers]]`.
        ignore_case: Whether AE titles that differ in capitals only are one; PS3.5 6.2 says they are two.
    """
    if not caller.ae_title:  # PS3.8 Table 9-11: 16 spaces are no AE title
        return Refusal(f"the calling AE title from {caller.address} is empty", CALLING_AE_NOT_RECOGNIZED)
    if not peers:
        return Admission(EVERYTHING)
    named = [peer for peer in peers if same_title(peer.ae_title, caller.ae_title, ignore_case=ignore_case)]
    bound = [peer for peer in peers if is_bound(peer)]
    like = [peer for peer in bound if same_title(peer.ae_title, caller.ae_title, ignore_case=True)]
    faults = []
    for peer in named or [peer for peer in peers if peer.ae_title == ANY and not like]:
        fault = _misfit(caller, peer)
        if fault is None and peer.ae_title == ANY and not peer.allow:
            break
        if fault is None:
            return Admission(frozenset(peer.allow), peer.sop_classes, peer.ae_title if is_bound(peer) else "")
        faults.append(fault)
    if not faults:
        faults.append(f"calling AE title {caller.ae_title!r} of {caller.address} is not among [[peers]]")
        if like:
            faults.append(f"it differs in capitals only from {like[0].ae_title!r}, which is bound")
    return Refusal("; ".join(faults), CALLING_AE_NOT_RECOGNIZED)


def is_bound(peer: PeerRule) -> bool:
    """Whether an entry asks for a certificate."""
    return bool(peer.certificate or peer.issuer)


def same_title(configured: str, received: str, *, ignore_case: bool) -> bool:
    """Whether an AE title of the configuration is the one that came, which has no spaces around it."""
    wanted = configured.strip(" ")
    return wanted.lower() == received.lower() if ignore_case else wanted == received


def _misfit(caller: Caller, peer: PeerRule) -> str | None:
    title = f"AE title {caller.ae_title!r}"
    if peer.hosts and not any(_holds(host, caller.address) for host in peer.hosts):
        return f"{title} may not call from {caller.address}, only from {', '.join(peer.hosts)}"
    return find_binding_fault(caller.certificate, peer.certificate, peer.issuer, title)


def _holds(host: str, address: str) -> bool:
    network, ip = _network(host), _address(address)
    return network is not None and ip is not None and ip.version == network.version and ip in network


@lru_cache(maxsize=4096)
def _network(host: str) -> IPv4Network | IPv6Network | None:
    """None for a name: names are not looked up, since a decision must not wait for somebody's DNS."""
    try:
        network = ip_network(host, strict=False)
    except ValueError:
        return None
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    if mapped is not None and network.prefixlen >= 96:
        return IPv4Network((mapped, network.prefixlen - 96))  # as `_address` takes who calls from it
    return network


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        ip = ip_address(text.partition("%")[0])  # a link-local address may carry its zone
    except ValueError:
        return None
    mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
    return mapped or ip  # a dual-stack socket shows IPv4 callers as ::ffff:a.b.c.d
