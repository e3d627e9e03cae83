"""Key material in every form that sites have, made by openssl, loaded for both roles, shaking hands."""

import codecs
import contextlib
import os
import re
import shutil
import ssl
import sys
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.config.model import TLS
from ingest.errors import ConfigError
from ingest.tls.contexts import build_client_context, build_server_context
from ingest.tls.keys import inspection, pairs
from ingest.tls.keys.loading import read_pair
from ingest.tls.keys.pkcs12 import parse_der_elements
from tests.support.keymaterial import PASSWORD, Keys, run
from tests.support.peers import require_program
from tests.support.properties import examples
from tests.unit.tls.test_tls_contexts import shake


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    require_program("openssl")
    return Keys(tmp_path_factory.mktemp("keys"))


def pair(keys, certificate, key=None, **more):
    return {"certificate": keys[certificate], "private_key": keys[key] if key else None, **more}


def chained(keys, kind="rsa"):
    return pair(keys, f"{kind}.chain", f"{kind}.key")


def joined(keys):
    both = keys["rsa.key"].read_bytes() + keys["rsa.chain"].read_bytes()
    keys["joined.pem"].write_bytes(both)
    return pair(keys, "joined.pem")


def encrypted(keys, kind, *options):
    """A key with a password; beside it the chain, since all but PKCS#12 have it apart."""
    run(
        "openssl", *options, "-in", keys[f"{kind}.key"], "-out", keys["locked.key"],
        "-passout", f"pass:{PASSWORD}",
    )  # fmt: skip
    return pair(keys, f"{kind}.chain", "locked.key", password_file=keys["password"])


def traditional(keys, kind):
    name = {"rsa": "rsa", "ec": "ec"}[kind]
    made = encrypted(keys, kind, name, "-aes256", *(["-traditional"] if name == "rsa" else []))
    assert b"Proc-Type: 4,ENCRYPTED" in keys["locked.key"].read_bytes()
    return made


def der(keys, *options, password_file=None):
    """Certificate and key in DER, which has no place for a chain."""
    run("openssl", "x509", "-in", keys["rsa.crt"], "-outform", "DER", "-out", keys["rsa.cer"])
    run("openssl", *options, "-in", keys["rsa.key"], "-outform", "DER", "-out", keys["rsa.der"])
    return {
        "certificate": keys["rsa.cer"],
        "private_key": keys["rsa.der"],
        "password_file": password_file,
    }


def pkcs12(keys, *options, kind="rsa", password=PASSWORD, password_file="password"):
    made = keys.pkcs12("store.p12", kind, *options, password=password)
    return {"pkcs12": made, "password_file": keys[password_file] if password_file else None}


LEGACY = ("-provider", "legacy", "-provider", "default")


def reshaped(keys, shape):
    """Certificate and key as mails and forms leave them."""
    files = []
    for name in ("rsa.chain", "rsa.key"):
        files.append(keys[f"{name}.reshaped"])
        files[-1].write_text(
            re.sub(r"(-----\n)(.+?)(\n-----)", shape, keys[name].read_text(), flags=re.DOTALL)
        )
    return {"certificate": files[0], "private_key": files[1]}


def indented(found):
    return found[0].replace("\n", "\n    ")


def on_one_line(found):
    return found[1] + found[2].replace("\n", "") + found[3]


def pkcs7(keys, form):
    """As authorities send it: the issuer first, and no order."""
    run(
        "openssl", "crl2pkcs7", "-nocrl", "-certfile", keys["root.crt"], "-certfile", keys["authority.crt"],
        "-certfile", keys["rsa.crt"], "-outform", form, "-out", keys["chain.p7b"],
    )  # fmt: skip
    return pair(keys, "chain.p7b", "rsa.key")


def among_others(keys, *options):
    """A file with several keys."""
    own = encrypted(keys, "rsa", *options)["private_key"] if options else keys["rsa.key"]
    keys["several.key"].write_bytes(keys["ec.key"].read_bytes() + own.read_bytes())
    return pair(keys, "rsa.chain", "several.key", password_file=keys["password"])


