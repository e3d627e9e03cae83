"""`ingest certs`: what it makes, converts and tells, and what never leaves its place."""

import json
import os
import stat
import threading
from datetime import UTC, datetime, timedelta
from glob import glob

import pytest
from click.testing import CliRunner
from cryptography import x509

from ingest.cli import main
from ingest.config.model import TLS
from ingest.errors import IngestError
from ingest.tls.contexts import build_client_context, build_server_context
from ingest.tls.keys import files, formats, pairs
from ingest.tls.keys.issuance import KEY_TYPES
from tests.support.keymaterial import PASSWORD, Keys, run
from tests.support.peers import require_program
from tests.unit.tls.test_tls_contexts import shake


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    require_program("openssl")
    return Keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def certs():
    """Runs `ingest certs …`, which has to end with this code."""

    def run(*arguments, code=0):
        result = CliRunner().invoke(main, ["certs", *map(str, arguments)])
        assert result.exit_code == code, result.output
        assert PASSWORD not in result.output
        return result

    return run


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("ca", [True, False])
@pytest.mark.parametrize("kind", KEY_TYPES)
def test_new_pair_of_each_kind_shakes_hands_in_both_roles(certs, tmp_path, kind, ca):
    trusted = tmp_path / "trusted.crt"
    options = ["--ca", tmp_path / "site"] if ca else []
    certs("new", tmp_path / "n", "--name", "localhost", "--key-type", kind, "--trust", trusted, *options)
    tls = TLS(certificate=tmp_path / "n.crt", private_key=tmp_path / "n.key", trusted=(trusted,))
    shake(
        build_server_context(tls),
        build_client_context(tls.model_copy(update={"check_server_name": True})),
        "localhost",
    )


def test_authority_with_ed25519_signs(tmp_path):
    site = pairs.issue_authority("Site", key_type="ed25519")
    pairs.write_pair(site, tmp_path / "site")
    pair = pairs.issue_signed("n", pairs.read_pair(tmp_path / "site"), key_type="ed25519")
    pair.certificate.verify_directly_issued_by(site.certificate)


def test_key_is_never_readable_by_others_nor_there_in_part(tmp_path, monkeypatch):
    """Looked at when the file has just been made, and when all is in it."""
    made, seen = [], []
    fchmod, fsync = os.fchmod, os.fsync

    def look(descriptor):
        there = [path for path in tmp_path.iterdir() if b"PRIVATE KEY" in path.read_bytes()]
        seen.extend((path.name, mode(path)) for path in there)
        return fsync(descriptor)

    def note(descriptor, bits):
        made.append((stat.S_IMODE(os.fstat(descriptor).st_mode), bits))
        return fchmod(descriptor, bits)

    monkeypatch.setattr("ingest.tls.keys.files.os.fsync", look)
    monkeypatch.setattr("ingest.tls.keys.files.os.fchmod", note)
    before = os.umask(0)
    try:
        pairs.create_pair(tmp_path / "n", "n", key_type="ec")
        pairs.create_pair(tmp_path / "n", "n", key_type="ec", force=True)
    finally:
        os.umask(before)
    assert made == [(0o644, 0o644), (0o600, 0o600)] * 2
    assert {bits for _, bits in seen} == {0o600}
    assert seen[0][0] != "n.key"  # whole before it has its name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["n.crt", "n.key"]


def test_what_somebody_else_has_just_made_is_not_replaced(tmp_path):
    """The look before writing cannot see it."""
    path = tmp_path / "n.key"
    path.write_bytes(b"precious")
    with pytest.raises(IngestError, match="File exists"):
        files.write_file(path, b"ours", 0o600, force=False)
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


def test_of_two_who_make_the_same_pair_one_is_refused(tmp_path):
    outcomes = []

    def make():
        try:
            outcomes.append(pairs.write_pair(pairs.issue_self_signed("n", key_type="ec"), tmp_path / "n"))
        except IngestError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sum(not isinstance(outcome, str) for outcome in outcomes) == 1
    pair = pairs.read_pair(tmp_path / "n")
    assert pair.certificate.public_key() == pair.private_key.public_key()


