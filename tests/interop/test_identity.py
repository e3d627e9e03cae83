"""AE titles bound to certificates, addresses and SOP classes, over real associations."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.interop import dcmtk
from tests.interop.files import made_uid, write_made
from tests.nodes import Node, eventually
from tests.pki import Material

PEERS = """
[[peers]]
ae_title = "CT1"
certificate = "CN=peer"
sop_classes = ["CT*"]

[[peers]]
ae_title = "MR1"
certificate = "CN=peer"
issuer = "CN=peer"
hosts = ["127.0.0.0/8", "::1"]
sop_classes = ["MRImageStorage"]

[[peers]]
ae_title = "US1"
issuer = "CN=somebody else"

[[peers]]
ae_title = "FAR"
certificate = "CN=peer"
hosts = ["10.255.0.1"]
"""


def test_stolen_ae_title_is_refused_and_reported_though_the_certificate_is_valid(
    make_node: Callable[..., Node], material: Material
) -> None:
    node = make_node(peers=PEERS).start()

    def echo(title: str, who: str) -> int:
        return dcmtk.echoscu(node.tls_port, "-aet", title, *dcmtk.authenticated(material, who)).returncode

    assert echo("CT1", "peer") == 0
    assert echo("MR1", "peer") == 0
    for title, who in (("CT1", "other"), ("US1", "peer"), ("FAR", "peer"), ("NOBODY", "peer")):
        assert echo(title, who) != 0, title
    reasons = [event["reason"] for event in node.events("association_rejected")]
    assert "certificate 'CN=other' of 'CN=other' is not bound to AE title 'CT1'" in reasons[0]
    assert "'CN=somebody else'" in reasons[1]
    assert "only from 10.255.0.1" in reasons[2]
    assert "not among [[peers]]" in reasons[3]


def test_peer_stores_its_own_sop_classes_only(
    make_node: Callable[..., Node], material: Material, tmp_path: Path
) -> None:
    node = make_node(peers=PEERS).start()
    [path] = write_made(tmp_path / "made", 1)  # a CT image

    def store(title: str) -> "subprocess.CompletedProcess[str]":
        options = ["-aet", title, *dcmtk.authenticated(material, "peer")]
        return dcmtk.storescu(node.tls_port, *options, files=[path])

    done = store("MR1")
    assert done.returncode != 0
    assert (
        "No presentation context for" in done.stdout or "No Acceptable Presentation Contexts" in done.stdout
    )
    assert node.stored() == {}
    assert store("CT1").returncode == 0
    eventually(lambda: set(node.stored()) == {made_uid(0)}, 10)
