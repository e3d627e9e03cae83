"""Who a certificate says its holder is, and what names it."""

import hashlib
import ipaddress
import random
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from ext.errors import PeerError
from ingest.tls.identity import identity_of, matches


def make(attributes, names=()):
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes])
    now = datetime(2025, 1, 1, tzinfo=UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


SUBJECT = (
    (NameOID.COUNTRY_NAME, "BE"),
    (NameOID.ORGANIZATION_NAME, "Hospital, East"),
    (NameOID.COMMON_NAME, "ct1"),
)
NAMES = (
    x509.DNSName("CT1.example.org"),
    x509.IPAddress(ipaddress.ip_address("10.1.0.7")),
    x509.IPAddress(ipaddress.ip_address("fd00::1")),
    x509.UniformResourceIdentifier("urn:oid:1.2.3"),
    x509.RFC822Name("pacs@example.org"),
    x509.DNSName("*.wild.example.org"),
    x509.DNSName("10.9.9.9"),
    x509.RegisteredID(x509.ObjectIdentifier("1.2.3")),
)


@pytest.fixture(scope="module")
def der():
    return make(SUBJECT, NAMES)


@pytest.fixture(scope="module")
def identity(der):
    return identity_of(der)


def test_identity_tells_fingerprint_subject_issuer_names_and_end(der, identity):
    assert identity.fingerprint == hashlib.sha256(der).hexdigest()
    assert identity.subject == identity.issuer == "CN=ct1,O=Hospital\\, East,C=BE"
    assert identity.names == (
        "DNS:CT1.example.org",
        "IP:10.1.0.7",
        "IP:fd00::1",
        "URI:urn:oid:1.2.3",
        "email:pacs@example.org",
        "DNS:*.wild.example.org",
        "DNS:10.9.9.9",
    )
    assert identity.not_after == datetime(2025, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    "pattern",
    [
        "CN=ct1,O=Hospital\\, East,C=BE",
        "C=BE,O=Hospital\\, East,CN=ct1",
        "C = BE, O = Hospital\\, East, CN = ct1",
        "CN = ct1, O = Hospital\\, East, C = BE",
        'C = BE, O = "Hospital, East", CN = ct1',
        "ct1.example.org",
        "CT1.EXAMPLE.ORG.",
        "DNS:ct1.example.org",
        "10.1.0.7",
        "IP:10.1.0.7",
        "fd00:0::1",
        "IP:fd00::0001",
        "urn:oid:1.2.3",
        "URI:urn:oid:1.2.3",
        "pacs@example.org",
        " ct1.example.org ",
    ],
)
def test_names_of_the_holder_match(identity, pattern):
    assert matches(identity, pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        " ",
        "=",
        ",",
        "ct1",
        "CN=ct1",
        "CN=ct1,C=BE",
        "CN=ct1,O=Hospital\\, East,C=BE,CN=x",
        "CN=CT1,O=Hospital\\, East,C=BE",
        "example.org",
        "x.ct1.example.org",
        "*.example.org",
        "a.wild.example.org",
        "IP:ct1.example.org",
        "DNS:10.1.0.7",
        "10.9.9.9",  # as a DNS name it is no address
        "10.1.0.0/16",
        "1.2.3",
        "urn:oid:1.2",
        "PACS@example.org",
        "0" * 64,
        "((",
        "CN=\\",
    ],
)
def test_anything_less_does_not_match(identity, pattern):
    assert not matches(identity, pattern)


def test_fingerprint_matches_as_openssl_and_people_write_it(identity):
    plain = identity.fingerprint
    pairs = ":".join(plain[i : i + 2] for i in range(0, 64, 2)).upper()
    for pattern in (plain, plain.upper(), pairs, f"sha256:{plain}", f"SHA256 Fingerprint={pairs}"):
        assert matches(identity, pattern)
    assert not matches(identity, plain[:-1])
    assert not matches(identity, plain[:-1] + ("0" if plain[-1] != "0" else "1"))


def test_subject_may_be_written_as_openssl_once_did():
    identity = identity_of(make(((NameOID.COUNTRY_NAME, "BE"), (NameOID.COMMON_NAME, "localhost"))))
    assert matches(identity, "/C=BE/CN=localhost")
    assert not matches(identity, "/C=BE/CN=localhos")
    assert identity.names == ()


def test_fingerprint_of_a_subject_is_no_subject():
    """A holder who may choose a name cannot choose one that reads as another's fingerprint."""
    identity = identity_of(make(((NameOID.COMMON_NAME, "ab" * 32),), (x509.DNSName("ab" * 32),)))
    assert not matches(identity, "ab" * 32)


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_damaged_certificate_is_an_identity_or_a_peer_error(seed):
    damaged = bytearray(SOUND)
    pick = random.Random(seed)
    for _ in range(pick.randint(1, 4)):
        damaged[pick.randrange(len(damaged))] = pick.randrange(256)
    try:
        identity = identity_of(bytes(damaged))
    except PeerError:
        return
    assert len(identity.fingerprint) == 64
    assert isinstance(matches(identity, "CN=a"), bool)


SOUND = make(SUBJECT, NAMES)


@settings(deadline=None)
@given(st.text(max_size=80))
def test_any_pattern_gives_an_answer(pattern):
    assert matches(identity_of(SOUND), pattern) in {True, False}
