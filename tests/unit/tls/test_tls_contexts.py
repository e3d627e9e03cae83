"""TLS contexts of both roles, shaking hands with each other and with certificates as others make them."""

import shutil
import socket
import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ingest.config.model import TLS, Config
from ingest.errors import ConfigError
from ingest.ext.tls_connection import BufferedConnection
from ingest.ext.tls_context import TLS_1_0, TLS_1_1, TLS_1_2, TLS_1_3
from ingest.tls.contexts import build_client_context, build_contexts, build_server_context
from ingest.tls.keys import pairs
from ingest.tls.keys.issuance import Pair
from ingest.tls.profiles import PROFILES
from tests.support.tls_peers import SSLConnection, ssl_client_context

PAST = datetime.now(UTC) - timedelta(days=30)


class Site:
    """Pairs in a folder, made when first asked for."""

    scp: dict[str, Path]
    scu: dict[str, Path]
    signed: dict[str, Path]
    expired: dict[str, Path]
    stranger: dict[str, Path]
    trusted: Path
    # Of test_crl.py, which fills its own.
    other_ca: Pair
    good: dict[str, Path]
    bad: dict[str, Path]
    other: dict[str, Path]
    alone: dict[str, Path]
    current: x509.CertificateRevocationList
    old: x509.CertificateRevocationList
    forged: x509.CertificateRevocationList

    def __init__(self, folder):
        self.folder = folder
        self.ca = pairs.issue_authority("Site", key_type="ec")
        (folder / "ca.crt").write_bytes(self.ca.certificate_pem)

    def pair(self, name, make=pairs.issue_self_signed, *args, **options):
        options.setdefault("key_type", "ec")
        pair = make(name, *args, **options)
        certificate, key = pairs.write_pair(pair, self.folder / name)
        return {"certificate": certificate, "private_key": key}

    def bundle(self, name, *certificates):
        path = self.folder / name
        path.write_text("".join(file.read_text() for file in certificates))
        return path


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    site = Site(tmp_path_factory.mktemp("site"))
    site.scp = site.pair("localhost")
    site.scu = site.pair("ct1")
    site.signed = site.pair("mr1", pairs.issue_signed, site.ca)
    site.expired = site.pair("old", start=PAST, days=1)
    site.stranger = site.pair("stranger")
    site.trusted = site.bundle(
        "trusted.crt",
        *(pair["certificate"] for pair in (site.scp, site.scu, site.expired)),
        site.folder / "ca.crt",
    )
    return site


def shake(server, client, name=None):
    """Shake hands over memory; the two ends, or the first error of the server, else of the client."""
    ends = [BufferedConnection(server), BufferedConnection(client, name)]
    errors = {}
    for _ in range(8):
        for end, other in (ends, ends[::-1]):
            try:
                end.shake_hands()
            except ssl.SSLError as error:
                errors.setdefault(end is ends[0], error)
            other.feed(end.output())
    if errors:
        raise errors.get(True) or errors[False]
    return ends


def settings(site, pair, **changes):
    return TLS(**{**pair, "trusted": (site.trusted,), **changes})


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
@pytest.mark.parametrize("who", ["scu", "signed"])
def test_trusted_pairs_shake_hands_and_know_each_other(site, version, who):
    client = build_client_context(settings(site, getattr(site, who)))
    client.set_versions(TLS_1_2, version)
    server, end = shake(build_server_context(settings(site, site.scp)), client)
    assert end.version() == {TLS_1_2: "TLSv1.2", TLS_1_3: "TLSv1.3"}[version]
    expected = ssl.PEM_cert_to_DER_cert(getattr(site, who)["certificate"].read_text())
    assert server.peer_certificate() == expected


def test_certificate_of_nobody_is_refused_with_its_verify_code(site):
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        shake(
            build_server_context(settings(site, site.scp)),
            build_client_context(settings(site, site.stranger)),
        )
    assert caught.value.verify_code in {18, 20}  # self-signed certificate, no local issuer


def test_expired_certificate_is_refused_although_trusted(site):
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        shake(
            build_server_context(settings(site, site.scp)), build_client_context(settings(site, site.expired))
        )
    assert caught.value.verify_code == 10


def test_client_refuses_an_untrusted_server(site):
    with pytest.raises(ssl.SSLError):
        shake(
            build_server_context(settings(site, site.stranger)),
            build_client_context(settings(site, site.scu)),
        )


@pytest.mark.parametrize("rule", ["required", "optional", "none"])
def test_anonymous_client_is_let_in_unless_certificates_are_required(site, rule):
    server = build_server_context(settings(site, site.scp, peer_certificate=rule))
    client = build_client_context(settings(site, {}))
    if rule == "required":
        with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
            shake(server, client)
    else:
        assert shake(server, client)[0].peer_certificate() is None


