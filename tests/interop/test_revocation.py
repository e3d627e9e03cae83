"""A revoked client at a running node: `openssl s_client` and DCMTK call, and the lists change under them."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from ingest.errors import AssociationError
from ingest.requestor.transport import Remote, Transport
from ingest.tls.contexts import build_client_context
from ingest.tls.keys import pairs
from tests.faults.caller import Caller
from tests.interop import dcmtk
from tests.support.nodes import Node, cleaned, eventually
from tests.support.peers import require_program
from tests.support.pki import Material
from tests.support.revoking import revocation_list, under

ALERT = "alert certificate revoked"
"""RFC 8446 6.2, number 44, as OpenSSL prints it."""
UNKNOWN = "alert unknown ca"


class Site:
    """An authority, a node that trusts it, and the list that the authority keeps."""

    def __init__(self, folder: Path) -> None:
        self.material = Material(folder)
        self.authority = pairs.issue_authority("Site", key_type="ec")
        self.pairs = {
            name: pairs.issue_signed(name, self.authority, names=["localhost", "127.0.0.1"], key_type="ec")
            for name in ("node", "peer", "stolen")
        }
        for name, pair in self.pairs.items():
            pairs.write_pair(pair, folder / name)
        pairs.add_to_bundle(self.authority.certificate, self.material.trusted)
        self.lists = folder / "lists"
        self.lists.mkdir()
        self.node = Node(folder / "node-folder", self.material)

    def revoke(self, *names: str) -> None:
        """Publish a list that names exactly these."""
        found = revocation_list(self.authority, *(self.pairs[name].certificate for name in names))
        (self.lists / "site").write_bytes(found.public_bytes(Encoding.DER))

    def section(self, policy: str = "", trusted: Path | None = None) -> str:
        return (
            f'[tls.node]\ncertificate = "{self.material.certificate("node")}"\n'
            f'private_key = "{self.material.key("node")}"\n'
            f'trusted = ["{trusted or self.material.trusted}"]\ncrl = ["{self.lists}"]\n{policy}'
        )

    def hang_up(self, event: str) -> None:
        """HUP, and until the log has the event."""
        assert self.node.process is not None
        count = len(self.node.events(event))
        os.kill(self.node.process.pid, signal.SIGHUP)
        eventually(lambda: len(self.node.events(event)) > count, what=event)

    def s_client(self, name: str, *options: str) -> str:
        """What `openssl s_client` says once the node has ended the connection."""
        done = subprocess.run(
            [
                *(require_program("openssl"), "s_client", "-connect", f"127.0.0.1:{self.node.tls_port}"),
                *("-cert", str(self.material.certificate(name)), "-key", str(self.material.key(name))),
                *("-CAfile", str(self.material.trusted), "-ign_eof", *options),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        return done.stdout + done.stderr

    def echoes(self, name: str) -> bool:
        """Whether DCMTK's echoscu, with that certificate, gets an answer."""
        done = dcmtk.echoscu(self.node.tls_port, *dcmtk.authenticated(self.material, name))
        return done.returncode == 0


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    site.revoke("stolen")
    with cleaned(site.node):
        site.node.start(tls=site.section(), receive="[receive]\nprocesses = 1\nmin_free_bytes = 0")
        yield site


def test_a_revoked_client_gets_the_alert_and_the_log_says_so(site: Site) -> None:
    for version in ("-tls1_2", "-tls1_3"):
        before = len(site.node.events("tls_handshake_failed"))
        assert ALERT in site.s_client("stolen", version)
        (event,) = site.node.events("tls_handshake_failed")[before:]
        assert (event["verify_code"], event["verify_message"]) == (23, "certificate revoked")
    assert not site.echoes("stolen")
    assert site.echoes("peer")


