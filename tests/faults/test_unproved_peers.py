"""A node talks to nobody who has not proved who it is: no certificate at all, or that of somebody else."""

import contextlib
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.checks.connect import EchoAnswer, echo_destinations
from ingest.config.model import TLS, Config, Destination, NodeSettings
from ingest.errors import AssociationError, Cause
from ingest.ext.tls_connection import BufferedConnection
from ingest.ext.tls_context import TLS_1_2, Context
from ingest.requestor.remotes import build_remotes
from ingest.requestor.store_scu import Remote, StoreSCU, Timeouts
from ingest.tls.contexts import build_client_context, build_server_context
from ingest.tls.identity import read_identity
from ingest.tls.keys import pairs
from tests.support.forwarding import Forwarding
from tests.support.instances import EXPLICIT
from tests.support.nodes import Node as RunningNode
from tests.support.nodes import cleaned, eventually
from tests.support.peers import AE_TITLE, CT, Conversation, ScriptedPeer
from tests.support.pki import Material
from tests.support.servers import Valkey
from tests.support.tls_peers import SSLConnection

ANONYMOUS = ("ALL:@SECLEVEL=0", "aNULL:@SECLEVEL=0", "AECDH-AES256-SHA:@SECLEVEL=0", "ALL:PSK:@SECLEVEL=0")
SHORT = Timeouts(5, 5)


def anonymous(protocol: int) -> ssl.SSLContext:
    """A context that shows no certificate, and completes handshakes nevertheless."""
    context = ssl.SSLContext(protocol)
    if protocol == ssl.PROTOCOL_TLS_CLIENT:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("aNULL:@SECLEVEL=0")
    return context


def anonymous_caller() -> Context:
    """The same for our sender."""
    context = Context(is_server=False)
    context.set_versions(TLS_1_2, TLS_1_2)
    context.set_ciphers("aNULL:@SECLEVEL=0")
    return context


@contextlib.contextmanager
def remote_without_certificate() -> Iterator[tuple[ScriptedPeer, list[bytes]]]:
    """A remote that takes everything; and what it got before it was told who it has to be."""
    heard: list[bytes] = []

    def script(peer: Conversation) -> None:
        with contextlib.suppress(EOFError, OSError):
            heard.append(peer.read(1))
            peer.sock.unwrap()  # type: ignore[attr-defined]

    peer = ScriptedPeer(script)
    peer._context = anonymous(ssl.PROTOCOL_TLS_SERVER)
    with peer:
        yield peer, heard


@pytest.mark.parametrize("ciphers", ANONYMOUS)
def test_a_remote_without_a_certificate_hears_nothing_whatever_the_suites(
    material: Material, ciphers: str
) -> None:
    tls = material.tls("node", profile="custom", ciphers=ciphers)
    with remote_without_certificate() as (peer, heard):
        remote = Remote("127.0.0.1", peer.port, AE_TITLE, "INGEST", build_client_context(tls))
        with pytest.raises(AssociationError, match="shown no certificate") as raised:
            StoreSCU.open(remote, [(CT, [EXPLICIT])], timeouts=SHORT)
        assert raised.value.cause is Cause.NO_CERTIFICATE
        [result] = echo_destinations(config(peer.port, tls))
        assert "aNULL" in str(result)
    assert heard == []


@pytest.mark.parametrize("ciphers", ANONYMOUS)
def test_a_caller_without_a_certificate_gets_no_association_whatever_the_suites(
    material: Material, tmp_path: Path, ciphers: str
) -> None:
    node = RunningNode(tmp_path / "node", material)
    section = f'[tls.node]\ncertificate = "{material.certificate("node")}"\n'
    section += f'private_key = "{material.key("node")}"\ntrusted = ["{material.trusted}"]\n'
    with cleaned(node):
        node.start(
            tls=section + f'profile = "custom"\nciphers = "{ciphers}"', receive="[receive]\nprocesses = 1"
        )
        caller = Remote("127.0.0.1", node.tls_port, "INGEST", "CT1", anonymous_caller())
        with pytest.raises(AssociationError):
            StoreSCU.open(caller, [(CT, [EXPLICIT])], timeouts=SHORT)
        # OpenSSL insists on a certificate in such a suite too, which its own client takes amiss.
        eventually(lambda: node.events("tls_handshake_failed"), 10, "the refusal")
        honest = Remote(
            "127.0.0.1", node.tls_port, "INGEST", "CT1", build_client_context(material.tls("peer"))
        )
        StoreSCU.open(honest, [(CT, [EXPLICIT])], timeouts=SHORT).release()


def test_where_no_certificate_is_required_a_suite_without_one_is_a_choice(material: Material) -> None:
    tls = material.tls("node", profile="custom", ciphers=ANONYMOUS[0], peer_certificate="none")
    client = SSLConnection(anonymous(ssl.PROTOCOL_TLS_CLIENT))
    server = BufferedConnection(build_server_context(tls))
    for _ in range(5):
        client.shake_hands()
        server.feed(client.output())
        server.shake_hands()
        client.feed(server.output())
    assert client.established
    assert server.established
    assert server.verified_chain() == []