@pytest.mark.parametrize(("rule", "let_in"), [("optional", False), ("none", True)])
def test_optional_still_refuses_a_stranger(site, rule, let_in):
    server = build_server_context(settings(site, site.scp, peer_certificate=rule))
    client = build_client_context(settings(site, site.stranger))
    if let_in:
        shake(server, client)
    else:
        with pytest.raises(ssl.SSLCertVerificationError):
            shake(server, client)


def test_none_needs_no_trust_and_takes_any_server(site):
    client = build_client_context(TLS(peer_certificate="none"))
    shake(build_server_context(settings(site, site.stranger, peer_certificate="none")), client)


def test_leaf_of_an_unknown_authority_can_be_trusted_by_itself(site):
    other = pairs.issue_authority("Other", key_type="ec")
    leaf = site.pair("leaf", pairs.issue_signed, other)
    server = build_server_context(settings(site, site.scp, trusted=(leaf["certificate"],)))
    shake(server, build_client_context(settings(site, leaf)))


@pytest.mark.skipif(not shutil.which("openssl"), reason="the openssl program is not installed")
def test_certificates_of_the_orthanc_guide_are_taken(site):
    names = {name: site.folder / f"guide.{name}" for name in ("key", "crt")}
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-nodes",
                "-days",
                "365",
                "-newkey",
                "rsa:2048",
                "-subj",
                "/C=BE/CN=localhost",
            ),
            *("-keyout", names["key"], "-out", names["crt"]),
        ],
        check=True,
        capture_output=True,
    )
    pair = {"certificate": names["crt"], "private_key": names["key"], "trusted": (names["crt"],)}
    shake(
        build_server_context(TLS(**pair)),
        build_client_context(TLS(**pair, check_server_name=True)),
        "localhost",
    )


def test_server_name_is_checked_only_when_asked(site):
    server = build_server_context(settings(site, site.scp))
    shake(server, build_client_context(settings(site, site.scu)), "elsewhere")
    strict = build_client_context(settings(site, site.scu, check_server_name=True))
    shake(server, strict, "localhost")
    shake(server, strict, "127.0.0.1")
    with pytest.raises(ssl.SSLError):
        shake(server, strict, "elsewhere")


def test_folder_of_certificates_is_trusted_whatever_their_names(site, tmp_path):
    (tmp_path / "sub").mkdir()
    shutil.copy(site.scu["certificate"], tmp_path / "ct1.anything")
    shutil.copy(site.scu["private_key"], tmp_path / "key.crt")
    (tmp_path / "README").write_bytes(b"Schl\xfcssel\n-----BEGIN nothing")
    server = build_server_context(settings(site, site.scp, trusted=(tmp_path,)))
    shake(server, build_client_context(settings(site, site.scu)))


def test_bundle_may_hold_comments_in_any_encoding_and_a_certificate_twice(site, tmp_path):
    text = site.scu["certificate"].read_bytes()
    (tmp_path / "b.pem").write_bytes(
        b"# R\xf6ntgen\r\n" + text + b"\n# noch einmal\n" + text.replace(b"\n", b"\r\n")
    )
    server = build_server_context(settings(site, site.scp, trusted=(tmp_path / "b.pem",)))
    shake(server, build_client_context(settings(site, site.scu)))


@pytest.mark.parametrize("version", [TLS_1_0, TLS_1_1])
def test_old_versions_are_refused_by_the_profile_and_possible_with_custom(site, version):
    client = build_client_context(settings(site, site.scu, profile="custom", minimum_version="TLSv1"))
    client.set_versions(TLS_1_0, version)
    with pytest.raises(ssl.SSLError):
        shake(build_server_context(settings(site, site.scp)), client)
    old = build_server_context(settings(site, site.scp, profile="custom", minimum_version="TLSv1"))
    assert shake(old, client)[0].version() in {"TLSv1", "TLSv1.1"}


def test_profile_offers_the_ciphers_of_b12_only(site):
    for context in (
        build_server_context(settings(site, site.scp)),
        build_client_context(settings(site, site.scu)),
    ):
        old = {suite.name for suite in context.list_ciphers() if suite.protocol == "TLSv1.2"}
        assert old == set(PROFILES["rfc8996"].ciphers)


def test_client_of_another_cipher_is_refused(site):
    client = build_client_context(
        settings(site, site.scu, profile="custom", ciphers="ECDHE-ECDSA-AES128-SHA")
    )
    client.set_versions(TLS_1_2, TLS_1_2)
    with pytest.raises(ssl.SSLError, match="NO_SHARED_CIPHER"):
        shake(build_server_context(settings(site, site.scp)), client)


