"""Who a certificate says its holder is, and what names it."""

import hashlib
import ipaddress
import random
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.ext.errors import PeerError
from ingest.tls import distinguished_names
from ingest.tls.identity import (
    explain_unmatchable,
    is_issued_by,
    matches_identity,
    read_identity,
    read_trust_anchor,
)
from tests.support.peers import require_program


def make(attributes, alternatives=(), extensions=()):
    """A certificate; each of `attributes` is (OID, value), or a list of such for a multi-valued RDN."""
    key = ec.generate_private_key(ec.SECP256R1())
    rdns = [each if isinstance(each, list) else [each] for each in attributes]
    subject = x509.Name(
        [x509.RelativeDistinguishedName([x509.NameAttribute(*pair) for pair in rdn]) for rdn in rdns]
    )
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
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
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
    return read_identity(der)


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
    assert matches_identity(identity, pattern)


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
    assert not matches_identity(identity, pattern)


def test_fingerprint_matches_as_openssl_and_people_write_it(identity):
    plain = identity.fingerprint
    pairs = ":".join(plain[i : i + 2] for i in range(0, 64, 2)).upper()
    for pattern in (plain, plain.upper(), pairs, f"sha256:{plain}", f"SHA256 Fingerprint={pairs}"):
        assert matches_identity(identity, pattern)
    assert not matches_identity(identity, plain[:-1])
    assert not matches_identity(identity, plain[:-1] + ("0" if plain[-1] != "0" else "1"))


def test_subject_may_be_written_as_openssl_once_did():
    identity = read_identity(make(((NameOID.COUNTRY_NAME, "BE"), (NameOID.COMMON_NAME, "localhost"))))
    assert matches_identity(identity, "/C=BE/CN=localhost")
    assert not matches_identity(identity, "/C=BE/CN=localhos")
    assert identity.names == ()


def test_a_network_among_the_names_is_no_address_and_hides_none():
    addresses = map(x509.IPAddress, (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_address("10.1.0.7")))
    identity = read_identity(make((X,), tuple(addresses)))
    found = {
        each: matches_identity(identity, each)
        for each in ("10.1.0.7", "10.0.0.0", "IP:10.0.0.0/8", "10.1.0.8")
    }
    assert [each for each, matched in found.items() if matched] == ["10.1.0.7"]


def test_fingerprint_of_a_subject_is_no_subject():
    """A holder who may choose a name cannot choose one that reads as another's fingerprint."""
    identity = read_identity(make(((NameOID.COMMON_NAME, "ab" * 32),), (x509.DNSName("ab" * 32),)))
    assert not matches_identity(identity, "ab" * 32)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        (x509.UniformResourceIdentifier("DNS:ct1.example.org"), "DNS:ct1.example.org"),
        (x509.UniformResourceIdentifier("ct1.example.org"), "ct1.example.org"),
        (x509.RFC822Name("ct1.example.org"), "ct1.example.org"),
        (x509.UniformResourceIdentifier("IP:10.0.0.1"), "IP:10.0.0.1"),
        (x509.UniformResourceIdentifier("email:a@b.c"), "email:a@b.c"),
        (x509.UniformResourceIdentifier("a@b.c"), "a@b.c"),
        (x509.RFC822Name("urn:oid:1.2.3"), "urn:oid:1.2.3"),
        (x509.RFC822Name("https://ct1"), "https://ct1"),
        (x509.DNSName("URI:https://ct1"), "URI:https://ct1"),
        (x509.DNSName("https://ct1"), "https://ct1"),
        (x509.UniformResourceIdentifier("CN=ct1,C=BE"), "CN=ct1,C=BE"),
        (x509.DNSName("C = BE, CN = ct1"), "C = BE, CN = ct1"),
        (x509.RFC822Name("/C=BE/CN=ct1"), "/C=BE/CN=ct1"),
    ],
)
def test_a_name_of_one_kind_is_none_of_another(name, pattern):
    assert not matches_identity(read_identity(make(((NameOID.COMMON_NAME, "x"),), (name,))), pattern)


