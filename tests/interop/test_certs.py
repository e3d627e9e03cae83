"""Key material that we make, read by openssl, Java and DCMTK; and theirs, in a running node."""

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ingest.dicom import dimse, uids, wire
from ingest.ext.encode import encode_p_data
from ingest.tls.keys import pairs
from tests.interop import dcmtk
from tests.interop.files import write_made
from tests.support.keymaterial import run
from tests.support.nodes import Node, cleaned, eventually
from tests.support.peers import require_program
from tests.support.pki import Material
from tests.support.ports import free_port

KINDS = ["rsa2048", "ec", "ec-p384", "ed25519"]
SECRET = "changeit"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "password").write_text(f"{SECRET}\n")
    return tmp_path


@pytest.fixture
def start(folder: Path, material: Material) -> Iterator[Callable[[str], Node]]:
    """Starts a node whose [tls.node] is this."""
    with cleaned(Node(folder / "node", material)) as node:
        yield lambda text: node.start(tls=f"[tls.node]\n{text}")


def ingest(*arguments: object) -> str:
    return run(sys.executable, "-m", "ingest.cli", *arguments)


def new(prefix: Path, *options: object, name: str = "localhost", kind: str = "rsa2048") -> None:
    ingest("certs", "new", prefix, "--name", name, "--key-type", kind, *options)


def keytool(*arguments: object) -> str:
    return run(require_program("keytool"), *arguments, "-storepass", SECRET)


# --- openssl


@pytest.mark.parametrize("kind", KINDS)
def test_openssl_takes_each_kind_of_pair_by_its_strict_rules(folder: Path, kind: str) -> None:
    openssl = require_program("openssl")
    new(folder / "n", "--ca", folder / "site", "--password-file", folder / "password", kind=kind)
    strict = ("-x509_strict", "-purpose")
    for purpose in ("sslserver", "sslclient"):
        run(openssl, "verify", *strict, purpose, "-CAfile", folder / "site.crt", folder / "n.crt")
    secret = ("-passin", f"file:{folder / 'password'}")
    public = run(openssl, "x509", "-in", folder / "n.crt", "-noout", "-pubkey")
    assert run(openssl, "pkey", "-in", folder / "n.key", *secret, "-pubout") == public


def test_openssl_opens_our_stores_and_finds_a_key_in_one_of_them_only(folder: Path) -> None:
    openssl = require_program("openssl")
    new(folder / "n", "--ca", folder / "site")
    both = (folder / "n.crt").read_bytes() + (folder / "site.crt").read_bytes()
    (folder / "n.chain").write_bytes(both)
    password = ("--password-file", folder / "password")
    ingest("certs", "p12", "make", folder / "key.p12", folder / "n.chain", folder / "n.key", *password)
    ingest("certs", "p12", "trust", folder / "trust.p12", folder / "n.chain", *password)
    secret = ("-passin", f"file:{folder / 'password'}", "-nodes")
    found = {}
    for name in ("key", "trust"):
        said = run(openssl, "pkcs12", "-in", folder / f"{name}.p12", *secret)
        found[name] = said.count("BEGIN PRIVATE KEY"), said.count("BEGIN CERTIFICATE")
    assert found == {"key": (1, 2), "trust": (0, 2)}


@pytest.mark.parametrize("kind", KINDS)
def test_pair_serves_when_an_authority_has_signed_our_request(
    folder: Path, start: Callable[[str], Node], kind: str
) -> None:
    openssl = require_program("openssl")
    ingest("certs", "csr", folder / "n", "--name", "localhost", "--san", "127.0.0.1", "--key-type", kind)
    assert "verify OK" in run(openssl, "req", "-verify", "-noout", "-in", folder / "n.csr")
    run(
        openssl, "req", "-x509", "-nodes", "-newkey", "rsa:2048", "-subj", "/CN=hospital", "-keyout",
        folder / "ca.key", "-out", folder / "ca.crt",
    )  # fmt: skip
    run(
        openssl, "x509", "-req", "-in", folder / "n.csr", "-CA", folder / "ca.crt",
        "-CAkey", folder / "ca.key", "-CAcreateserial", "-copy_extensions", "copy", "-out", folder / "n.crt",
    )  # fmt: skip
    node = start(
        f'certificate = "{folder}/n.crt"\nprivate_key = "{folder}/n.key"\ntrusted = ["{folder}/ca.crt"]'
    )
    ours = ("--tls-cert", folder / "n.crt", "--tls-key", folder / "n.key")
    said = ingest(
        "echo", "localhost", node.tls_port, *ours, "--tls-trusted", folder / "ca.crt", "--tls-check-name"
    )
    assert "answered the C-ECHO" in said


# --- Java


