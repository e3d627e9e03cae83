"""AE titles bound to certificates, addresses and SOP classes, over real associations."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.interop import dcmtk
from tests.interop.files import made_uid, write_made
from tests.support.nodes import Node, eventually
from tests.support.peers import require_program
from tests.support.pki import Material

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


def openssl(folder: Path, *command: str) -> None:
    subprocess.run([require_program("openssl"), *command], cwd=folder, check=True, capture_output=True)


def test_a_trusted_peer_cannot_make_a_certificate_with_the_name_of_another(
    make_node: Callable[..., Node], material: Material, tmp_path: Path
) -> None:
    """`openssl req -x509`, as guides have it, makes every peer an authority for OpenSSL."""
    for who in ("ct1", "dcmtk"):
        files = ("-keyout", f"{who}.key", "-out", f"{who}.crt", "-subj", f"/C=BE/CN={who}")
        openssl(tmp_path, "req", "-x509", "-nodes", "-days", "365", "-newkey", "rsa:2048", *files)
    forged = ("-keyout", "forged.key", "-out", "forged.csr", "-subj", "/C=BE/CN=ct1")
    openssl(tmp_path, "req", "-nodes", "-newkey", "rsa:2048", *forged)
    signed_by = ("-CA", "dcmtk.crt", "-CAkey", "dcmtk.key", "-CAcreateserial", "-days", "30")
    openssl(tmp_path, "x509", "-req", "-in", "forged.csr", "-out", "forged.crt", *signed_by)
    trusted = tmp_path / "trusted.crt"
    trusted.write_text((tmp_path / "ct1.crt").read_text() + (tmp_path / "dcmtk.crt").read_text())
    own = f'certificate = "{material.certificate("node")}"\nprivate_key = "{material.key("node")}"'
    entries = ("CT1", ""), ("CT2", 'issuer = "C = BE, CN = ct1"'), ("CT3", 'issuer = "/C=BE/CN=dcmtk"')
    node = make_node(
        tls=f'[tls.node]\n{own}\ntrusted = ["{trusted}"]',
        peers="\n".join(
            f'[[peers]]\nae_title = "{title}"\ncertificate = "C = BE, CN = ct1"\n{issuer}'
            for title, issuer in entries
        ),
    ).start()

    def echo(title: str, who: str) -> bool:
        files = (str(tmp_path / f"{who}.key"), str(tmp_path / f"{who}.crt"))
        more = ("+tls", *files, "+cf", str(material.certificate("node")))
        return dcmtk.echoscu(node.tls_port, "-aet", title, *more).returncode == 0

    called = [(title, who) for title in ("CT1", "CT2", "CT3") for who in ("ct1", "dcmtk", "forged")]
    assert [pair for pair in called if echo(*pair)] == [("CT1", "ct1"), ("CT2", "ct1"), ("CT3", "forged")]
    reasons = {
        (event["calling_ae"], event["reason"].partition(" is ")[0].partition(" has ")[0]): event["reason"]
        for event in node.events("association_rejected")
    }
    forged_as = "certificate 'CN=ct1,C=BE' of 'CN=dcmtk,C=BE'"
    assert "is not marked as an authority" in reasons["CT1", forged_as]
    assert "name it in `issuer`, or bind by fingerprint" in reasons["CT1", forged_as]
    assert "'C = BE, CN = ct1' of 'C = BE, CN = ct1'" in reasons["CT2", forged_as]
