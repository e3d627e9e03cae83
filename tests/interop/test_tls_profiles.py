"""Which peers each profile of PS3.15 Annex B lets in: DCMTK's own profiles and `openssl s_client` say."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.tls.profiles import PROFILES
from tests.interop import dcmtk
from tests.support.nodes import Node, cleaned, eventually
from tests.support.peers import require_program
from tests.support.pki import Material
from tests.support.ports import free_port

CUSTOM = 'profile = "custom"\nminimum_version = "TLSv1"\nciphers = "ALL:@SECLEVEL=0"'
SECTIONS = {**{name: f'profile = "{name}"' for name in PROFILES}, "old": CUSTOM}
NO_CIPHER, NO_VERSION = "NO_SHARED_CIPHER", "UNSUPPORTED_PROTOCOL"


class Listeners:
    """One node with a listener for each profile, with an RSA certificate, and one with an EC certificate."""

    def __init__(self, node: Node, ports: dict[str, int]) -> None:
        self.node = node
        self.ports = ports

    def failures(self, reason: str) -> int:
        return sum(event.get("error") == reason for event in self.node.events("tls_handshake_failed"))


@pytest.fixture(scope="module")
def listeners(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listeners]:
    keys = {**dict.fromkeys(SECTIONS, "node"), "ec": "other"}
    ports = {name: free_port() for name in keys}
    listening = "\n".join(
        f'[[listeners]]\nhost = "127.0.0.1"\nport = {port}\ntls = "{name}"' for name, port in ports.items()
    )
    sections = "\n".join(
        f'[tls.{name}]\ncertificate = "{material.certificate(pair)}"\nprivate_key = "{material.key(pair)}"\n'
        f'trusted = ["{material.trusted}"]\n{SECTIONS.get(name, "")}'
        for name, pair in keys.items()
    )
    with cleaned(Node(tmp_path_factory.mktemp("profiles"), material)) as node:
        yield Listeners(node.start(listeners=listening, tls=sections), ports)


@pytest.mark.parametrize(
    ("profile", "option", "let_in"),
    [
        # PS3.15 B.9, B.10, B.11: each has ECDHE-RSA with AES-GCM in common with B.12 and B.13
        *((name, option, True) for name in PROFILES for option in ("+px", "+py", "+pz")),
        # B.3, retired: AES128-SHA alone, to which B.9 alone may fall back
        *((name, "+pa", name == "bcp195") for name in PROFILES),
        # IHE ATNA: no encryption
        *((name, "+pn", False) for name in PROFILES),
        ("old", "+pa", True),
        ("ec", "+pz", True),
        ("ec", "+pa", False),
    ],
)
def test_dcmtk_is_let_in_where_the_standard_says_so(
    listeners: Listeners, material: Material, profile: str, option: str, let_in: bool
) -> None:
    before = listeners.failures(NO_CIPHER)
    done = dcmtk.echoscu(listeners.ports[profile], *dcmtk.authenticated(material, "peer"), option)

    assert (done.returncode == 0) == let_in, done.stdout
    if not let_in:
        eventually(lambda: listeners.failures(NO_CIPHER) > before, what="the refusal in the log")


def s_client(
    listeners: Listeners, material: Material, profile: str, *options: str, name: str = "peer"
) -> str:
    """What `openssl s_client` says of the connection; its own security level lets it offer anything."""
    command = [
        *(require_program("openssl"), "s_client", "-connect", f"127.0.0.1:{listeners.ports[profile]}"),
        *("-cert", str(material.certificate(name)), "-key", str(material.key(name))),
        *("-CAfile", str(material.trusted), "-partial_chain", *options),
    ]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False
    )
    return done.stdout + done.stderr


OFFERS = [
    ("rfc8996", "-tls1_2 -cipher ECDHE-RSA-AES128-GCM-SHA256", "Cipher is ECDHE-RSA-AES128-GCM-SHA256"),
    ("rfc8996", "-tls1_3", "Cipher is TLS_AES_256_GCM_SHA384"),
    ("rfc8996", "-tls1_3 -ciphersuites TLS_AES_128_CCM_SHA256", "handshake failure"),
    ("rfc8996-modified", "-tls1_3 -ciphersuites TLS_AES_128_CCM_SHA256", "Cipher is TLS_AES_128_CCM_SHA256"),
    ("rfc8996", "-tls1_2 -cipher ECDHE-RSA-CHACHA20-POLY1305", "handshake failure"),
    ("rfc8996-modified", "-tls1_2 -cipher ECDHE-RSA-CHACHA20-POLY1305", "Cipher is ECDHE-RSA-CHACHA20"),
    # RFC 9325 4.2: neither without forward secrecy nor CBC
    ("rfc8996", "-tls1_2 -cipher AES128-GCM-SHA256", "handshake failure"),
    ("rfc8996", "-tls1_2 -cipher ECDHE-RSA-AES128-SHA256", "handshake failure"),
    ("rfc8996", "-tls1_2 -cipher DHE-RSA-AES128-GCM-SHA256", "handshake failure"),
    *((name, "-tls1_2 -cipher DHE-RSA-AES128-GCM-SHA256", "Server Temp Key: DH, 2048 bits")
      for name in ("bcp195", "bcp195-nd", "bcp195-ex")),
    # RFC 9325 4.5: no curve below 224 bits; and of the others only those of the table
    ("rfc8996", "-tls1_2 -curves P-256", "Server Temp Key: ECDH, prime256v1, 256 bits"),
    ("rfc8996", "-tls1_3 -curves X25519", "Server Temp Key: X25519"),
    ("rfc8996", "-tls1_2 -curves secp192r1 -cipher ALL:@SECLEVEL=0", "handshake failure"),
    ("rfc8996", "-tls1_2 -curves secp256k1 -cipher ALL:@SECLEVEL=0", "handshake failure"),
    ("rfc8996", "-tls1_3 -curves ffdhe2048", "handshake failure"),
    # RFC 9155: no SHA-1 signatures
    ("rfc8996", "-tls1_2 -sigalgs RSA+SHA1 -cipher ALL:@SECLEVEL=0", "handshake failure"),
    ("rfc8996", "-tls1_2 -sigalgs RSA+SHA224 -cipher ALL:@SECLEVEL=0", "handshake failure"),
    # PS3.15 B.11 knows no TLS 1.3
    ("bcp195-ex", "-tls1_3", "protocol version"),
    ("bcp195-ex", "", "New, TLSv1.2"),
    *((name, f"-{version} -cipher ALL:@SECLEVEL=0", "protocol version")
      for name in PROFILES for version in ("tls1", "tls1_1")),
    ("old", "-tls1 -cipher ALL:@SECLEVEL=0", "Protocol  : TLSv1\n"),
    ("old", "-tls1_2 -cipher AES128-SHA", "Cipher is AES128-SHA"),
    ("ec", "-tls1_2", "Cipher is ECDHE-ECDSA-AES"),
]  # fmt: skip


@pytest.mark.parametrize(("profile", "options", "said"), OFFERS)
def test_openssl_gets_what_the_table_says(
    listeners: Listeners, material: Material, profile: str, options: str, said: str
) -> None:
    assert said in s_client(listeners, material, profile, *options.split())


def test_there_is_no_compression_no_ticket_and_no_renegotiation(
    listeners: Listeners, material: Material
) -> None:
    command = [
        *(require_program("openssl"), "s_client", "-connect", f"127.0.0.1:{listeners.ports['rfc8996']}"),
        *("-cert", str(material.certificate("peer")), "-key", str(material.key("peer")), "-tls1_2"),
        *("-comp", "-CAfile", str(material.trusted), "-partial_chain"),
    ]
    # A line "R" asks for a renegotiation.
    done = subprocess.run(command, input="R\n", capture_output=True, text=True, timeout=30, check=False)

    said = done.stdout + done.stderr
    assert "Compression: NONE" in said
    assert "TLS session ticket:" not in said
    assert "RENEGOTIATING" in said
    assert "no renegotiation" in said


def test_a_node_says_at_its_start_and_in_status_what_is_weak(listeners: Listeners) -> None:
    weak = {"tls.bcp195.profile", "tls.bcp195-nd.profile", "tls.bcp195-ex.profile"}
    weak |= {"tls.old.minimum_version", "tls.old.ciphers"}
    node = listeners.node
    said = {key for event in node.events("notice") for key in [event["key"]]}
    status = node.launch("status")
    page, _ = status.communicate(timeout=60)

    assert said == weak
    assert status.returncode == 0
    assert all(key.removeprefix("tls.") in "".join(page.split()) for key in weak)


def test_what_old_scanners_have_is_served_on_a_listener_of_its_own(
    listeners: Listeners, material: Material, tmp_path: Path
) -> None:
    assert "Protocol  : TLSv1.1\n" in s_client(
        listeners, material, "old", "-tls1_1", "-cipher", "AES128-SHA:@SECLEVEL=0"
    )
