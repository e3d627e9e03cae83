"""Origin of an instance: decide whether a destination sent it, and therefore has it already. Without I/O.

A wrong "yes" withholds an instance from a destination that does not have it. A wrong "no" costs one transfer,
which the destination answers and drops. Two facts must therefore agree before a destination counts as the
origin: the calling AE title, and the host by its address or its certificate. An AE title that this node uses
itself proves nothing.
"""

import ipaddress
from collections.abc import Collection


def is_title_of(calling_ae: str, ae_title: str, own_titles: Collection[str]) -> bool:
    """Return whether a calling AE title (PS3.8 9.3.2) belongs to a destination and not to this node.

    Args:
        calling_ae: Calling AE title of the sender.
        ae_title: AE title of the destination.
        own_titles: AE titles of this node.
    """
    title = _strip_spaces(calling_ae)
    return title == _strip_spaces(ae_title) and title not in set(map(_strip_spaces, own_titles))


def is_certified_as(certificate: Collection[str], host: str) -> bool:
    """Return whether a caller certificate has the host of a destination among its alternative names.

    Args:
        certificate: See `ingest.dicom.file_header.InstanceHeader`.
        host: Name or address of the destination.
    """
    wanted = {f"dns:{host.lower().rstrip('.')}", f"ip:{normalize_address(host)}"}
    return any(name.lower().rstrip(".") in wanted for name in certificate)


def is_sent_from(source: str, addresses: Collection[str]) -> bool:
    """Return whether an instance was sent from one of these addresses.

    Args:
        source: Presentation address of the sender, `dicom-tls://10.0.0.7:4711`; empty if unknown.
        addresses: Addresses of the destination.
    """
    host = source.rpartition("//")[2].rpartition(":")[0].strip("[]")
    return bool(host) and normalize_address(host) in set(map(normalize_address, addresses))


def normalize_address(text: str) -> str:
    """Return the usual spelling of an IP address, without a zone. Other text is returned unchanged.

    An IPv4 address that is mapped into IPv6 becomes an IPv4 address.
    """
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return text
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _strip_spaces(title: str) -> str:
    # PS3.5 6.2, VR AE: leading and trailing spaces are not significant. Some senders pad with NUL.
    return title.strip(" \0")