def test_trust_takes_every_form_once_and_no_key(certs, keys, tmp_path):
    store = keys.pkcs12("store.p12", "ec")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").write_bytes(keys["root.crt"].read_bytes())
    (tmp_path / "folder" / "x.key").write_bytes(keys["root.key"].read_bytes())
    out, password = tmp_path / "new" / "bundle.pem", ["--password-file", keys["password"]]
    said = certs("trust", out, keys["rsa.chain"], store, tmp_path / "folder", *password).output
    assert said.splitlines()[:-1] == [f"added CN={name}" for name in ("rsa", "authority", "ec", "root")]
    assert said.endswith("4 new\n")
    assert "PRIVATE" not in out.read_text()
    assert len(x509.load_pem_x509_certificates(out.read_bytes())) == 4
    before = out.read_bytes()
    assert certs("trust", out, store, keys["root.crt"], *password).output == f"{out}: 0 new\n"
    assert out.read_bytes() == before


def test_trust_keeps_the_rest_of_a_bundle_its_mode_and_the_file_behind_a_link(certs, keys, tmp_path):
    real, link = tmp_path / "real.pem", tmp_path / "link.pem"
    real.write_bytes(b"# ours, do not touch\n" + keys["root.crt"].read_bytes().rstrip())
    real.chmod(0o640)
    link.symlink_to(real)
    certs("trust", link, keys["ec.crt"])
    assert link.is_symlink()
    assert mode(real) == 0o640
    assert real.read_bytes().startswith(b"# ours, do not touch\n")
    assert len(x509.load_pem_x509_certificates(real.read_bytes())) == 2


def test_bundle_keeps_its_owner_and_group(certs, keys, tmp_path, monkeypatch):
    bundle, given = tmp_path / "bundle.pem", []
    bundle.write_bytes(keys["root.crt"].read_bytes())
    if os.geteuid() == 0:
        os.chown(bundle, 4242, 4243)
    else:
        monkeypatch.setattr("ingest.tls.keys.files.os.fchown", lambda _, *owner: given.append(owner))
    before = bundle.stat()
    certs("trust", bundle, keys["ec.crt"])
    after = bundle.stat()
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    assert given == ([] if os.geteuid() == 0 else [(before.st_uid, before.st_gid)])
    assert len(x509.load_pem_x509_certificates(bundle.read_bytes())) == 2