def test_java_key_store_with_two_keys_is_refused_until_one_is_exported(folder: Path) -> None:
    for alias in ("one", "two"):
        keytool(
            "-genkeypair", "-alias", alias, "-dname", f"CN={alias}", "-keyalg", "EC", "-storetype", "PKCS12",
            "-keystore", folder / "two.p12",
        )  # fmt: skip
    password = ("--password-file", folder / "password")
    split = [sys.executable, "-m", "ingest.cli", "certs", "p12", "split", str(folder / "two.p12")]
    split += [str(folder / "n"), *map(str, password)]
    done = subprocess.run(split, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "holds 2 private keys (aliases one, two)" in done.stderr
    said = ingest("certs", "inspect", folder / "two.p12", *password)
    for alias in ("one", "two"):
        assert f"private key      {alias}, EC secp256r1, encrypted, belongs to CN={alias}" in said
    command = done.stderr.partition("`")[2].partition("`")[0].replace("ALIAS", "two").split()
    command[command.index("NEW.p12")] = str(folder / "new.p12")
    run(*command, "-srcstorepass", SECRET, "-deststorepass", SECRET, "-noprompt")
    ingest("certs", "p12", "split", folder / "new.p12", folder / "n", *password)
    assert "CN=two" in ingest("certs", "inspect", folder / "n.crt", folder / "n.key")


def test_java_sees_trusted_certificates_in_our_trust_store_and_a_pair_in_our_key_store(folder: Path) -> None:
    new(folder / "n", "--ca", folder / "site")
    both = (folder / "n.crt").read_bytes() + (folder / "site.crt").read_bytes()
    (folder / "n.chain").write_bytes(both)
    password = ("--password-file", folder / "password")
    ingest("certs", "p12", "make", folder / "key.p12", folder / "n.chain", folder / "n.key", *password)
    ingest("certs", "p12", "trust", folder / "trust.p12", folder / "n.crt", folder / "site.crt", *password)
    listed = keytool("-list", "-keystore", folder / "trust.p12")
    assert listed.count("trustedCertEntry") == 2
    assert "PrivateKeyEntry" not in listed
    listed = keytool("-list", "-v", "-keystore", folder / "key.p12")
    assert "Entry type: PrivateKeyEntry" in listed
    assert "Certificate chain length: 2" in listed


@pytest.mark.parametrize(("store", "version"), [("rsa", "TLSv1.2"), ("ec", "TLSv1.3"), ("older", "TLSv1.3")])
def test_java_and_a_node_trust_each_other_by_their_own_key_stores(
    folder: Path, start: Callable[[str], Node], store: str, version: str
) -> None:
    """The node has a store that keytool made; Java has one that we made, and a trust store without a key."""
    java = require_program("java")
    options: list[object] = ["-J-Dkeystore.pkcs12.legacy"] if store == "older" else []
    kind = ["EC", "-groupname", "secp256r1"] if store == "ec" else ["RSA", "-keysize", 2048]
    keytool(
        *options, "-genkeypair", "-alias", "node", "-dname", "CN=localhost", "-storetype", "PKCS12",
        "-keyalg", *kind, "-ext", "san=dns:localhost", "-keystore", folder / "node.p12",
    )  # fmt: skip
    password = ("--password-file", folder / "password")
    new(folder / "scu", name="scu", kind="ec" if store == "ec" else "rsa2048")
    ingest("certs", "p12", "make", folder / "scu.p12", folder / "scu.crt", folder / "scu.key", *password)
    ingest(
        "certs", "p12", "trust", folder / "trust.p12", folder / "node.p12", *password,
        "--source-password-file", folder / "password",
    )  # fmt: skip
    node = start(
        f'pkcs12 = "{folder}/node.p12"\npassword_file = "{folder}/password"\ntrusted = ["../scu.crt"]'
    )
    request = wire.AssociateRequest(
        called_ae="INGEST",
        calling_ae="DCM4CHE",
        contexts=(wire.ProposedContext(1, uids.VERIFICATION, (uids.IMPLICIT_LITTLE_ENDIAN,)),),
        max_pdu_length=16384,
    )
    pdus = [
        wire.encode_associate_rq(request),
        encode_p_data(1, dimse.encode_echo_request(1), 16384),
        wire.RELEASE_RQ,
    ]
    said = run(
        java, Path(__file__).with_name("Echo.java"), node.tls_port, folder / "scu.p12", folder / "trust.p12",
        SECRET, version, *(pdu.hex() for pdu in pdus),
    ).splitlines()  # fmt: skip
    assert said[0].startswith(f"{version} TLS_")
    assert [line[:2] for line in said[1:]] == ["02", "04", "06"]
    assert SECRET not in node.log


def test_old_java_key_store_is_named_with_what_converts_it(folder: Path) -> None:
    keytool(
        "-genkeypair", "-alias", "a", "-dname", "CN=a", "-keyalg", "EC", "-storetype", "JKS",
        "-keypass", SECRET, "-keystore", folder / "old.jks",
    )  # fmt: skip
    command = [sys.executable, "-m", "ingest.cli", "certs", "inspect", str(folder / "old.jks")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "keytool -importkeystore" in done.stderr
    keytool(
        "-importkeystore", "-noprompt", "-srckeystore", folder / "old.jks", "-destkeystore",
        folder / "new.p12", "-deststoretype", "PKCS12", "-srcstorepass", SECRET, "-deststorepass", SECRET,
    )  # fmt: skip
    ingest("certs", "p12", "split", folder / "new.p12", folder / "a", "--password-file", folder / "password")


# --- DCMTK


@pytest.mark.parametrize("kind", ["rsa2048", "ec", "ed25519"])
def test_storescu_sends_with_each_kind_of_pair_that_we_make(
    folder: Path, start: Callable[[str], Node], kind: str
) -> None:
    """The node's key is encrypted, in one file with its certificate; it trusts a folder with any names."""
    (folder / "trusted").mkdir()
    secret = ("--password-file", folder / "password")
    new(folder / "node-pair", *secret, kind=kind)
    new(folder / "scu", name="scu", kind=kind)
    joined = (folder / "node-pair.key").read_bytes() + (folder / "node-pair.crt").read_bytes()
    (folder / "joined.pem").write_bytes(joined)
    openssl = require_program("openssl")
    run(openssl, "x509", "-in", folder / "scu.crt", "-outform", "DER", "-out", folder / "trusted" / "CT 1")
    node = start(
        f'certificate = "{folder}/joined.pem"\npassword_file = "{folder}/password"\ntrusted = ["../trusted"]'
    )
    tls = ["+tls", str(folder / "scu.key"), str(folder / "scu.crt"), "+cf", str(folder / "node-pair.crt")]
    done = dcmtk.storescu(node.tls_port, *tls, files=write_made(folder / "made", 1))
    assert done.returncode == 0, done.stdout + node.log
    assert "Received Store Response (Success)" in done.stdout
    new(folder / "stranger", name="scu", kind=kind)
    tls[1:3] = [str(folder / "stranger.key"), str(folder / "stranger.crt")]
    assert dcmtk.echoscu(node.tls_port, *tls).returncode != 0


def test_storescp_takes_us_by_a_key_store(folder: Path) -> None:
    password = ("--password-file", folder / "password")
    for name in ("scp", "scu"):
        new(folder / name)
    ingest("certs", "p12", "make", folder / "scu.p12", folder / "scu.crt", folder / "scu.key", *password)
    port = free_port()
    tls = ["+tls", folder / "scp.key", folder / "scp.crt", "+cf", folder / "scu.crt"]
    scp = subprocess.Popen(
        [require_program("storescp"), *map(str, tls), str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )
    call = ["echo", "localhost", port, "--tls-trusted", folder / "scp.crt", "--tls-check-name"]
    try:
        eventually(lambda: listens(port), 10, "storescp")
        said = ingest(*call, "--tls-pkcs12", folder / "scu.p12", "--tls-password-file", folder / "password")
        assert "answered the C-ECHO" in said
        with pytest.raises(AssertionError):  # it wants to see one
            ingest(*call)
    finally:
        scp.kill()
        scp.wait(10)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# --- a running node


def test_node_says_what_ends_at_start_and_after_a_reload_no_more(
    folder: Path, start: Callable[[str], Node]
) -> None:
    begin = datetime.now(UTC) - timedelta(days=9)
    for name, days in (("own", 14), ("ct1", 3)):
        pairs.write_pair(pairs.issue_self_signed(name, key_type="ec", start=begin, days=days), folder / name)
    node = start(
        f'certificate = "{folder}/own.crt"\nprivate_key = "{folder}/own.key"\ntrusted = ["../ct1.crt"]'
    )
    (ends,) = eventually(lambda: node.events("certificate_ends"), 10, "certificate_ends")
    assert (ends["level"], ends["within_days"], ends["subject"]) == ("warning", 7, "CN=own")
    (ended,) = eventually(lambda: node.events("certificate_ended"), 10, "certificate_ended")
    assert (ended["level"], ended["key"], ended["role"]) == ("error", "tls.node.trusted[0]", "trusted")
    pairs.write_pair(pairs.issue_self_signed("own", key_type="ec"), folder / "own", force=True)
    ingest("reload", "-c", node.config_path)
    assert node.stop() == 0
    assert len(node.events("certificate_ends")) == len(node.events("certificate_ended")) == 1