def test_custom_minimum_of_1_3_refuses_1_2(site):
    client = build_client_context(settings(site, site.scu))
    client.set_versions(TLS_1_2, TLS_1_2)
    with pytest.raises(ssl.SSLError):
        shake(
            build_server_context(settings(site, site.scp, profile="custom", minimum_version="TLSv1.3")),
            client,
        )


def converse(server, client):
    """Shake hands with a client of the `ssl` module."""
    for _ in range(4):
        client.shake_hands()
        server.feed(client.output())
        server.shake_hands()
        client.feed(server.output())
    assert server.established


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_there_are_no_tickets_and_no_compression(site, version):
    context = ssl_client_context(settings(site, site.scu))
    context.maximum_version = version
    server, client = (
        BufferedConnection(build_server_context(settings(site, site.scp))),
        SSLConnection(context),
    )
    converse(server, client)
    server.write(b"x")
    client.feed(server.output())
    assert client.tls.read(1) == b"x"  # a ticket would come before it
    assert client.tls.session is None or not client.tls.session.has_ticket
    assert client.tls.compression() is None


def test_session_of_tls_1_2_cannot_be_resumed_by_its_id(site):
    context = build_server_context(settings(site, site.scp))
    sending = ssl_client_context(settings(site, site.scu))
    sending.maximum_version = ssl.TLSVersion.TLSv1_2
    first = SSLConnection(sending)
    converse(BufferedConnection(context), first)  # OpenSSL forgets the session of one that ended badly
    again = SSLConnection(sending)
    again.tls.session = first.tls.session
    converse(BufferedConnection(context), again)
    assert first.version() == again.version() == "TLSv1.2"
    assert not again.tls.session_reused


@pytest.mark.skipif(not shutil.which("openssl"), reason="the openssl program is not installed")
def test_renegotiation_is_refused(site):
    server = BufferedConnection(build_server_context(settings(site, site.scp)))
    files = ("-cert", site.scu["certificate"], "-key", site.scu["private_key"])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        port = listener.getsockname()[1]
        with subprocess.Popen(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_2", *files],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        ) as client, listener.accept()[0] as sock:  # fmt: skip
            sock.settimeout(10)
            while not server.established:
                server.feed(sock.recv(65536))
                server.shake_hands()
                sock.sendall(server.output())
            client.stdin.write(b"R\n")  # of s_client: renegotiate
            client.stdin.flush()
            server.feed(sock.recv(65536))
            assert server.read_into(memoryview(bytearray(65536))) == 0
            sock.sendall(server.output())
            assert b"no renegotiation" in client.communicate(timeout=10)[1]


def test_session_keys_are_never_logged(site, tmp_path, monkeypatch):
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    shake(build_server_context(settings(site, site.scp)), build_client_context(settings(site, site.scu)))
    assert not (tmp_path / "keys").exists()


def test_public_authorities_are_not_trusted(site, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(site.trusted))  # OpenSSL's own place for them
    server = build_server_context(settings(site, site.scp))
    with pytest.raises(ssl.SSLError):
        shake(server, build_client_context(settings(site, site.scu, trusted=(site.expired["certificate"],))))


def test_encrypted_key_is_opened_with_its_password_file(site, tmp_path):
    pair = pairs.issue_self_signed("locked", key_type="ec")
    certificate, key = pairs.write_pair(pair, tmp_path / "locked", password="geheim ö".encode())
    (tmp_path / "password").write_bytes("geheim ö\r\nsecond line".encode())
    tls = settings(
        site, {"certificate": certificate, "private_key": key}, password_file=tmp_path / "password"
    )
    build_server_context(tls)


def damage(site, tmp_path, case):
    """Settings that are wrong in one way, and words of the fault that names file and remedy."""
    scp, other = site.scp, site.scu
    locked_crt, locked_key = pairs.write_pair(
        pairs.issue_self_signed("x", key_type="ec"), tmp_path / "x", password=b"right"
    )
    locked = {"certificate": locked_crt, "private_key": locked_key}
    (tmp_path / "wrong").write_text("wrong\n")
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "long").write_text("p" * 2000)
    (tmp_path / "text").write_text("hello")
    (tmp_path / "cut").write_text(
        scp["certificate"].read_text().replace("MII", "MIX", 1).replace("MIIB", "AAAA")
    )
    (tmp_path / "reversed").write_bytes(
        (site.folder / "ca.crt").read_bytes() + site.signed["certificate"].read_bytes()
    )
    (tmp_path / "folder").mkdir()
    none = tmp_path / "none"
    return {
        "another key": ({**scp, "private_key": other["private_key"]}, scp["certificate"], "does not belong"),
        "issuer first": (
            {**site.signed, "certificate": tmp_path / "reversed"},
            tmp_path / "reversed",
            "put it before",
        ),
        "no password": (locked, locked_key, "password_file"),
        "wrong password": (
            {**locked, "password_file": tmp_path / "wrong"},
            locked_key,
            "cannot be decrypted",
        ),
        "empty password": ({**locked, "password_file": tmp_path / "empty"}, tmp_path / "empty", "first line"),
        "long password": ({**locked, "password_file": tmp_path / "long"}, tmp_path / "long", "1024"),
        "no password file": ({**locked, "password_file": none}, none, "password file"),
        "text as certificate": (
            {**scp, "certificate": tmp_path / "text"},
            tmp_path / "text",
            "holds no certificate",
        ),
        "key as certificate": (
            {**scp, "certificate": scp["private_key"]},
            scp["private_key"],
            "a private key but no certificate",
        ),
        "certificate as key": (
            {**scp, "private_key": scp["certificate"]},
            scp["certificate"],
            "certificates but no private key",
        ),
        "text as key": (
            {**scp, "private_key": tmp_path / "text"},
            tmp_path / "text",
            "holds no private key",
        ),
        "no certificate": ({**scp, "certificate": none}, none, "No such file"),
        "no key": ({**scp, "private_key": none}, none, "No such file"),
        "no bundle": ({**scp, "trusted": (none,)}, none, "No such file"),
        "text as bundle": (
            {**scp, "trusted": (tmp_path / "text",)},
            tmp_path / "text",
            "holds no certificate",
        ),
        "broken bundle": ({**scp, "trusted": (tmp_path / "cut",)}, tmp_path / "cut", "cannot be read"),
        "empty folder": ({**scp, "trusted": (tmp_path / "folder",)}, tmp_path / "folder", "holds no file"),
        "nothing trusted": ({**scp, "trusted": ()}, "trusted", "peer_certificate"),
    }[case]