BE, X = (NameOID.COUNTRY_NAME, "BE"), (NameOID.COMMON_NAME, "x")
WRITTEN = [
    (
        [BE, X, (NameOID.EMAIL_ADDRESS, "a@b.c")],
        ["emailAddress=a@b.c,CN=x,C=BE", "E=a@b.c, CN=x, C=BE", "1.2.840.113549.1.9.1=a@b.c,CN=x,C=BE"],
    ),
    ([BE, X, (NameOID.SERIAL_NUMBER, "123")], ["2.5.4.5=123,CN=x,C=BE", "SERIALNUMBER=123,CN=x,C=BE"]),
    ([BE, X, (NameOID.SURNAME, "s"), (NameOID.GIVEN_NAME, "g")], ["GN=g,SN=s,CN=x,C=BE"]),
    ([BE, [X, (NameOID.USER_ID, "u")]], ["UID=u+CN=x,C=BE", "C = BE, UID = u + CN = x", "/C=BE/UID=u+CN=x"]),
    (
        [(NameOID.ORGANIZATION_NAME, 'A, "B"+C/D'), X],
        ['CN=x,O="A, \\"B\\"+C/D"', 'CN=x;O=A\\, \\"B\\"\\+C/D'],
    ),
    ([(NameOID.ORGANIZATION_NAME, "a=b\\c;<d>"), X], []),
    (
        [BE, (NameOID.COMMON_NAME, "#1 ct ")],
        ["CN=\\#1 ct\\ ,C=BE", "C=BE,CN=\\#1 ct\\ ", "C=BE,CN=\\#1 ct\\20"],
    ),
    ([BE, (NameOID.COMMON_NAME, " ct  ")], ["C=BE,CN=\\ ct \\ "]),
    ([(NameOID.COMMON_NAME, "José\n"), BE], ["CN=José\\0a,C=BE"]),
    ([(NameOID.COMMON_NAME, "x" * 64), BE], []),
]


@pytest.mark.parametrize(("attributes", "more"), WRITTEN)
def test_a_subject_may_be_written_in_any_way_of_openssl(attributes, more):
    der = make(attributes)
    identity = read_identity(der)
    for options in ([], ["-nameopt", "RFC2253"], ["-nameopt", "oneline"], ["-nameopt", "compat"]):
        command = [require_program("openssl"), "x509", "-inform", "DER", "-noout", "-subject", *options]
        printed = subprocess.run(command, input=der, capture_output=True, check=True).stdout.decode()
        more = [*more, printed.removeprefix("subject=").removesuffix("\n")]
    other = read_identity(make([*attributes, (NameOID.LOCALITY_NAME, "l")]))
    for pattern in (identity.subject, *more):
        assert matches_identity(identity, pattern), pattern
        assert not matches_identity(other, pattern), pattern
        assert not explain_unmatchable(pattern), pattern


def test_a_value_between_slashes_is_no_attribute_of_its_own():
    one = read_identity(make([(NameOID.ORGANIZATION_NAME, "A/b=c"), X]))
    assert matches_identity(one, "/O=A/b=c/CN=x")
    assert matches_identity(one, "/O=A\\/b=c/CN=x")
    two = read_identity(make([(NameOID.ORGANIZATION_NAME, "A/CN=x")]))
    assert not matches_identity(two, "/O=A/CN=x")
    assert matches_identity(two, "/O=A\\/CN=x")


@pytest.mark.parametrize(
    ("attributes", "printed"),
    [
        ([(NameOID.ORGANIZATION_NAME, 'A, "B"+C/D'), X], 'O=A, "B"+C/D, CN=x'),
        ([(NameOID.ORGANIZATION_NAME, "a=b\\c;<d>"), X], "O=a=b\\\\c;<d>, CN=x"),
        ([BE, (NameOID.COMMON_NAME, "#1 ct ")], "C=BE, CN=#1 ct "),
        ([BE, (NameOID.COMMON_NAME, " ct  ")], "C=BE, CN= ct  "),
        ([BE, [X, (NameOID.USER_ID, "u")]], "C=BE, UID=u + CN=x"),
    ],
)
def test_a_subject_as_openssl_3_2_prints_it_without_escapes_is_read(attributes, printed):
    assert matches_identity(read_identity(make(attributes)), printed)
    assert not matches_identity(read_identity(make([*attributes, (NameOID.LOCALITY_NAME, "l")])), printed)


