"""Revocation of what stands in `trusted`, where OpenSSL looks up nothing; lists that can be of no use."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ingest.checks.tls import check_validity_now
from ingest.config.model import TLS
from ingest.ext.tls_context import TLS_1_2, TLS_1_3
from ingest.tls import revocation
from ingest.tls.contexts import build_client_context, build_server_context
from ingest.tls.keys import pairs
from tests.support.revoking import UMLAUT, point, revocation_list, under, unreadable
from tests.unit.tls.test_crl import refusal

NOW = datetime.now(UTC)
NO_LIST, EARLY_LIST, UNKNOWN_CA, REVOKED = 3, 11, 20, 23
"""OpenSSL's verify codes (x509_vfy.h)."""


class Chain:
    """A root, an authority under it, one more under that, a peer of each, and a node."""

    def __init__(self, folder):
        self.folder = folder
        self.node = pairs.issue_self_signed("node", key_type="ec")
        certificate, key = pairs.write_pair(self.node, folder / "node")
        self.scp = {"certificate": certificate, "private_key": key}
        root = pairs.issue_authority("Root", key_type="ec")
        self.root = under(root, root)
        self.middle = under(pairs.issue_authority("Middle", key_type="ec"), self.root)
        self.low = under(pairs.issue_authority("Low", key_type="ec"), self.middle)
        self.peers = {}
        for name, *above in (("root", self.root), ("middle", self.middle), ("low", self.low, self.middle)):
            self.peers[name] = pairs.issue_signed(f"of-{name}", above[0], key_type="ec")
            pairs.write_pair(self.peers[name], folder / f"of-{name}")
            chain = (self.peers[name], *above)
            (folder / f"of-{name}.chain").write_bytes(b"".join(each.certificate_pem for each in chain))

    def caller(self, name, ending="chain"):
        """The context of a peer, which shows all of its chain but the root, or with "crt" itself alone."""
        pair = self.folder / f"of-{name}.{ending}", self.folder / f"of-{name}.key"
        return build_client_context(
            TLS(certificate=pair[0], private_key=pair[1], trusted=(self.scp["certificate"],))
        )

    def named(self, name):
        return self.peers[name.removeprefix("of-")] if name.startswith("of-") else getattr(self, name)

    def trusted(self, path, names):
        path.write_bytes(b"".join(self.named(name).certificate_pem for name in names.split()))
        return path

    def lists(self, path, revoked, **options):
        """Of each authority one, with an authorityKeyIdentifier where `options` has nothing else."""
        found = [
            revocation_list(
                issuer,
                *(self.named(name).certificate for name in revoked.split()),
                **{"extensions": [aki(issuer)], **options},
            )
            for issuer in (self.root, self.middle, self.low)
        ]
        path.write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in found))
        return path


def aki(issuer):
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.certificate.public_key())


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    return Chain(tmp_path_factory.mktemp("chain"))


@pytest.fixture
def trusting(chain, tmp_path):
    """A section of a node: what it trusts, who is revoked, and other options of the lists."""

    def make(trusted, revoked="", policy=(), **options):
        files = (chain.trusted(tmp_path / "trusted", trusted),)
        return TLS(
            **chain.scp,
            trusted=files,
            crl=(chain.lists(tmp_path / "lists", revoked, **options),),
            **dict(policy),
        )

    return make