CASES = [
    "another key",
    "issuer first",
    "no password",
    "wrong password",
    "empty password",
    "long password",
    "no password file",
    "text as certificate",
    "key as certificate",
    "certificate as key",
    "text as key",
    "no certificate",
    "no key",
    "no bundle",
    "text as bundle",
    "broken bundle",
    "empty folder",
    "nothing trusted",
]


@pytest.mark.parametrize("role", [build_server_context, build_client_context])
@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_loaded_is_named_with_its_remedy(site, tmp_path, case, role):
    changes, file, words = damage(site, tmp_path, case)
    with pytest.raises(ConfigError) as caught:
        role(settings(site, {}, **changes))
    (line,) = caught.value.faults
    assert line.startswith(f"{file}: ")
    assert words in line
    assert "; " in line


def test_weak_key_is_refused_by_name(site, tmp_path):
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ingest.tls.keys.issuance.generate_key", lambda _: key)
        weak = pairs.issue_self_signed("weak")
    certificate, path = pairs.write_pair(weak, tmp_path / "weak")
    with pytest.raises(ConfigError, match="RSA 2048"):
        build_server_context(settings(site, {"certificate": certificate, "private_key": path}))


def test_listener_without_certificate_is_a_fault(site):
    with pytest.raises(ConfigError, match="a listener needs one"):
        build_server_context(settings(site, {}))


@pytest.mark.parametrize("curve", [ec.SECP256K1(), ec.BrainpoolP256R1(), ec.SECP224R1()])
def test_pair_with_which_no_handshake_succeeds_is_refused_with_its_section(tmp_path, curve):
    key = ec.generate_private_key(curve)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "odd")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    pairs.write_pair(pairs.Pair(builder.sign(key, hashes.SHA256()), key), tmp_path / "odd")
    pairs.write_pair(pairs.issue_self_signed("good", key_type="ec"), tmp_path / "good")
    trusted = [f"{tmp_path}/good.crt"]
    sections = {
        name: {
            "certificate": f"{tmp_path}/{own}.crt",
            "private_key": f"{tmp_path}/{key}.key",
            "trusted": trusted,
        }
        for name, own, key in (("odd", "odd", "odd"), ("good", "good", "good"), ("bad", "odd", "good"))
    }
    listeners = [{"port": port, "tls": tls} for port, tls in enumerate(sections, 1)]
    config = Config.model_validate({"tls": sections, "listeners": listeners})
    with pytest.raises(ConfigError) as caught:
        build_contexts(config, {"listen"})
    odd, bad = caught.value.faults
    assert odd.startswith(
        f"tls.odd: {tmp_path}/odd.crt: no peer can shake hands with this certificate and key"
    )
    assert bad.startswith(f"tls.bad: {tmp_path}/odd.crt: does not belong to the private key")
    assert build_contexts(config, {"forward"}).listening == {}