def test_new_lists_count_for_new_associations_after_a_reload(site: Site) -> None:
    with Caller.tls(site.node) as caller:
        caller.associate()
        site.revoke("stolen", "peer")
        assert site.echoes("peer")
        site.hang_up("reloaded")

        eventually(lambda: ALERT in site.s_client("peer"), what="the new list in force")
        assert caller.echo() == 0
        caller.release()

    (site.lists / "site").write_bytes(b"\x30 no list")
    (site.lists / "README").write_text("-----BEGIN X509 CRL-----\nMIIB\n-----END X509 CRL-----\n")
    site.hang_up("reload_refused")
    assert f"{site.lists / 'README'}: its CRL cannot be read" in str(site.node.events("reload_refused")[-1])
    assert ALERT in site.s_client("peer")

    (site.lists / "README").unlink()
    site.revoke()
    site.hang_up("reloaded")
    eventually(lambda: site.echoes("stolen"), what="the list that names nobody in force")


def test_an_authority_that_its_root_revoked_lets_nobody_in_though_both_are_trusted(site: Site) -> None:
    root = pairs.issue_authority("Root", key_type="ec")
    middle = under(pairs.issue_authority("Middle", key_type="ec"), under(root, root))
    pairs.write_pair(pairs.issue_signed("modality", middle, key_type="ec"), site.material.folder / "modality")
    authority, chain = site.material.folder / "middle", site.material.folder / "chain"
    authority.write_bytes(middle.certificate_pem)
    chain.write_bytes(middle.certificate_pem + under(root, root).certificate_pem)
    (site.lists / "middle").write_bytes(revocation_list(middle).public_bytes(Encoding.DER))
    (site.lists / "root").write_bytes(revocation_list(root).public_bytes(Encoding.DER))
    site.node.configure(tls=site.section(trusted=chain))
    site.hang_up("reloaded")
    eventually(lambda: site.echoes("modality"), what="the chain in force")

    named = revocation_list(root, middle.certificate)
    (site.lists / "root").write_bytes(named.public_bytes(Encoding.DER))
    site.hang_up("reloaded")

    eventually(lambda: UNKNOWN in site.s_client("modality"), what="the list of the root in force")
    assert not site.echoes("modality")
    for version in ("-tls1_2", "-tls1_3"):
        assert ALERT in site.s_client("modality", "-cert_chain", str(authority), version)
        assert site.node.events("tls_handshake_failed")[-1]["verify_code"] == 23
    (notice,) = [each for each in site.node.events("notice") if each["key"] == "tls.node.trusted[0]"]
    assert f"CN=Middle is not trusted: the list in {site.lists / 'root'} names it" in notice["cause"]


def test_a_trusted_certificate_that_its_issuer_revoked_is_told_so(site: Site) -> None:
    site.node.configure(tls=site.section(trusted=site.material.certificate("peer")))
    site.hang_up("reloaded")
    eventually(lambda: not site.echoes("node"), what="the certificate alone in force")
    assert site.echoes("peer")

    site.revoke("peer")
    site.hang_up("reloaded")

    eventually(lambda: not site.echoes("peer"), what="the list in force")
    for version in ("-tls1_2", "-tls1_3"):
        assert ALERT in site.s_client("peer", version)
    assert site.node.events("tls_handshake_failed")[-1]["verify_code"] == 23
    assert UNKNOWN in site.s_client("node")


def test_policy_decides_about_an_issuer_without_a_list_and_the_log_names_the_key(site: Site) -> None:
    other = pairs.issue_authority("Other", key_type="ec")
    (site.lists / "site").write_bytes(revocation_list(other).public_bytes(Encoding.PEM))
    site.hang_up("reloaded")
    eventually(lambda: not site.echoes("peer"), what="the list of another in force")
    event = site.node.events("tls_handshake_failed")[-1]
    assert (event["verify_code"], event["verify_message"]) == (3, "unable to get certificate CRL")
    assert "crl_missing" in event["remedy"]

    site.node.configure(tls=site.section('crl_missing = "allow"'))
    site.hang_up("reloaded")
    eventually(lambda: site.echoes("peer"), what="the policy in force")
    assert "tls.node.crl_missing" in {event["key"] for event in site.node.events("notice")}


def test_a_sender_refuses_a_revoked_remote(site: Site) -> None:
    def connect() -> None:
        tls = build_client_context(site.material.tls("peer", crl=(site.lists,)))
        Transport.connect(Remote("localhost", site.node.tls_port, "INGEST", "PEER", tls), 10).close()

    connect()
    site.revoke("node")
    with pytest.raises(AssociationError, match="verify code 23: certificate revoked"):
        connect()