@pytest.mark.parametrize(
    ("trusted", "revoked", "who", "ending", "code"),
    [
        ("root middle low", "", "low", "chain", 0),
        ("root middle low", "middle", "root", "chain", 0),
        ("root middle", "middle", "middle", "chain", REVOKED),
        ("middle root", "middle", "middle", "chain", REVOKED),
        ("root middle", "middle", "middle", "crt", UNKNOWN_CA),
        ("middle of-root", "middle", "middle", "chain", REVOKED),
        # and who is under an authority that is revoked
        ("root middle low", "middle", "low", "chain", REVOKED),
        ("root middle low", "low", "low", "chain", REVOKED),
        ("root middle low", "low", "middle", "chain", 0),
        # a peer's own certificate
        ("of-root middle", "of-root", "root", "crt", REVOKED),
        ("of-root root", "of-root", "root", "crt", REVOKED),
        ("of-root middle", "", "root", "crt", 0),
        ("of-root middle", "middle", "root", "crt", 0),
    ],
)
@pytest.mark.parametrize("policy", [{}, {"crl_missing": "allow", "crl_expired": "allow"}])
@pytest.mark.parametrize("extended", [True, False])
def test_what_its_issuer_revoked_is_not_trusted(
    chain, trusting, trusted, revoked, who, ending, code, policy, extended
):
    options = {} if extended else {"extensions": []}
    server = build_server_context(trusting(trusted, revoked, policy, **options))
    assert refusal(server, chain.caller(who, ending)) == code


def test_only_a_list_that_a_known_issuer_signed_takes_trust_away(chain, trusting):
    forged = {"key": chain.low.private_key}
    assert not revocation.find_revoked_trusted(trusting("root middle", "middle", **forged))
    ((out, why),) = revocation.find_revoked_trusted(trusting("middle of-root", "middle", **forged))
    assert out.certificate == chain.middle.certificate
    assert "lists names it" in why


def test_names_of_issuers_are_compared_as_openssl_does(chain, trusting):
    tls = trusting("middle")
    shouting = under(pairs.issue_authority("ROOT", key_type="ec"), chain.root)
    (found,) = tls.crl
    found.write_bytes(revocation_list(shouting, chain.middle.certificate).public_bytes(Encoding.PEM))
    assert len(revocation.find_revoked_trusted(tls)) == 1
    assert refusal(build_server_context(tls), chain.caller("middle")) == REVOKED


@pytest.mark.parametrize(
    ("trusted", "note"),
    [("root middle", True), ("root middle low", True), ("middle", False), ("middle low", False)],
)
def test_what_is_not_trusted_any_more_is_said_and_a_fault_where_nothing_is_left(trusting, trusted, note):
    faults = list(check_validity_now("tls.node", trusting(trusted, "middle"), NOW))
    assert len(faults) == len(trusted.replace("root", "").split())
    assert {(fault.key, fault.is_note) for fault in faults} == {("tls.node.trusted[0]", note)}
    assert "CN=Middle is not trusted: the list in" in faults[0].cause
    assert not list(check_validity_now("tls.node", trusting(trusted), NOW))


@pytest.mark.parametrize(
    ("trusted", "who", "options"),
    [
        ("root", "root", {"extensions": [point(only_contains_user_certs=True)]}),
        # no authorityKeyIdentifier: it may be anybody's of that name
        ("of-root", "root", {"extensions": []}),
        ("middle", "middle", {"extensions": [], "next_update": NOW - timedelta(days=1)}),
        ("middle", "middle", {"extensions": [], "start": NOW + timedelta(days=1)}),
        ("middle", "middle", {"extensions": [point(only_contains_attribute_certs=True)]}),
        ("middle", "middle", {"extensions": [x509.FreshestCRL([])]}),
        ("middle", "middle", {"extensions": [point(only_contains_user_certs=True)]}),
    ],
)
def test_what_is_trusted_needs_no_list_that_can_be_used(chain, tmp_path, trusting, trusted, who, options):
    tls = trusting(trusted, **options)
    if trusted == "middle":  # its peers need one
        sound = chain.lists(tmp_path / "sound", "")
        bad = revocation_list(chain.root, **options).public_bytes(Encoding.PEM)
        sound.write_bytes(revocation_list(chain.middle).public_bytes(Encoding.PEM) + bad)
        tls = TLS(**{**dict(tls), "crl": (sound,)})
    assert refusal(build_server_context(tls), chain.caller(who)) == 0


