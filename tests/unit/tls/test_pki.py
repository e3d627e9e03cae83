"""Pairs: what is in them, who may read them, and what is never overwritten."""

import os
import stat
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from ingest.errors import IngestError
from ingest.tls.keys import pairs


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(scope="module")
def site():
    return pairs.issue_authority("Site", key_type="ec")


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_key_is_for_its_owner_and_certificate_for_all(tmp_path, umask):
    before = os.umask(umask)
    try:
        certificate, key = pairs.write_pair(
            pairs.issue_self_signed("n", key_type="ec"), tmp_path / "new folder" / "n"
        )
    finally:
        os.umask(before)
    assert (certificate.name, key.name) == ("n.crt", "n.key")
    assert mode(key) == 0o600
    assert mode(certificate) == 0o644


def test_prefix_with_a_dot_keeps_it(tmp_path):
    assert pairs.pair_paths(tmp_path / "node.v1")[1] == tmp_path / "node.v1.key"


@pytest.mark.parametrize("there", ["n.crt", "n.key"])
def test_what_is_there_is_kept_unless_forced(tmp_path, there):
    (tmp_path / there).write_text("precious")
    pair = pairs.issue_self_signed("n", key_type="ec")
    with pytest.raises(IngestError, match="--force"):
        pairs.write_pair(pair, tmp_path / "n")
    assert (tmp_path / there).read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 1
    os.chmod(tmp_path / there, 0o666)
    certificate, key = pairs.write_pair(pair, tmp_path / "n", force=True)
    assert (mode(certificate), mode(key)) == (0o644, 0o600)
    assert pairs.read_pair(tmp_path / "n").certificate == pair.certificate
    assert len(list(tmp_path.iterdir())) == 2


def test_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(IngestError, match="f"):
        pairs.write_pair(pairs.issue_self_signed("n", key_type="ec"), tmp_path / "f" / "n")


@pytest.mark.parametrize(
    ("kind", "key", "size"), [("rsa2048", rsa.RSAPrivateKey, 2048), ("ec", ec.EllipticCurvePrivateKey, 256)]
)
def test_key_types(kind, key, size):
    pair = pairs.issue_self_signed("n", key_type=kind)
    assert isinstance(pair.private_key, key)
    assert pair.private_key.key_size == size


def extension(pair, kind):
    return pair.certificate.extensions.get_extension_for_class(kind).value


def test_pair_serves_both_roles_and_is_no_authority(site):
    for pair in (pairs.issue_self_signed("n", key_type="ec"), pairs.issue_signed("n", site, key_type="ec")):
        assert set(extension(pair, x509.ExtendedKeyUsage)) == {
            ExtendedKeyUsageOID.SERVER_AUTH,
            ExtendedKeyUsageOID.CLIENT_AUTH,
        }
        assert extension(pair, x509.BasicConstraints).ca is False


@pytest.mark.parametrize(("kind", "allowed"), [("rsa2048", True), ("ec", False), ("ed25519", False)])
def test_only_rsa_keys_may_encipher_keys(site, kind, allowed):
    """RFC 8410 5, RFC 8813 3: the others must not say so."""
    usage = extension(pairs.issue_signed("n", site, key_type=kind), x509.KeyUsage)
    assert (usage.digital_signature, usage.key_encipherment) == (True, allowed)


def test_localhost_stands_for_the_loopback_addresses_too():
    names = extension(pairs.issue_self_signed("localhost", key_type="ec"), x509.SubjectAlternativeName)
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]


