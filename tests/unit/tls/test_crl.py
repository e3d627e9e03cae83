"""Revocation: whom a list keeps out, and what the policy says where there is none or an old one."""

import os
import re
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from ingest.checks.tls import check_validity_now, list_validities
from ingest.config.model import TLS, Config, ListenerSettings
from ingest.errors import ConfigError
from ingest.tls import revocation
from ingest.tls.contexts import build_client_context, build_server_context
from ingest.tls.keys import pairs
from tests.support.revoking import revocation_list, under
from tests.unit.tls.test_tls_contexts import Site, shake

NOW = datetime.now(UTC)
REVOKED, NO_LIST, BAD_SIGNATURE, OLD_LIST = 23, 3, 8, 12
"""OpenSSL's verify codes (x509_vfy.h)."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    site = Site(tmp_path_factory.mktemp("site"))
    site.other_ca = pairs.issue_authority("Other", key_type="ec")
    (site.folder / "other-ca.crt").write_bytes(site.other_ca.certificate_pem)
    site.scp = site.pair("localhost", pairs.issue_signed, site.ca)
    site.good = site.pair("good", pairs.issue_signed, site.ca)
    site.bad = site.pair("bad", pairs.issue_signed, site.ca)
    site.other = site.pair("other", pairs.issue_signed, site.other_ca)
    site.alone = site.pair("alone")
    trusted = [site.folder / "ca.crt", site.folder / "other-ca.crt", site.alone["certificate"]]
    site.trusted = site.bundle("trusted.crt", *trusted)
    bad = x509.load_pem_x509_certificate(site.bad["certificate"].read_bytes())
    site.current = revocation_list(site.ca, bad)
    site.old = revocation_list(site.ca, bad, next_update=NOW - timedelta(days=1))
    site.forged = revocation_list(site.ca, key=site.other_ca.private_key)
    for name in ("current", "old", "forged"):
        (site.folder / f"{name}.crl").write_bytes(getattr(site, name).public_bytes(Encoding.PEM))
    return site


def settings(site, pair, *lists, **changes):
    return TLS(**pair, trusted=(site.trusted,), crl=lists, **changes)


def verdict(site, pair, *lists, **changes):
    """The verify code with which a server with `lists` refuses a client; 0 where it lets it in."""
    server = build_server_context(settings(site, site.scp, *lists, **changes))
    return refusal(server, build_client_context(settings(site, pair)))


def refusal(server, client):
    try:
        shake(server, client)
    except ssl.SSLCertVerificationError as error:
        return error.verify_code
    return 0


@pytest.mark.parametrize(
    ("who", "lists", "policy", "code"),
    [
        ("good", ["current"], {}, 0),
        ("bad", ["current"], {}, REVOKED),
        ("bad", [], {}, 0),
        # a list of its issuer is missing
        ("other", ["current"], {}, NO_LIST),
        ("other", ["current"], {"crl_expired": "allow"}, NO_LIST),
        ("other", ["current"], {"crl_missing": "allow"}, 0),
        ("bad", ["current"], {"crl_missing": "allow"}, REVOKED),
        # past its nextUpdate
        ("good", ["old"], {}, OLD_LIST),
        ("good", ["old"], {"crl_missing": "allow"}, OLD_LIST),
        ("good", ["old"], {"crl_expired": "allow"}, 0),
        ("bad", ["old"], {"crl_expired": "allow"}, REVOKED),
        ("good", ["old", "current"], {}, 0),
        ("other", ["old"], {"crl_missing": "allow", "crl_expired": "allow"}, 0),
        ("bad", ["old"], {"crl_missing": "allow", "crl_expired": "allow"}, REVOKED),
        # a list of somebody else's making is none
        ("good", ["forged"], {"crl_missing": "allow", "crl_expired": "allow"}, BAD_SIGNATURE),
        # what stands in `trusted` itself needs no list
        ("alone", ["current"], {}, 0),
    ],
)
def test_lists_and_policy_decide_who_is_let_in(site, who, lists, policy, code):
    files = [site.folder / f"{name}.crl" for name in lists]
    assert verdict(site, getattr(site, who), *files, **policy) == code


@pytest.mark.parametrize("rule", ["required", "optional"])
def test_lists_change_nothing_about_who_must_present_a_certificate(site, rule):
    server = build_server_context(
        settings(site, site.scp, site.folder / "current.crl", peer_certificate=rule)
    )
    if rule == "optional":
        shake(server, build_client_context(settings(site, {})))
    else:
        with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
            shake(server, build_client_context(settings(site, {})))


def test_client_refuses_a_revoked_server(site):
    client = build_client_context(settings(site, site.good, site.folder / "current.crl"))
    shake(build_server_context(settings(site, site.scp)), client)
    with pytest.raises(ssl.SSLError):
        shake(build_server_context(settings(site, site.bad)), client)


@pytest.mark.parametrize(
    ("roots", "policy", "code"),
    [
        ("naming it", {}, REVOKED),
        ("empty", {}, 0),
        ("none", {}, NO_LIST),
        ("none", {"crl_missing": "allow"}, 0),
    ],
)
def test_an_authority_in_between_is_looked_up_too(site, tmp_path, roots, policy, code):
    root, middle = (
        pairs.issue_authority("Root", key_type="ec"),
        pairs.issue_authority("Middle", key_type="ec"),
    )
    between = under(middle, root).certificate
    leaf = pairs.issue_signed("leaf", middle, key_type="ec")
    certificate, key = pairs.write_pair(leaf, tmp_path / "leaf")
    certificate.write_bytes(leaf.certificate_pem + between.public_bytes(Encoding.PEM))
    (tmp_path / "root.crt").write_bytes(under(root, root).certificate_pem)
    lists = [revocation_list(middle)]
    if roots != "none":
        lists.append(revocation_list(root, *[between] * (roots == "naming it")))
    (tmp_path / "lists").write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in lists))
    site_of_three = TLS(**site.scp, trusted=(tmp_path / "root.crt",), crl=(tmp_path / "lists",), **policy)

    client = build_client_context(settings(site, {"certificate": certificate, "private_key": key}))
    assert refusal(build_server_context(site_of_three), client) == code


def test_a_list_fetched_before_its_time_hinders_no_reload(site, tmp_path):
    early = revocation_list(
        site.ca, start=NOW + timedelta(days=3), next_update=NOW + timedelta(days=30)
    ).public_bytes(Encoding.PEM)
    delta = revocation_list(
        site.ca, next_update=NOW + timedelta(days=20), extensions=[x509.DeltaCRLIndicator(1)]
    )
    (tmp_path / "lists").write_bytes(
        early + site.current.public_bytes(Encoding.PEM) + delta.public_bytes(Encoding.PEM)
    )
    tls = {"node": settings(site, site.scp, tmp_path / "lists")}
    config = Config(tls=tls, listeners=(ListenerSettings(port=0, tls="node"),))
    (term,) = (term for term in list_validities(config, NOW) if "crl" in term.key)
    assert term.digest == site.current.fingerprint(hashes.SHA256()).hex()


def test_every_refusal_for_want_of_a_list_is_in_the_documentation():
    text = (Path(__file__).parents[3] / "docs" / "reference" / "tls.md").read_text()
    section = text.partition("## Revocation")[2].partition("\n## ")[0]
    codes = {int(code) for code in re.findall(r"\| (\d+), [^|]+\|$", section, re.MULTILINE)}
    assert codes == {*revocation.REMEDIES, REVOKED}


def test_lists_are_found_in_any_form_under_any_name(site, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "README").write_text("not a list")
    (tmp_path / "cert.der").write_bytes(site.ca.certificate.public_bytes(Encoding.DER))
    (tmp_path / "a.anything").write_bytes(site.current.public_bytes(Encoding.DER))
    other = revocation_list(site.other_ca)
    (tmp_path / "b").write_bytes(b"# R\xf6ntgen\r\n" + other.public_bytes(Encoding.PEM))
    both = tmp_path / "both.pem"
    both.write_bytes(site.current.public_bytes(Encoding.PEM) + other.public_bytes(Encoding.PEM))

    assert [each for _, each in revocation.read_lists(tmp_path)] == [site.current, other, site.current, other]
    assert verdict(site, site.bad, tmp_path) == REVOKED
    assert verdict(site, site.other, tmp_path) == 0
    assert verdict(site, site.bad, tmp_path / "a.anything") == REVOKED


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"hello", "holds no CRL"),
        (b"\x30\x82nonsense", "cannot be read"),
        (b"-----BEGIN X509 CRL-----\nMIIB\n-----END X509 CRL-----\n", "cannot be read"),
        (None, "No such file"),
    ],
)
def test_what_is_no_list_is_named_with_its_remedy(site, tmp_path, content, words):
    path = tmp_path / "a.crl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        build_server_context(settings(site, site.scp, path))
    (line,) = caught.value.faults
    assert line.startswith(f"{path}: ")
    assert words in line
    assert "; " in line


def test_a_list_that_is_due_is_said_at_every_start(site):
    (fault,) = check_validity_now("tls.node", settings(site, site.scp, site.folder / "old.crl"), NOW)
    assert (fault.key, fault.is_note) == ("tls.node.crl[0]", True)
    assert "CN=Site" in fault.cause
    assert not list(
        check_validity_now("tls.node", settings(site, site.scp, site.folder / "current.crl"), NOW)
    )


def test_no_descriptor_is_left_of_what_was_loaded(site):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        build_server_context(settings(site, site.scp, site.folder / "current.crl"))
    assert len(os.listdir("/proc/self/fd")) == before