@pytest.mark.parametrize(
    ("trusted", "revoked", "who", "code"),
    [
        ("of-low", "", "low", 0),
        ("of-root", "", "root", 0),
        ("of-low", "middle", "low", REVOKED),
        ("of-low", "of-low", "low", REVOKED),
        ("of-low root", "of-low", "low", REVOKED),
        # who is not trusted by itself needs the lists of all above it
        ("root", "", "low", NO_LIST),
        ("root middle", "", "low", NO_LIST),
    ],
)
@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
@pytest.mark.parametrize("listed", ["root", "root middle", "root low"])
def test_what_was_sent_behind_a_trusted_certificate_needs_no_list(
    chain, tmp_path, trusting, trusted, revoked, who, code, version, listed
):
    tls = trusting(trusted)
    lists = [
        revocation_list(chain.named(name), *(chain.named(each).certificate for each in revoked.split()))
        for name in ("root middle low" if revoked else listed).split()
    ]
    (path,) = tls.crl
    path.write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in lists))
    client = chain.caller(who)
    client.set_versions(TLS_1_2, version)
    assert refusal(build_server_context(tls), client) == code


def test_names_that_only_openssl_reads_hinder_nothing(chain, tmp_path):
    own = pairs.issue_authority(UMLAUT)
    authority = pairs.Pair(unreadable(own.certificate, own.private_key), own.private_key)
    peers = {}
    for name in ("good", "bad"):
        pair = pairs.issue_signed(name, own, key_type="ec")
        peers[name] = pairs.Pair(unreadable(pair.certificate, own.private_key), pair.private_key)
        pairs.write_pair(peers[name], tmp_path / name)
    found = unreadable(revocation_list(own, peers["bad"].certificate), own.private_key)
    with pytest.raises(ValueError, match="pars"):
        print(found.issuer, authority.certificate.subject)
    (tmp_path / "trusted").write_bytes(authority.certificate_pem + chain.root.certificate_pem)
    lists = (chain.lists(tmp_path / "lists", ""), tmp_path / "crl")
    lists[1].mkdir()
    (lists[1] / "a").write_bytes(found.public_bytes(Encoding.DER))
    tls = TLS(**chain.scp, trusted=(tmp_path / "trusted",), crl=lists)
    codes = {
        name: refusal(
            build_server_context(tls),
            build_client_context(
                TLS(
                    certificate=tmp_path / f"{name}.crt",
                    private_key=tmp_path / f"{name}.key",
                    trusted=(chain.scp["certificate"],),
                )
            ),
        )
        for name in peers
    }
    assert codes == {"good": 0, "bad": REVOKED}
    build_server_context(tls.model_copy(update={"crl": lists[:1]}))
    (note,) = check_validity_now("tls.node", tls, NOW)
    assert (note.key, note.is_note) == ("tls.node.crl[1]", True)
    assert "cannot be read is used for peers" in note.cause


DELTA, INDIRECT = x509.DeltaCRLIndicator(1), point(indirect_crl=True)
SOME = point(only_some_reasons=frozenset([x509.ReasonFlags.key_compromise]))


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"extensions": [DELTA]}, NO_LIST, "deltaCRLIndicator"),
        ({"extensions": [INDIRECT]}, NO_LIST, "indirectCRL"),
        ({"extensions": [SOME]}, NO_LIST, "onlySomeReasons"),
        ({"start": NOW + timedelta(days=1)}, EARLY_LIST, "is not valid before"),
    ],
)
def test_a_list_that_is_not_used_is_said_at_every_start(chain, trusting, options, code, words):
    tls = trusting("root", **options)
    for note in (notes := list(check_validity_now("tls.node", tls, NOW))):
        assert (note.key, note.is_note) == ("tls.node.crl[0]", True)
        assert words in note.cause
    assert len(notes) == 3
    assert refusal(build_server_context(tls), chain.caller("root")) == code
    assert code in revocation.REMEDIES