FORMS = {
    "PEM RSA with chain": chained,
    "PEM EC with chain": lambda keys: chained(keys, "ec"),
    "PEM Ed25519 with chain": lambda keys: chained(keys, "ed25519"),
    "PEM joined with its key": joined,
    "PKCS#8 encrypted RSA": lambda keys: encrypted(keys, "rsa", "pkcs8", "-topk8"),
    "PKCS#8 encrypted EC": lambda keys: encrypted(keys, "ec", "pkcs8", "-topk8"),
    "PKCS#8 encrypted Ed25519": lambda keys: encrypted(keys, "ed25519", "pkcs8", "-topk8"),
    "PKCS#8 encrypted with 3DES": lambda keys: encrypted(
        keys, "rsa", "pkcs8", "-topk8", "-v1", "PBE-SHA1-3DES"
    ),
    "PKCS#8 encrypted with MD5 and DES": lambda keys: encrypted(
        keys, "rsa", "pkcs8", *LEGACY, "-topk8", "-v1", "PBE-MD5-DES"
    ),
    "PEM indented": lambda keys: reshaped(keys, indented),
    "PEM on one line": lambda keys: reshaped(keys, on_one_line),
    "PKCS#7 in PEM, and its key": lambda keys: pkcs7(keys, "PEM"),
    "PKCS#7 in DER, and its key": lambda keys: pkcs7(keys, "DER"),
    "PEM key among others": among_others,
    "PEM encrypted key among others": lambda keys: among_others(keys, "pkcs8", "-topk8"),
    "traditional encrypted RSA": lambda keys: traditional(keys, "rsa"),
    "traditional encrypted EC": lambda keys: traditional(keys, "ec"),
    "DER, PKCS#8": lambda keys: der(keys, "pkcs8", "-topk8", "-nocrypt"),
    "DER, PKCS#1": lambda keys: der(keys, "rsa", "-traditional"),
    "DER, PKCS#8 encrypted": lambda keys: der(
        keys, "pkcs8", "-topk8", "-passout", f"pass:{PASSWORD}", password_file=keys["password"]
    ),
    "PKCS#12 RSA": pkcs12,
    "PKCS#12 EC": lambda keys: pkcs12(keys, kind="ec"),
    "PKCS#12 Ed25519": lambda keys: pkcs12(keys, kind="ed25519"),
    "PKCS#12 of older programs": lambda keys: pkcs12(keys, "-legacy"),
    "PKCS#12 with an empty password": lambda keys: pkcs12(keys, password="", password_file=None),
    "PKCS#12 with an empty password, and a password that it does not need": lambda keys: pkcs12(
        keys, password=""
    ),
    "PKCS#12 without encryption": lambda keys: pkcs12(
        keys, "-keypbe", "NONE", "-certpbe", "NONE", "-nomac", password="", password_file=None
    ),
    "PKCS#12 without encryption, and a password that it does not need": lambda keys: pkcs12(
        keys, "-keypbe", "NONE", "-certpbe", "NONE", "-nomac", password=""
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_shakes_hands_in_both_roles(keys, form):
    tls = TLS(**FORMS[form](keys), trusted=(keys["root.crt"],))
    ours = [build_server_context(tls), build_client_context(tls)]
    # DER has no chain: who trusts the root alone cannot follow it, who trusts the issuer can.
    anchor = "authority.crt" if form.startswith("DER") else "root.crt"
    other = TLS(**chained(keys), trusted=(keys[anchor],))
    for server, client in (
        (ours[0], build_client_context(other)),
        (build_server_context(other), ours[1]),
    ):
        here, there = shake(server, client)
        assert here.version() == there.version() == "TLSv1.3"


def test_key_store_shows_peers_its_own_chain_in_order_and_nothing_else_in_it(keys, tmp_path):
    run(
        "openssl", "req", "-x509", "-nodes", "-newkey", "rsa:2048", "-subj", "/CN=stranger",
        "-keyout", tmp_path / "s.key", "-out", tmp_path / "stranger.crt",
    )  # fmt: skip
    merged = tmp_path / "all"
    mixed = (tmp_path / "stranger.crt", keys["root.crt"], keys["authority.crt"])
    merged.write_bytes(b"".join(file.read_bytes() for file in mixed))
    store = keys.pkcs12("store.p12", "rsa", "-certfile", str(merged))
    tls = TLS(pkcs12=store, password_file=keys["password"], trusted=(keys["root.crt"],))
    held, _, _ = read_pair(tls)
    expected = [keys[f"{name}.crt"].read_text() for name in ("rsa", "authority", "root")]
    assert [*map(ssl.PEM_cert_to_DER_cert, held.certificates)] == [*map(ssl.PEM_cert_to_DER_cert, expected)]


@pytest.mark.parametrize(
    "form",
    ["PKCS#12 RSA", "PKCS#8 encrypted RSA", "DER, PKCS#8 encrypted", "PKCS#8 encrypted with MD5 and DES"],
)
def test_decrypted_key_is_in_memory_only(keys, form, tmp_path, monkeypatch):
    """No file is made or written: OpenSSL gets the bytes."""
    tls = TLS(**FORMS[form](keys), trusted=(keys["root.crt"],))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in keys.folder.iterdir()}
    written, watching = [], True

    def audit(event, arguments):
        writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        if watching and event == "open" and isinstance(arguments[0], str) and arguments[2] & writing:
            written.append(arguments[0])

    sys.addaudithook(audit)
    try:
        build_server_context(tls)
        build_client_context(tls)
    finally:
        watching = False
    assert written == []
    assert list(tmp_path.iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in keys.folder.iterdir()} == before
    assert not [link for link in links() if link.startswith("/memfd:pem")]  # closed again


def links():
    for entry in os.scandir("/proc/self/fd"):
        try:
            yield os.readlink(entry.path)
        except OSError:
            continue


@pytest.mark.parametrize(
    "content",
    ["PEM", "PEM indented", "DER", "PKCS#7", "TRUSTED", "bundle", "folder", "store", "folder of DER"],
)
def test_each_form_of_trust_lets_its_peers_in(keys, tmp_path, content):
    path, certificate = tmp_path / "trust", keys["root.crt"]
    match content:
        case "PEM":
            shutil.copy(certificate, path)
        case "PEM indented":
            path.write_text("".join(f"  {line}\n" for line in certificate.read_text().splitlines()))
        case "PKCS#7":
            run("openssl", "crl2pkcs7", "-nocrl", "-certfile", certificate, "-out", path)
        case "DER":
            run("openssl", "x509", "-in", certificate, "-outform", "DER", "-out", path)
        case "TRUSTED":
            run("openssl", "x509", "-in", certificate, "-trustout", "-addtrust", "serverAuth", "-out", path)
            assert path.read_bytes().startswith(b"-----BEGIN TRUSTED")
        case "bundle":
            path.write_bytes(b"# all\n" + keys["ec.crt"].read_bytes() + certificate.read_bytes())
        case "store":
            run(
                "openssl", "pkcs12", "-export", "-nokeys", "-in", certificate, "-out", path,
                "-passout", f"pass:{PASSWORD}",
            )  # fmt: skip
        case _:
            path.mkdir()
            shutil.copy(keys["rsa.key"], path / "key")
            shutil.copy(keys.pkcs12("store.p12", "ec"), path / "somebody.p12")
            (path / "Liesmich").write_text("Schlüssel")
            name, form = ("a.cer", "DER") if content == "folder of DER" else ("wurzel 1", "PEM")
            run("openssl", "x509", "-in", certificate, "-outform", form, "-out", path / name)
    assert "CN=root" in [each.subject for each in pairs.read_identities(path, keys["password"])]
    tls = TLS(**chained(keys), trusted=(path,), password_file=keys["password"])
    for server, client in ((tls, None), (None, tls)):
        other = TLS(**chained(keys), trusted=(keys["root.crt"],))
        shake(build_server_context(server or other), build_client_context(client or other))


def test_password_may_begin_and_end_as_any_editor_writes_a_line(keys, tmp_path):
    for mark, ending in product((b"", codecs.BOM_UTF8), (b"", b"\n", b"\r\n", b"\nmore\n")):
        (tmp_path / "p").write_bytes(mark + PASSWORD.encode() + ending)
        made = {**pkcs12(keys), "password_file": tmp_path / "p"}
        build_server_context(TLS(**made, trusted=(keys["root.crt"],)))


def damage(keys, tmp_path):
    """Settings that are wrong in one way; the file that is to blame, and words of cause or remedy."""
    old = tmp_path / "old.key"
    traditional(keys, "ec")
    keys["locked.key"].rename(old)
    locked = encrypted(keys, "rsa", "pkcs8", "-topk8")
    store = pkcs12(keys)
    cut = tmp_path / "cut.p12"
    cut.write_bytes(store["pkcs12"].read_bytes()[:500])
    trust = tmp_path / "trust.p12"
    run(
        "openssl", "pkcs12", "-export", "-nokeys", "-in", keys["root.crt"], "-out", trust,
        "-passout", f"pass:{PASSWORD}",
    )  # fmt: skip
    other = tmp_path / "other.key"
    run("openssl", "genpkey", "-algorithm", "ED25519", "-out", other)
    java = tmp_path / "old.jks"
    java.write_bytes(b"\xfe\xed\xfe\xed\x00\x00\x00\x02" + bytes(40))
    junk = tmp_path / "junk.der"
    junk.write_bytes(b"\x30\x82\x01\x00" + bytes(256))
    old_des, des = tmp_path / "des.key", tmp_path / "pkcs8-des.key"
    encrypted(keys, "rsa", "rsa", *LEGACY, "-traditional", "-des")
    keys["locked.key"].rename(old_des)
    encrypted(keys, "rsa", "pkcs8", *LEGACY, "-topk8", "-v1", "PBE-SHA1-DES")
    keys["locked.key"].rename(des)
    locked = encrypted(keys, "rsa", "pkcs8", "-topk8")
    latin, empty, utf16 = (tmp_path / name for name in ("latin", "empty", "utf16"))
    latin.write_bytes(PASSWORD.encode("latin-1"))
    empty.write_text("\n")
    utf16.write_text(PASSWORD, encoding="utf-16")
    p7b = tmp_path / "cut.p7b"
    p7b.write_bytes(pkcs7(keys, "DER")["certificate"].read_bytes()[:700])
    none, password, wrong = ({"password_file": p} for p in (None, keys["password"], keys["wrong"]))
    key, p12 = locked["private_key"], store["pkcs12"]
    older = pair(keys, "ec.chain") | {"private_key": old}
    return {
        "PKCS#8, password missing": ({**locked, **none}, key, "password_file"),
        "PKCS#8, wrong password": ({**locked, **wrong}, key, "correct the password"),
        "traditional, wrong password": ({**older, **wrong}, old, "correct the"),
        "traditional, password missing": (older, old, "password_file"),
        "PKCS#12, password missing": ({**store, **none}, p12, "password_file"),
        "PKCS#12, wrong password": ({**store, **wrong}, p12, "correct the password"),
        "PKCS#12, cut": ({"pkcs12": cut, **password}, cut, "export it again"),
        "PKCS#12 that is a trust store": ({"pkcs12": trust, **password}, trust, "is a trust store"),
        "PEM as PKCS#12": ({"pkcs12": keys["rsa.chain"]}, keys["rsa.chain"], "is not PKCS#12 but PEM"),
        "PKCS#12 as certificate": ({"certificate": p12, **password}, p12, "name it in pkcs12"),
        "Java's old form": ({"pkcs12": java}, java, "-deststoretype PKCS12"),
        "another's key": (pair(keys, "rsa.chain") | {"private_key": other}, keys["rsa.chain"], str(other)),
        "DER that is nothing": ({"certificate": junk, "private_key": other}, junk, "holds no certificate"),
        "traditional, DES": ({**locked, "private_key": old_des}, old_des, "encrypted with DES"),
        "PKCS#8, DES": ({**locked, "private_key": des}, des, "-aes256"),
        "PKCS#12, password not UTF-8": ({**store, "password_file": latin}, latin, "as UTF-8"),
        "password empty": ({**store, "password_file": empty}, empty, "name no password file"),
        "password in UTF-16": ({**locked, "password_file": utf16}, utf16, "as UTF-8"),
        "PKCS#7, cut": ({"certificate": p7b, "private_key": other}, p7b, "openssl pkcs7 -print_certs"),
        "PKCS#7 and another's key": (
            pkcs7(keys, "PEM") | {"private_key": other},
            keys["chain.p7b"],
            str(other),
        ),
        "no file": ({"pkcs12": tmp_path / "none"}, tmp_path / "none", "No such file"),
        "store with a wrong password as trust": (
            {**chained(keys), "trusted": (trust,), **wrong},
            trust,
            "correct the password",
        ),
    }  # fmt: skip


CASES = [
    "PKCS#8, password missing",
    "PKCS#8, wrong password",
    "traditional, wrong password",
    "traditional, password missing",
    "PKCS#12, password missing",
    "PKCS#12, wrong password",
    "PKCS#12, cut",
    "PKCS#12 that is a trust store",
    "PEM as PKCS#12",
    "PKCS#12 as certificate",
    "Java's old form",
    "another's key",
    "DER that is nothing",
    "traditional, DES",
    "PKCS#8, DES",
    "PKCS#12, password not UTF-8",
    "password empty",
    "password in UTF-16",
    "PKCS#7, cut",
    "PKCS#7 and another's key",
    "no file",
    "store with a wrong password as trust",
]


@pytest.mark.parametrize("role", [build_server_context, build_client_context])
@pytest.mark.parametrize("case", CASES)
def test_fault_names_file_and_remedy_and_no_secret(keys, tmp_path, case, role):
    changes, file, words = damage(keys, tmp_path)[case]
    with pytest.raises(ConfigError) as caught:
        role(TLS(**{"trusted": (keys["root.crt"],), **changes}))
    (line,) = caught.value.faults
    assert line.startswith(f"{file}: ")
    assert words in line
    assert "; " in line
    assert PASSWORD not in line
    assert "falsch" not in line
    assert "PRIVATE KEY" not in line


@pytest.mark.parametrize("key", ["certificate", "private_key", "password_file", "pkcs12", "trusted", "crl"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.timeout(20)
def test_what_is_no_file_is_refused_instead_of_waited_for(keys, tmp_path, key, kind):
    path = tmp_path / "pipe" if kind == "pipe" else Path("/dev/null")
    if kind == "pipe":
        os.mkfifo(path)
    tls = {**encrypted(keys, "rsa", "pkcs8", "-topk8"), "trusted": (keys["root.crt"],)}
    if key == "pkcs12":
        tls = {"trusted": tls["trusted"]}
    tls[key] = (path,) if key in ("trusted", "crl") else path
    with pytest.raises(ConfigError, match=f"{path}: Is a pipe or a device; "):
        build_server_context(TLS(**tls))


def test_what_openssl_does_not_take_is_said_in_its_words(keys):
    run(
        "openssl", "x509", "-req", "-sha1", "-in", keys["rsa.csr"], "-CA", keys["authority.crt"], "-CAkey",
        keys["authority.key"], "-CAcreateserial", "-out", keys["sha1.crt"],
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"sha1.crt: .*MD_TOO_WEAK.* with SHA-256"):
        build_client_context(TLS(**pair(keys, "sha1.crt", "rsa.key"), trusted=(keys["root.crt"],)))


def with_two_keys(keys):
    """PKCS#12 as Java makes it of two entries, but not encrypted: the bags of two stores in one."""
    plain = ("-keypbe", "NONE", "-certpbe", "NONE", "-nomac")
    bags = b""
    for kind in ("rsa", "ec"):
        store = keys.pkcs12(f"{kind}.p12", kind, *plain, "-name", f"{kind} ä", password="").read_bytes()
        ((_, pfx),) = parse_der_elements(store)
        (_, (_, info)) = parse_der_elements(pfx)
        (_, (_, explicit)) = parse_der_elements(info)
        ((_, octets),) = parse_der_elements(explicit)
        ((_, safes),) = parse_der_elements(octets)
        bags += safes
    data = encoded(0x06, bytes.fromhex("2a864886f70d010701"))
    info = encoded(0x30, data + encoded(0xA0, encoded(0x04, encoded(0x30, bags))))
    keys["two.p12"].write_bytes(encoded(0x30, b"\x02\x01\x03" + info))
    return keys["two.p12"]


def encoded(tag, content):
    length = len(content)
    return bytes([tag, *([length] if length < 0x80 else [0x82, *divmod(length, 256)])]) + content


def test_key_store_with_several_keys_is_refused_and_shown_with_all(keys):
    path = with_two_keys(keys)
    with pytest.raises(
        ConfigError, match=r"two.p12: holds 2 private keys \(aliases rsa ä, ec ä\); .*keytool"
    ):
        build_client_context(TLS(pkcs12=path, trusted=(keys["root.crt"],)))
    (told,) = inspection.inspect_files([path], None, datetime.now(UTC))
    assert [(key.alias, key.type) for key in told.keys] == [("rsa ä", "RSA 2048"), ("ec ä", "EC secp384r1")]
    subjects = [own and own.subject for _, _, own in inspection.match_keys([told])]
    assert subjects == ["CN=rsa", "CN=ec"]


@pytest.fixture(scope="module")
def samples(keys):
    """Sound files of each form; PKCS#12 without iterations, of which a changed one may ask for billions."""
    der(keys, "pkcs8", "-topk8", "-nocrypt")
    store = keys.pkcs12("plain.p12", "ec", "-keypbe", "NONE", "-certpbe", "NONE", "-nomac", password="")
    files = (keys["rsa.chain"], keys["ec.key"], keys["rsa.cer"], keys["rsa.der"], store, with_two_keys(keys))
    files += (pkcs7(keys, "DER")["certificate"],)
    return {file.name: file.read_bytes() for file in files}


SAMPLES = ["rsa.chain", "ec.key", "rsa.cer", "rsa.der", "plain.p12", "two.p12", "chain.p7b"]


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@examples(100)
@given(data=st.data())
def test_damaged_files_are_told_and_never_end_a_command(keys, samples, data):
    content = bytearray(samples[data.draw(st.sampled_from(SAMPLES))])
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = keys["damaged"]
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    (told,) = inspection.inspect_files([path], None, datetime.now(UTC))
    assert told.fault.startswith(str(path)) or told.certificates or told.keys
    for tls in ({"certificate": path}, {"pkcs12": path}, {"trusted": (path,)}):
        with contextlib.suppress(ConfigError):
            build_client_context(TLS(**{"trusted": (keys["root.crt"],), **tls}))
