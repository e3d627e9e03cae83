"""Admission of a requestor: a pure decision on AE title and address, made before negotiation.

The binding of a peer to a certificate belongs to TLS, so the caller of `admit` passes a function that
compares certificate and binding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, Protocol

from ingest.dicom.pdus import CALLING_AE_NOT_RECOGNIZED, AssociateReject

ALL_OPERATIONS: Final = frozenset({"echo", "store"})
ANY_AE_TITLE: Final = "*"
"""AE title of the entry for requestors without their own entry."""


class RejectionCause(StrEnum):
    """The cause of an A-ASSOCIATE-RJ, for counting. Its text is for people."""

    OTHER = "other"
    CALLING_AE = "calling_ae"
    HOST = "host"
    CERTIFICATE = "certificate"
    CALLED_AE = "called_ae"
    PROTOCOL_VERSION = "protocol_version"
    APPLICATION_CONTEXT = "application_context"
    NO_CONTEXT = "no_context"
    LIMIT = "limit"
    FULL = "full"
    DRAINING = "draining"


class PeerRule(Protocol):
    """One entry of `[[peers]]`. `ingest.config.model.Peer` is one; `dicom/` does not import the model."""

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
    @property
    def destination(self) -> str: ...
    @property
    def allow_priority(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Admission:
    """The requestor is admitted.

    Attributes:
        allow: Permitted operations: "echo", "store".
        sop_classes: Patterns of the SOP classes that it may store.
        bound_ae_title: AE title of the matching entry, maybe "*", if that entry requires a certificate.
        destination: Destination that stands for the requestor; empty without one.
        allows_priority: Whether Priority HIGH of the requestor counts.
    """

    allow: frozenset[str]
    sop_classes: tuple[str, ...] = ("*",)
    bound_ae_title: str = ""
    destination: str = ""
    allows_priority: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """The requestor is refused.

    Attributes:
        reason: One line for the log. It names the AE title and, where they decided, address and certificate.
        pdu: The answer.
        cause: The same for counting.
    """

    reason: str
    pdu: AssociateReject
    cause: RejectionCause = RejectionCause.CALLING_AE


def admit(
    calling_ae: str,
    address: str,
    peers: Sequence[PeerRule],
    find_binding_fault: Callable[[PeerRule], str | None],
    *,
    ignore_case: bool = False,
) -> Admission | Refusal:
    """Decide whether a requestor may associate. Without `peers` every requestor may.

    The first matching entry decides. A matching entry has the requestor's AE title. If the entry has hosts,
    one of them contains the address. If the entry is bound to a certificate, the requestor has it. An entry
    "*" stands for AE titles without their own entry. It therefore never admits a requestor that is refused by
    name. It also does not admit an AE title that differs only in capitals from a bound one, because people
    take the two for the same. An entry "*" that allows nothing refuses.

    Args:
        calling_ae: Calling AE title as decoded.
        address: IP address in text, without port.
        peers: `[[peers]]`.
        find_binding_fault: Returns why the requestor's certificate does not match an entry.
        ignore_case: Whether AE titles that differ only in capitals are equal. PS3.5 6.2 says they are not.
    """
    if not calling_ae:  # PS3.8 Table 9-11: 16 spaces are no AE title
        return Refusal(f"the calling AE title from {address} is empty", CALLING_AE_NOT_RECOGNIZED)
    if not peers:
        return Admission(ALL_OPERATIONS)
    named = [peer for peer in peers if is_same_title(peer.ae_title, calling_ae, ignore_case=ignore_case)]
    bound = [peer for peer in peers if is_bound(peer)]
    similar = [peer for peer in bound if is_same_title(peer.ae_title, calling_ae, ignore_case=True)]
    faults, cause = [], RejectionCause.CALLING_AE
    for peer in named or [peer for peer in peers if peer.ae_title == ANY_AE_TITLE and not similar]:
        fault = _find_host_fault(calling_ae, address, peer)
        fault_cause = RejectionCause.HOST
        if fault is None:
            fault, fault_cause = find_binding_fault(peer), RejectionCause.CERTIFICATE
        if fault is None and peer.ae_title == ANY_AE_TITLE and not peer.allow:
            break
        if fault is None:
            bound_ae_title = peer.ae_title if is_bound(peer) else ""
            return Admission(
                frozenset(peer.allow),
                peer.sop_classes,
                bound_ae_title,
                peer.destination,
                peer.allow_priority,
            )
        faults.append(fault)
        cause = fault_cause
    if not faults:
        faults.append(f"calling AE title {calling_ae!r} of {address} is not among [[peers]]")
        if similar:
            faults.append(f"it differs in capitals only from {similar[0].ae_title!r}, which is bound")
    return Refusal("; ".join(faults), CALLING_AE_NOT_RECOGNIZED, cause)


def find_destination(calling_ae: str, peers: Sequence[PeerRule], *, ignore_case: bool = False) -> str:
    """Return the destination that stands for a requestor; empty without one.

    An entry "*" stands for AE titles without their own entry, as in `admit`.
    """
    named = [peer for peer in peers if is_same_title(peer.ae_title, calling_ae, ignore_case=ignore_case)]
    entries = named or [peer for peer in peers if peer.ae_title == ANY_AE_TITLE]
    return next((peer.destination for peer in entries if peer.destination), "")


def is_bound(peer: PeerRule) -> bool:
    """Return whether an entry requires a certificate."""
    return bool(peer.certificate or peer.issuer)


def is_same_title(configured: str, received: str, *, ignore_case: bool) -> bool:
    """Compare an AE title of the configuration with a received one, which has no spaces around it."""
    wanted = configured.strip(" ")
    return wanted.lower() == received.lower() if ignore_case else wanted == received


def _find_host_fault(calling_ae: str, address: str, peer: PeerRule) -> str | None:
    if peer.hosts and not is_address_in(peer.hosts, address):
        return f"AE title {calling_ae!r} may not call from {address}, only from {', '.join(peer.hosts)}"
    return None


def is_address_in(hosts: Sequence[str], address: str) -> bool:
    """Return whether one of these addresses and networks contains an address."""
    return any(_contains(host, address) for host in hosts)


def _contains(host: str, address: str) -> bool:
    network, ip = _parse_network(host), _parse_address(address)
    return network is not None and ip is not None and ip.version == network.version and ip in network


@lru_cache(maxsize=4096)
def _parse_network(host: str) -> IPv4Network | IPv6Network | None:
    """Return the network; None for a host name, because a decision must not wait for a name server."""
    try:
        network = ip_network(host, strict=False)
    except ValueError:
        return None
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    if mapped is not None and network.prefixlen >= 96:
        return IPv4Network((mapped, network.prefixlen - 96))  # `_parse_address` maps addresses alike
    return network


def _parse_address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        ip = ip_address(text.partition("%")[0])  # a link-local address may carry its zone
    except ValueError:
        return None
    # A dual-stack socket shows an IPv4 requestor as ::ffff:a.b.c.d.
    return ip.ipv4_mapped or ip if isinstance(ip, IPv6Address) else ip