# -- destinations that are bound to a certificate


def config(port: int, tls: TLS, **keys: object) -> Config:
    destination = Destination(
        name="pacs",
        ae_title=AE_TITLE,
        host="127.0.0.1",
        port=port,
        **keys,  # type: ignore[arg-type]
    )
    return Config(
        node=NodeSettings(data_dir=Path("/nonexistent")), tls={"node": tls}, destinations=(destination,)
    )


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TLS]:
    """A node that trusts an authority, and the archive, a modality and another authority's certificate."""
    folder = tmp_path_factory.mktemp("hospital")
    site, vendor = (
        pairs.issue_authority("site", key_type="ec"),
        pairs.issue_authority("vendor", key_type="ec"),
    )
    for each in (site, vendor):
        pairs.add_to_bundle(each.certificate, folder / "trusted.crt")
    made = {}
    for name, issuer in (("node", site), ("archive", site), ("modality", site), ("archive2", vendor)):
        title = name.rstrip("2")
        pair = pairs.issue_signed(title, issuer, names=[f"{title}.example.org", "127.0.0.1"], key_type="ec")
        pairs.write_pair(pair, folder / name)
        certificate, key = pairs.pair_paths(folder / name)
        made[name] = TLS(certificate=certificate, private_key=key, trusted=(folder / "trusted.crt",))
    return made


def serve(peer: Conversation) -> None:
    with contextlib.suppress(EOFError, OSError):
        peer.accept()
        peer.serve()


def fingerprint(tls: TLS) -> str:
    assert tls.certificate is not None
    return read_identity(ssl.PEM_cert_to_DER_cert(tls.certificate.read_text())).fingerprint


@pytest.mark.parametrize(
    ("certificate", "issuer", "let_in"),
    [
        ("", "", {"archive", "modality", "archive2"}),
        ("FINGERPRINT", "", {"archive"}),
        ("CN=archive", "", {"archive", "archive2"}),
        ("DNS:archive.example.org", "", {"archive", "archive2"}),
        ("archive.example.org", "CN=site", {"archive"}),
        ("", "CN=site", {"archive", "modality"}),
        ("", "CN=vendor", {"archive2"}),
        ("CN=somebody", "", set()),
    ],
)
def test_a_destination_is_who_it_is_bound_to(
    hospital: dict[str, TLS], certificate: str, issuer: str, let_in: set[str]
) -> None:
    wanted = certificate.replace("FINGERPRINT", fingerprint(hospital["archive"]))
    for name in ("archive", "modality", "archive2"):
        with ScriptedPeer(serve, hospital[name]) as peer:
            settings = config(peer.port, hospital["node"], certificate=wanted, issuer=issuer)
            remote = build_remotes(settings)["pacs"]
            if name in let_in:
                StoreSCU.open(remote, [(CT, [EXPLICIT])], timeouts=SHORT).release()
                continue
            with pytest.raises(AssociationError, match="is not bound to") as raised:
                StoreSCU.open(remote, [(CT, [EXPLICIT])], timeouts=SHORT)
            assert (raised.value.cause, raised.value.permanent) == (Cause.UNBOUND, False)
            assert wanted in str(raised.value)


def test_check_names_the_binding_and_its_remedy(hospital: dict[str, TLS]) -> None:
    with ScriptedPeer(serve, hospital["modality"]) as peer:
        [wrong] = echo_destinations(config(peer.port, hospital["node"], certificate="CN=archive"))
        [right] = echo_destinations(config(peer.port, hospital["node"], certificate="CN=modality"))
    assert not isinstance(wrong, EchoAnswer)
    assert wrong.key == "destinations[0].certificate"
    assert "CN=modality" in wrong.cause
    assert "ingest certs inspect" in wrong.remedy
    assert isinstance(right, EchoAnswer)


def test_a_trusted_modality_at_the_address_of_the_archive_gets_no_image(
    hospital: dict[str, TLS], tmp_path: Path, redis_server: Valkey
) -> None:
    heard = threading.Event()

    def script(peer: Conversation) -> None:
        with contextlib.suppress(EOFError, OSError):
            peer.read(1)
            heard.set()

    forwarding = Forwarding(tmp_path / "node", redis_server, hospital["node"])
    try:
        with ScriptedPeer(script, hospital["modality"]) as peer:
            forwarding.add(peer.port, certificate="CN=archive")
            forwarding.many(1)
            with forwarding.worker():
                forwarding.wake()
                eventually(
                    lambda: forwarding.ledger.circuits.read_circuit("pacs").failures, 20, "the circuit"
                )
        assert not heard.is_set()
        assert set(forwarding.states()) <= {"waiting", "sending"}  # the lease of a killed worker
        assert "is not bound to" in str(forwarding.ledger.circuits.read_circuit("pacs").last_error)
    finally:
        forwarding.ledger.close()
