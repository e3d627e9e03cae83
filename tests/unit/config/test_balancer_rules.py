"""Rules of load balancers."""

from ingest.config.balancer_rules import check_balanced_peers, check_balancers
from ingest.config.faults import FaultKind
from ingest.config.model import Config, ListenerSettings


def test_load_balancer_is_an_address_or_a_network() -> None:
    balancers = ("10.0.0.5/32", "10.0.0.6", "2001:db8::/64", "lb.example.org", "10.0.0.5/24", "::/0")
    faults = list(check_balancers("listeners[0]", ListenerSettings(proxy_protocol=balancers)))
    assert [fault.key for fault in faults] == [f"listeners[0].proxy_protocol[{index}]" for index in (3, 4, 5)]
    assert {fault.kind for fault in faults} == {FaultKind.FAULT}


def test_peer_that_is_admitted_by_the_address_of_a_balancer_is_noted() -> None:
    behind = {"tls": False, "proxy_protocol": ["10.0.0.5/32"]}
    peers = [{"ae_title": "CT1", "hosts": ["10.0.0.5", "10.0.0.0/24", "10.0.0.9"]}]
    made = Config.model_validate({"listeners": [behind], "peers": peers})
    faults = list(check_balanced_peers(made))
    assert [(fault.key, fault.kind) for fault in faults] == [("peers[0].hosts[0]", FaultKind.NOTE)]
    made = Config.model_validate({"listeners": [behind, {"tls": False, "port": 11112}], "peers": peers})
    assert list(check_balanced_peers(made)) == []