def test_alternative_names_are_hosts_or_addresses():
    pair = pairs.issue_self_signed(
        "n", names=["DNS:a.example", "10.0.0.1", "IP:::1", "*.b.example", "a.example"], key_type="ec"
    )
    names = extension(pair, x509.SubjectAlternativeName)
    assert names.get_values_for_type(x509.DNSName) == ["n", "a.example", "*.b.example"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1", "::1"]
    for bad in ("a b", "", "-a", "a..b", "x@y", "DNS:"):
        with pytest.raises(IngestError, match="neither a host name"):
            pairs.issue_self_signed("n", names=[bad], key_type="ec")


def test_name_that_is_a_host_stands_beside_further_ones(site):
    for pair in (
        pairs.issue_self_signed("localhost", names=["ct.example.org", "127.0.0.1"], key_type="ec"),
        pairs.issue_signed("localhost", site, names=["ct.example.org", "127.0.0.1"], key_type="ec"),
    ):
        names = extension(pair, x509.SubjectAlternativeName)
        assert names.get_values_for_type(x509.DNSName) == ["localhost", "ct.example.org"]
        assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]


def test_name_that_is_no_host_has_no_alternative_name():
    with pytest.raises(x509.ExtensionNotFound):
        extension(pairs.issue_self_signed("CT scanner 1", key_type="ec"), x509.SubjectAlternativeName)


@pytest.mark.parametrize("name", ["", "x" * 65])
def test_common_name_that_x509_cannot_hold_is_named(name):
    with pytest.raises(IngestError, match="1 to 64"):
        pairs.issue_self_signed(name, key_type="ec")


def test_days_count_from_now_or_from_the_start():
    now = datetime.now(UTC)
    pair = pairs.issue_self_signed("n", days=10, key_type="ec").certificate
    assert abs(pair.not_valid_after_utc - now - timedelta(days=10)) < timedelta(minutes=1)
    assert pair.not_valid_before_utc < now
    old = pairs.issue_self_signed("n", days=1, start=now - timedelta(days=9), key_type="ec").certificate
    assert old.not_valid_after_utc < now - timedelta(days=7)


def test_signed_pair_is_issued_by_its_authority_and_ends_with_it(site):
    pair = pairs.issue_signed("n", site, days=36500, key_type="ec")
    pair.certificate.verify_directly_issued_by(site.certificate)
    assert pair.certificate.not_valid_after_utc == site.certificate.not_valid_after_utc
    with pytest.raises(IngestError, match="not a certificate authority"):
        pairs.issue_signed("m", pair)


def test_trust_appends_once_and_keeps_what_is_there(tmp_path, site):
    bundle = tmp_path / "folder" / "trusted.crt"
    first, second = (pairs.issue_self_signed(name, key_type="ec").certificate for name in "ab")
    for certificate in (first, second, first):
        pairs.add_to_bundle(certificate, bundle)
    assert x509.load_pem_x509_certificates(bundle.read_bytes()) == [first, second]
    bundle.write_bytes(bundle.read_bytes().rstrip(b"\n"))
    pairs.add_to_bundle(site.certificate, bundle)
    assert x509.load_pem_x509_certificates(bundle.read_bytes()) == [first, second, site.certificate]
    (tmp_path / "text").write_text("hello")
    with pytest.raises(IngestError, match="not a bundle"):
        pairs.add_to_bundle(first, tmp_path / "text")


def test_inspect_tells_every_certificate_of_a_file_or_folder(tmp_path, site):
    pairs.add_to_bundle(site.certificate, tmp_path / "x" / "b.crt")
    pairs.add_to_bundle(pairs.issue_self_signed("n", key_type="ec").certificate, tmp_path / "x" / "b.crt")
    (tmp_path / "x" / "notes").write_text("none here")
    for path in (tmp_path / "x", tmp_path / "x" / "b.crt"):
        assert [identity.subject for identity in pairs.read_identities(path)] == ["CN=Site", "CN=n"]
    for path in (tmp_path / "x" / "notes", tmp_path / "none"):
        with pytest.raises(IngestError, match=path.name):
            pairs.read_identities(path)


def test_make_signs_with_an_authority_that_it_makes_once(tmp_path):
    first = pairs.create_pair(tmp_path / "a", "a", ca=tmp_path / "site", key_type="ec")
    second = pairs.create_pair(tmp_path / "b", "b", ca=tmp_path / "site", key_type="ec", san=["b.example"])
    assert [path.name for path in first.files] == ["site.crt", "site.key", "a.crt", "a.key"]
    assert [path.name for path in second.files] == ["b.crt", "b.key"]
    assert first.anchor == second.anchor
    assert mode(tmp_path / "site.key") == 0o600