def test_owner_that_we_may_not_give_is_no_fault(certs, keys, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr("ingest.tls.keys.files.os.fchown", refuse)
    (tmp_path / "bundle.pem").write_bytes(keys["root.crt"].read_bytes())
    certs("trust", tmp_path / "bundle.pem", keys["ec.crt"])


def test_bundle_may_hold_openssl_s_own_form_and_be_no_der(certs, keys, tmp_path):
    trusted, der = tmp_path / "trusted.pem", tmp_path / "der.crt"
    run("openssl", "x509", "-in", keys["root.crt"], "-trustout", "-addtrust", "serverAuth", "-out", trusted)
    before = trusted.read_bytes()
    said = certs("trust", trusted, keys["root.crt"], keys["ec.crt"]).output
    assert said == f"added CN=ec\n{trusted}: 1 new\n"
    assert trusted.read_bytes().startswith(before)
    run("openssl", "x509", "-in", keys["root.crt"], "-outform", "DER", "-out", der)
    before = der.read_bytes()
    said = certs("trust", der, keys["ec.crt"], code=1).stderr
    assert f"{der}: is DER, and is not a bundle" in said
    assert "name a new file" in said
    assert der.read_bytes() == before


def test_pkcs7_is_taken_apart(certs, keys, tmp_path):
    for form in ("PEM", "DER"):
        path = tmp_path / f"{form}.p7b"
        run(
            "openssl", "crl2pkcs7", "-nocrl", "-certfile", keys["authority.crt"],
            "-certfile", keys["rsa.crt"], "-outform", form, "-out", path,
        )  # fmt: skip
        (told,) = inspected(certs, path)
        assert told["form"] == "PKCS#7"
        assert [each["subject"] for each in told["certificates"]] == ["CN=rsa", "CN=authority"]
        assert "2 new" in certs("trust", tmp_path / form, path).output
        password = ["--password-file", keys["password"]]
        certs("p12", "make", tmp_path / f"{form}.p12", path, keys["rsa.key"], *password)
        held = formats.read_container(tmp_path / f"{form}.p12", keys["password"])
        assert [x509.load_pem_x509_certificate(text.encode()) for text in held.certificates] == (
            x509.load_pem_x509_certificates(keys["rsa.chain"].read_bytes())
        )


MISTAKES = {
    "pair in a file": "new {file}/a --name a",
    "pair with a long name": "new {folder}/{long} --name a",
    "pair without a name": "new . --name a",
    "pair at the root": "new / --name a",
    "pair above": "new .. --name a --force",
    "authority in a file": "new {folder}/a --name a --ca {file}/ca",
    "authority with a long name": "new {folder}/a --name a --ca {folder}/{long}",
    "authority's password without authority": "new {folder}/a --name a --ca-password-file {latin}",
    "request in a file": "csr {file}/a --name a",
    "request for no key": "csr {folder}/a --name a --key {folder}/none",
    "request for what is no key": "csr {folder}/a --name a --key {file}",
    "key store in a file": "p12 make {file}/o {crt} {key} --password-file {password}",
    "key store at the root": "p12 make / {crt} {key} --password-file {password} --force",
    "key store, password not UTF-8": "p12 make {folder}/o {crt} {key} --password-file {latin}",
    "trust store, password not UTF-8": "p12 trust {folder}/o {crt} --password-file {latin}",
    "trusted in a file": "trust {folder}/o {file}/r.crt",
    "trusted with a long name": "trust {folder}/o {folder}/{long}",
    "bundle in a file": "trust {file}/o {crt}",
    "bundle with a long name": "trust {folder}/{long} {crt}",
    "inspected with a long name": "inspect {folder}/{long}",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_told_and_nothing_written(certs, keys, tmp_path, mistake):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "latin").write_bytes("geheim ä".encode("latin-1"))
    names = {"folder": tmp_path, "file": tmp_path / "file", "latin": tmp_path / "latin"}
    names |= {"crt": keys["rsa.crt"], "key": keys["rsa.key"], "password": keys["password"]}
    arguments = (part.format(long="n" * 300, **names) for part in MISTAKES[mistake].split())
    result = CliRunner().invoke(main, ["certs", *arguments])
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code in (1, 2)
    assert result.stderr.lower().startswith(("error ", "usage"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "latin"]


@pytest.mark.timeout(20)
def test_pipe_of_the_shell_is_read_once_and_one_with_a_name_not_at_all(certs, keys, tmp_path):
    def piped(content):
        here, there = os.pipe()
        os.write(there, content)
        os.close(there)
        return here

    stores = [keys.pkcs12(f"{kind}.p12", kind) for kind in ("rsa", "ec")]
    descriptor = piped(f"{PASSWORD}\n".encode())
    told = inspected(certs, *stores, "--password-file", f"/dev/fd/{descriptor}")
    assert [each["form"] for each in told] == ["PKCS#12", "PKCS#12"]
    certificate = piped(keys["rsa.crt"].read_bytes())
    assert "CN=rsa" in certs("inspect", f"/dev/fd/{certificate}").output
    for each in (descriptor, certificate):
        os.close(each)
    os.mkfifo(tmp_path / "pipe")
    said = certs("inspect", *stores, "--password-file", tmp_path / "pipe", code=1).stderr
    assert "Is a pipe or a device" in said
    assert not [link for link in map(os.readlink, opened()) if link.startswith("/memfd:pem")]


def opened():
    return [path for path in glob("/proc/self/fd/*") if os.path.lexists(path)]


def test_request_has_the_names_and_keeps_the_key(certs, keys, tmp_path):
    prefix, password = tmp_path / "n", ["--password-file", keys["password"]]
    said = certs("csr", prefix, "--name", "a.example", "--san", "10.0.0.1", "--key-type", "ec", *password)
    assert said.output.splitlines() == [f"{prefix}.key", f"{prefix}.csr"]
    assert mode(tmp_path / "n.key") == 0o600
    key = (tmp_path / "n.key").read_bytes()
    assert b"ENCRYPTED" in key
    request = x509.load_pem_x509_csr((tmp_path / "n.csr").read_bytes())
    assert request.is_signature_valid
    names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(each.value) for each in names] == ["a.example", "10.0.0.1"]
    assert "--force" in certs("csr", prefix, "--name", "b.example", *password, code=1).stderr
    again = ["csr", prefix, "--name", "b.example", "--force"]
    assert "is encrypted" in certs(*again, code=1).stderr
    assert certs(*again, *password).output == f"{prefix}.csr\n"
    assert (tmp_path / "n.key").read_bytes() == key
    public = request.public_key()
    certs("csr", tmp_path / "m", "--name", "c", "--key", tmp_path / "n.key", *password)
    assert not (tmp_path / "m.key").exists()
    assert x509.load_pem_x509_csr((tmp_path / "m.csr").read_bytes()).public_key() == public


def test_subject_of_several_lines_adds_nothing_else_to_a_bundle(certs, keys, tmp_path):
    root = keys["root.crt"].read_text()
    body = "".join(root.splitlines()[1:-1])[:40]
    pair = pairs.issue_self_signed(f"x\n{body}", key_type="ec")
    path, _ = pairs.write_pair(pair, tmp_path / "n")
    certs("trust", tmp_path / "bundle.pem", path)
    lines = (tmp_path / "bundle.pem").read_text().splitlines()
    assert lines[0].startswith("# CN=x MII")
    assert lines[1].startswith("-----BEGIN")


def test_trust_adds_nothing_when_one_file_cannot_be_read(certs, keys, tmp_path):
    out = tmp_path / "bundle.pem"
    for bad in (keys["rsa.key"], tmp_path / "none", keys.pkcs12("store.p12", "ec")):
        assert str(bad) in certs("trust", out, keys["root.crt"], bad, code=1).stderr
        assert not out.exists()


def test_key_store_and_back_is_the_same_pair(certs, keys, tmp_path):
    password = ["--password-file", keys["password"]]
    for kind in ("rsa", "ec", "ed25519"):
        store = tmp_path / f"{kind}.p12"
        certs("p12", "make", store, keys[f"{kind}.chain"], keys[f"{kind}.key"], *password)
        assert mode(store) == 0o600
        certs("p12", "split", store, tmp_path / kind, *password)
        assert mode(tmp_path / f"{kind}.key") == 0o600
        chain = x509.load_pem_x509_certificates((tmp_path / f"{kind}.crt").read_bytes())
        assert chain == x509.load_pem_x509_certificates(keys[f"{kind}.chain"].read_bytes())
        tls = TLS(
            certificate=tmp_path / f"{kind}.crt",
            private_key=tmp_path / f"{kind}.key",
            trusted=(keys["root.crt"],),
        )
        shake(build_server_context(tls), build_client_context(tls))


def test_key_passwords_go_in_and_out_of_a_store(certs, keys, tmp_path):
    other, password = tmp_path / "other", ["--password-file", keys["password"]]
    other.write_text("anders\n")
    certs("new", tmp_path / "n", "--name", "n", "--key-type", "ec", "--password-file", other)
    store = tmp_path / "n.p12"
    arguments = ["p12", "make", store, tmp_path / "n.crt", tmp_path / "n.key", *password]
    assert "is encrypted" in certs(*arguments, code=1).stderr
    wrong = certs(*arguments, "--key-password-file", keys["wrong"], code=1).stderr
    assert "correct the password" in wrong
    assert "falsch" not in wrong
    assert not store.exists()
    certs(*arguments, "--key-password-file", other)
    certs("p12", "split", store, tmp_path / "back", *password, "--key-password-file", other)
    assert b"ENCRYPTED" in (tmp_path / "back.key").read_bytes()
    tls = TLS(
        certificate=tmp_path / "back.crt",
        private_key=tmp_path / "back.key",
        password_file=other,
        trusted=(tmp_path / "n.crt",),
    )
    shake(build_server_context(tls), build_client_context(tls))


def test_trust_store_has_no_key_and_an_alias_for_each(certs, keys, tmp_path):
    out = tmp_path / "trust.p12"
    again = pairs.issue_self_signed("RSA", key_type="ec")  # Java knows no capitals in aliases
    pairs.write_pair(again, tmp_path / "again")
    (tmp_path / "joined.pem").write_bytes(keys["rsa.key"].read_bytes() + keys["rsa.crt"].read_bytes())
    password = ["--password-file", keys["password"]]
    said = certs(
        "p12", "trust", out, tmp_path / "joined.pem", tmp_path / "again.crt", keys["rsa.crt"], *password
    )
    assert said.output.splitlines() == ["trusted rsa", "trusted rsa-2", str(out)]
    held = formats.read_container(out, keys["password"])
    assert (held.keys, held.certificate_aliases) == ((), ("rsa", "rsa-2"))
    assert "trust store" in certs("p12", "split", out, tmp_path / "x", *password, code=1).stderr


def test_what_is_there_is_kept_unless_forced(certs, keys, tmp_path):
    out, password = tmp_path / "out", ["--password-file", keys["password"]]
    store = keys.pkcs12("store.p12", "ec")
    (tmp_path / "out.key").write_text("precious")
    out.write_text("precious")
    for arguments in (
        ["p12", "make", out, keys["rsa.crt"], keys["rsa.key"]],
        ["p12", "trust", out, keys["rsa.crt"]],
        ["p12", "split", store, out],
    ):
        assert "--force" in certs(*arguments, *password, code=1).stderr
        assert out.read_text() == (tmp_path / "out.key").read_text() == "precious"
    for arguments in (
        ["p12", "make", out, keys["rsa.crt"], keys["rsa.key"]],
        ["p12", "trust", out, keys["rsa.crt"]],
        ["p12", "split", store, out],
    ):
        certs(*arguments, *password, "--force")
    assert mode(tmp_path / "out.key") == 0o600


def test_pair_that_does_not_fit_becomes_no_store(certs, keys, tmp_path):
    arguments = ["p12", "make", tmp_path / "x.p12", keys["rsa.crt"], keys["ec.key"]]
    said = certs(*arguments, "--password-file", keys["password"], code=1).stderr
    assert str(keys["rsa.crt"]) in said
    assert str(keys["ec.key"]) in said
    assert not (tmp_path / "x.p12").exists()


def inspected(certs, *arguments, code=0):
    return json.loads(certs("inspect", "--json", *arguments, code=code).stdout)


def test_inspect_tells_all_of_a_certificate(certs, tmp_path):
    pair = pairs.issue_self_signed("ct1.example", days=10, key_type="ec")
    path, key = pairs.write_pair(pair, tmp_path / "n")
    (told, other) = inspected(certs, path, key)
    (certificate,) = told["certificates"]
    assert certificate["subject"] == certificate["issuer"] == "CN=ct1.example"
    assert certificate["self_signed"] is True
    assert certificate["names"] == ["DNS:ct1.example"]
    assert certificate["key"] == "EC secp256r1"
    assert certificate["usages"] == ["serverAuth", "clientAuth"]
    assert certificate["authority"] is False
    assert certificate["days_left"] == 10.0
    assert datetime.fromisoformat(certificate["not_after"]) == pair.certificate.not_valid_after_utc
    assert other["keys"] == [
        {"type": "EC secp256r1", "encrypted": False, "alias": "", "certificate": certificate["sha256"]}
    ]
    text = certs("inspect", path, key).output
    for words in (
        "10 days left",
        certificate["sha256"],
        "issuer         itself",
        "belongs to CN=ct1.example",
    ):
        assert words in text


def test_inspect_reads_every_form_and_no_key_goes_out(certs, keys, tmp_path):
    store = keys.pkcs12("store.p12", "ec")
    told = inspected(certs, keys["rsa.chain"], keys["rsa.key"], store, "--password-file", keys["password"])
    assert [each["form"] for each in told] == ["PEM", "PEM", "PKCS#12"]
    assert [[c["subject"] for c in each["certificates"]] for each in told] == [
        ["CN=rsa", "CN=authority"],
        [],
        ["CN=ec", "CN=authority"],
    ]
    assert told[2]["keys"][0]["encrypted"] is True
    assert told[2]["keys"][0]["certificate"] == told[2]["certificates"][0]["sha256"]
    secret = keys["rsa.key"].read_text().splitlines()[1]
    for form in ([], ["--json"]):
        said = certs("inspect", *form, keys["rsa.chain"], keys["rsa.key"]).output
        assert secret not in said
        assert "PRIVATE KEY" not in said


def test_inspect_needs_no_password_to_say_that_one_is_needed(certs, keys, tmp_path):
    certs("new", tmp_path / "n", "--name", "n", "--key-type", "ec", "--password-file", keys["password"])
    (told,) = inspected(certs, tmp_path / "n.key")
    assert told["keys"] == [{"type": "", "encrypted": True, "alias": "", "certificate": None}]
    (told,) = inspected(certs, tmp_path / "n.key", "--password-file", keys["password"])
    assert told["keys"][0]["type"] == "EC secp256r1"
    said = certs("inspect", tmp_path / "n.key", "--password-file", keys["wrong"], code=1).stderr
    assert "correct the password" in said
    assert "falsch" not in said


def test_inspect_fails_where_a_key_has_no_certificate_among_them(certs, keys):
    said = certs("inspect", keys["rsa.crt"], keys["ec.key"], code=1)
    assert f"{keys['ec.key']}: belongs to none" in said.stderr
    assert "CN=rsa" in said.stdout
    certs("inspect", keys["ec.key"])  # alone, there is nothing to belong to
    certs("inspect", keys["rsa.crt"], keys["ec.crt"], keys["ec.key"])


def test_inspect_tells_the_others_when_one_cannot_be_read(certs, keys, tmp_path):
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").mkdir()
    missing = [tmp_path / name for name in ("text", "none", "empty")]
    result = certs("inspect", *missing, keys["rsa.crt"], code=1)
    assert "CN=rsa" in result.stdout
    assert [line.split(": ")[0].removeprefix("error ") for line in result.stderr.splitlines()] == [
        *map(str, missing)
    ]


def test_inspect_of_a_folder_passes_over_what_is_no_key_material(certs, keys, tmp_path):
    for name in ("rsa.crt", "rsa.key"):
        (tmp_path / name).write_bytes(keys[name].read_bytes())
    (tmp_path / "README").write_text("hello")
    told = inspected(certs, tmp_path)
    assert [each["file"] for each in told] == [str(tmp_path / name) for name in ("rsa.crt", "rsa.key")]


def test_inspect_says_what_ended_and_cannot_steer_a_terminal(certs, tmp_path):
    start = datetime.now(UTC) - timedelta(days=9)
    pair = pairs.issue_self_signed("x\x1b[2Jy", days=2, start=start, key_type="ec")
    path, _ = pairs.write_pair(pair, tmp_path / "n")
    said = certs("inspect", path).output
    assert "ended 7 days ago" in said
    assert "\x1b" not in said
    assert "x\N{REPLACEMENT CHARACTER}[2Jy" in said
