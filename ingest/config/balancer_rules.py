"""Rules of load balancers: those that a listener trusts, and peers that are mistaken for them."""

import ipaddress
from collections.abc import Iterator
from typing import Final

from ingest.config.faults import Fault, FaultKind
from ingest.config.model import Config, ListenerSettings
from ingest.dicom.admission import is_address_in

_REMEDY: Final = "write the address or the network of the load balancer, such as 10.0.0.5/32"


def check_balancers(key: str, listener: ListenerSettings) -> Iterator[Fault]:
    """Yield the faults of `proxy_protocol` of one listener."""
    for index, text in enumerate(listener.proxy_protocol):
        here = f"{key}.proxy_protocol[{index}]"
        try:
            network = ipaddress.ip_network(text)
        except ValueError as error:
            yield Fault(here, str(error), _REMEDY)
            continue
        if network.prefixlen == 0:
            yield Fault(here, "every host may claim any address as its own", _REMEDY)


def check_balanced_peers(config: Config) -> Iterator[Fault]:
    """Note peers that are admitted by the address of a load balancer, which no sender has."""
    if not config.listeners or not all(each.proxy_protocol for each in config.listeners):
        return
    balancers = [text for each in config.listeners for text in each.proxy_protocol]
    for index, peer in enumerate(config.peers):
        for at, host in enumerate(peer.hosts):
            address, _, length = host.partition("/")
            if length in {"", "32", "128"} and is_address_in(balancers, address):
                cause = f"{host} is a load balancer, and hosts are compared with the address of the sender"
                remedy = "write the address of the sender"
                yield Fault(f"peers[{index}].hosts[{at}]", cause, remedy, kind=FaultKind.NOTE)
