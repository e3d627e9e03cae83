"""Whether an instance came from a destination, which then has it: decisions over values, without I/O.

A wrong "yes" keeps an instance from a destination that does not have it. A wrong "no" costs one transfer,
which the destination answers and drops. So an instance came from a destination only if two things agree: the
calling AE title, and the host by its address or its certificate. An AE title that is also ours tells nobody
apart.
"""

import ipaddress
from collections.abc import Collection


def is_title_of(calling_ae: str, ae_title: str, own_titles: Collection[str]) -> bool:
    """Whether a calling AE title (PS3.8 9.3.2) is that of a destination, and of nobody else that is known.

    Args:
        calling_ae: As the sender called itself.
        ae_title: Of the destination.
        own_titles: AE titles that this node has itself.
    """
    title = _significant(calling_ae)
    return title == _significant(ae_title) and title not in set(map(_significant, own_titles))


def is_certified_as(certificate: Collection[str], host: str) -> bool:
    """Whether a client certificate has a destination's host among its alternative names.

    Args:
        certificate: As in `ingest.routing.router.Subject`.
        host: Name or address of the destination.
    """
    wanted = {f"dns:{host.lower().rstrip('.')}", f"ip:{plain_address(host)}"}
    return any(name.lower().rstrip(".") in wanted for name in certificate)


def is_sent_from(source: str, addresses: Collection[str]) -> bool:
    """Whether an instance was sent from one of these addresses.

    Args:
        source: Presentation address of its sender, `dicom-tls://10.0.0.7:4711`; empty where nobody knows.
        addresses: Of the destination's host.
    """
    host = source.rpartition("//")[2].rpartition(":")[0].strip("[]")
    return bool(host) and plain_address(host) in set(map(plain_address, addresses))


def plain_address(text: str) -> str:
    """An IP address in one spelling, IPv4 within IPv6 as IPv4, without a zone; other text as it is."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return text
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _significant(title: str) -> str:
    # PS3.5 6.2, VR AE: leading and trailing spaces are not significant.
    return title.strip(" \0")
