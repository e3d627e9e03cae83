"""TLS scanners against a listener with the default profile; docs/reference/scans keeps one run of each."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest.tls.keys import pairs
from tests.support.nodes import Node, cleaned
from tests.support.peers import require_program
from tests.support.pki import Material

pytestmark = [pytest.mark.interop, pytest.mark.long]

ISSUERS_MATTER = {
    "cert_revocation",  # that the certificate names no place of a CRL or OCSP
    "DNS_CAArecord",
}
"""Findings of testssl.sh about whoever has issued the certificate, or about the name server."""


SUITES = {
    **{f"{old}_cipher_suites": set() for old in ("ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1")},
    "tls_1_2_cipher_suites": {
        "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    },
    "tls_1_3_cipher_suites": {
        "TLS_AES_128_GCM_SHA256",
        "TLS_AES_256_GCM_SHA384",
        "TLS_CHACHA20_POLY1305_SHA256",
    },
}
"""What sslyze is to find of an RSA certificate and the default profile."""

LOOKS = (
    *("--sslv2", "--sslv3", "--tlsv1", "--tlsv1_1", "--tlsv1_2", "--tlsv1_3", "--compression", "--fallback"),
    *("--early_data", "--ems", "--openssl_ccs", "--heartbleed", "--robot", "--reneg", "--resum"),
)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("scans")
    material = Material(folder / "pki")
    site = pairs.issue_authority("site")
    pairs.add_to_bundle(site.certificate, material.trusted)
    made = pairs.issue_signed("localhost", site, names=["localhost"], days=90)
    pairs.write_pair(made, material.folder / "node")
    node = Node(folder / "node", material)
    node.configure(
        listeners='[[listeners]]\nhost = "127.0.0.1"\nport = 0\ntls = "node"',
        # Scanners show no certificate, and fail more handshakes than an address may.
        tls=(
            f'[tls.node]\ncertificate = "{material.certificate("node")}"\n'
            f'private_key = "{material.key("node")}"\ntrusted = ["{material.trusted}"]\n'
            'peer_certificate = "optional"'
        ),
        receive="[receive]\nprocesses = 2\nmin_free_bytes = 0\nmax_failures_per_minute = 0",
    )
    with cleaned(node):
        yield node.start()
    assert not [event for event in node.events("child_died") if event["code"]]
    assert "Traceback" not in node.log


def scan(program: str, *arguments: object, **environment: str) -> None:
    command = [require_program(program), *map(str, arguments)]
    # Its exit code counts findings that are looked at one by one here.
    subprocess.run(
        command, capture_output=True, timeout=170, check=False, env=os.environ | environment,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_sslyze_finds_the_profile_and_no_weakness(node: Node, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    scan("sslyze", f"--json_out={out}", *LOOKS, f"localhost:{node.tls_port}")
    [server] = json.loads(out.read_text())["server_scan_results"]
    found: dict[str, Any] = {
        name: scanned["result"]
        for name, scanned in server["scan_result"].items()
        if name != "http_headers" and scanned["status"] == "COMPLETED"
    }
    suites = {
        name: {each["cipher_suite"]["name"] for each in result["accepted_cipher_suites"]}
        for name, result in found.items()
        if name.endswith("_cipher_suites")
    }
    assert suites == SUITES
    assert found["tls_compression"]["supports_compression"] is False
    assert found["tls_1_3_early_data"]["supports_early_data"] is False
    assert found["tls_fallback_scsv"]["supports_fallback_scsv"] is True
    assert found["tls_extended_master_secret"]["supports_ems_extension"] is True
    assert found["openssl_ccs_injection"]["is_vulnerable_to_ccs_injection"] is False
    assert found["heartbleed"]["is_vulnerable_to_heartbleed"] is False
    assert found["robot"]["robot_result"] == "NOT_VULNERABLE_RSA_NOT_SUPPORTED"
    assert found["session_renegotiation"]["supports_secure_renegotiation"] is True
    assert found["session_renegotiation"]["is_vulnerable_to_client_renegotiation_dos"] is False
    resumed = found["session_resumption"]
    assert (
        resumed["session_id_resumption_result"] == resumed["tls_ticket_resumption_result"] == "NOT_SUPPORTED"
    )


def test_testssl_finds_nothing_above_informational(node: Node, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    looks = ("--protocols", "--std", "--fs", "--server-defaults", "--vulnerable")
    scan(
        "testssl", *looks, "--warnings", "batch", "--add-ca", node.material.trusted, "--jsonfile", out,
        f"localhost:{node.tls_port}",
    )  # fmt: skip
    found = {each["id"]: each for each in json.loads(out.read_text())}
    assert len(found) > 60  # that it has looked
    # WARN and DEBUG are about the scanner: its own OpenSSL, and that DICOM is no service that it knows.
    harmless = {"OK", "INFO", "WARN", "DEBUG"}
    assert {
        name: each["finding"]
        for name, each in found.items()
        if each["severity"] not in harmless and name not in ISSUERS_MATTER
    } == {}
    assert found["TLS1_3"]["severity"] == "OK"