def test_make_writes_nothing_when_an_argument_is_wrong(tmp_path):
    with pytest.raises(IngestError, match="a b"):
        pairs.create_pair(tmp_path / "a", "a", ca=tmp_path / "site", san=["a b"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("prefix", ["site", "here/../site", "link/site", "linked"])
def test_authority_is_never_replaced_by_what_it_signs(tmp_path, prefix):
    pairs.create_pair(tmp_path / "a", "a", ca=tmp_path / "site", key_type="ec")
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "linked.key").symlink_to(tmp_path / "site.key")
    before = [(tmp_path / f"site.{ending}").read_bytes() for ending in ("crt", "key")]
    with pytest.raises(IngestError, match="is the authority itself"):
        pairs.create_pair(tmp_path / prefix, "b", ca=tmp_path / "site", key_type="ec", force=True)
    assert [(tmp_path / f"site.{ending}").read_bytes() for ending in ("crt", "key")] == before


@pytest.mark.parametrize("name", ["x", "x" * 65])
def test_no_authority_is_made_for_a_pair_that_cannot_be(tmp_path, name):
    if len(name) == 1:
        (tmp_path / "a.crt").write_text("precious")
    before = list(tmp_path.iterdir())
    with pytest.raises(IngestError, match=r"exists|1 to 64"):
        pairs.create_pair(tmp_path / "a", name, ca=tmp_path / "site", key_type="ec")
    assert list(tmp_path.iterdir()) == before


def test_authority_may_have_a_password(tmp_path):
    password, wrong = tmp_path / "p", tmp_path / "w"
    password.write_text("geheim\n")
    wrong.write_text("falsch\n")
    for name in ("a", "b"):
        made = pairs.create_pair(
            tmp_path / name, name, ca=tmp_path / "site", ca_password_file=password, key_type="ec"
        )
    made.anchor.verify_directly_issued_by(made.anchor)
    assert b"ENCRYPTED" in (tmp_path / "site.key").read_bytes()
    assert b"ENCRYPTED" not in (tmp_path / "b.key").read_bytes()
    pairs.create_pair(tmp_path / "x", "x", ca=tmp_path / "plain", key_type="ec")
    for ca, file, words in (
        ("site", None, "is encrypted; name"),
        ("site", wrong, "correct the password"),
        ("plain", password, "is not encrypted; leave"),
    ):
        with pytest.raises(IngestError, match=rf"{ca}\.key: .*{words}"):
            pairs.create_pair(tmp_path / "c", "c", ca=tmp_path / ca, ca_password_file=file, key_type="ec")
    assert not (tmp_path / "c.crt").exists()


@pytest.mark.parametrize("missing", ["site.key", "site.crt"])
def test_half_an_authority_is_never_replaced(tmp_path, missing):
    pairs.create_pair(tmp_path / "a", "a", ca=tmp_path / "site", key_type="ec")
    (tmp_path / missing).unlink()
    with pytest.raises(IngestError, match=missing):
        pairs.create_pair(tmp_path / "b", "b", ca=tmp_path / "site", key_type="ec")


def test_password_encrypts_the_key(tmp_path):
    (tmp_path / "p").write_text("geheim\n")
    pairs.create_pair(tmp_path / "a", "a", key_type="ec", password_file=tmp_path / "p")
    assert b"ENCRYPTED" in (tmp_path / "a.key").read_bytes()
    with pytest.raises(IngestError, match=r"a\.key: is encrypted; name the file with its password"):
        pairs.read_pair(tmp_path / "a")


def test_openssl_reads_what_we_write(tmp_path):
    try:
        subprocess.run(["openssl", "version"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("the openssl program is not installed")
    made = pairs.create_pair(tmp_path / "a", "a.example", ca=tmp_path / "site")
    command = ["openssl", "verify", "-x509_strict", "-CAfile", tmp_path / "site.crt", made.files[-2]]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().endswith("OK")