def test_a_comma_in_a_value_makes_no_attribute_of_a_quoted_or_escaped_name():
    value = read_identity(make([(NameOID.ORGANIZATION_NAME, "A, CN=x")]))
    assert not matches_identity(value, "O=A, CN=x")
    assert matches_identity(value, "O=A\\, CN\\=x")
    assert matches_identity(value, 'O="A, CN=x"')
    assert not matches_identity(
        read_identity(make([(NameOID.ORGANIZATION_NAME, '"A'), (NameOID.COMMON_NAME, 'x"')])), 'O="A, CN=x"'
    )


AUTHORITY = x509.BasicConstraints(ca=True, path_length=None)


def usage(key_cert_sign):
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign")
    more = dict.fromkeys((*others, "encipher_only", "decipher_only"), False)
    return x509.KeyUsage(digital_signature=True, key_cert_sign=key_cert_sign, **more)


@pytest.mark.parametrize(
    ("extensions", "authority"),
    [
        ((), False),
        ((AUTHORITY,), False),  # as of `openssl req -x509`
        ((usage(True),), False),
        ((AUTHORITY, usage(False)), False),
        ((x509.BasicConstraints(ca=False, path_length=None), usage(True)), False),
        ((AUTHORITY, usage(True)), True),
    ],
)
def test_an_authority_says_that_it_is_there_to_sign(extensions, authority):
    leaf, root = make(SUBJECT), make([BE], extensions=extensions)
    assert read_identity(leaf, [leaf, root]).has_trusted_names is authority
    assert read_identity(root, [root]).has_trusted_names


def test_what_cannot_be_read_vouches_for_nobody():
    assert not read_trust_anchor(b"nothing").is_authority
    assert not is_issued_by(read_identity(SOUND, [SOUND, b"nothing"]), "")
    assert not read_identity(SOUND).has_trusted_names


def test_issuer_is_named_by_the_trusted_certificate_and_shown_by_any_fingerprint():
    leaf, between, root = make(SUBJECT), make([BE, X]), make([BE])
    identity = read_identity(leaf, [leaf, between, root])
    assert is_issued_by(identity, "C=BE")
    assert not is_issued_by(identity, "CN=x,C=BE")
    assert not is_issued_by(identity, identity.issuer)
    fingerprints = [hashlib.sha256(each).hexdigest() for each in (leaf, between, root)]
    assert [is_issued_by(identity, each) for each in fingerprints] == [False, True, True]
    assert not is_issued_by(identity, "")


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_damaged_certificate_is_an_identity_or_a_peer_error(seed):
    damaged = bytearray(SOUND)
    pick = random.Random(seed)
    for _ in range(pick.randint(1, 4)):
        damaged[pick.randrange(len(damaged))] = pick.randrange(256)
    try:
        identity = read_identity(bytes(damaged))
    except PeerError:
        return
    assert len(identity.fingerprint) == 64
    assert isinstance(matches_identity(identity, "CN=a"), bool)


SOUND = make(SUBJECT, NAMES)


@settings(deadline=None)
@given(st.text(max_size=80))
def test_any_pattern_gives_an_answer(pattern):
    assert matches_identity(read_identity(SOUND), pattern) in {True, False}
    assert isinstance(explain_unmatchable(pattern), str)


OIDS = (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME, NameOID.USER_ID, NameOID.EMAIL_ADDRESS)
VALUE = st.text(
    st.one_of(st.sampled_from(' ,+="\\#;/<>\0CNO'), st.characters(codec="utf-8")), min_size=1, max_size=9
)
RDNS = st.lists(
    st.dictionaries(st.sampled_from(OIDS), VALUE, min_size=1, max_size=2).map(
        lambda rdn: x509.RelativeDistinguishedName([x509.NameAttribute(*pair) for pair in rdn.items()])
    ),
    min_size=1,
    max_size=3,
)


@given(RDNS, RDNS)
def test_a_subject_is_itself_whatever_is_in_it_and_no_other(one, other):
    texts = [x509.Name(rdns).rfc4514_string() for rdns in (one, other)]
    assert distinguished_names.is_same_name(texts[0], texts[0])
    assert distinguished_names.is_same_name(texts[0], texts[1]) is (one in (other, other[::-1]))
