"""Names of cipher suites. Orthanc accepts those of OpenSSL, and documents often have those of IANA."""

import re
from collections.abc import Sequence
from functools import cache

from ingest.ext.tls_context import TLS_1_0, Context

_NOT_OFFERED = frozenset({"TLS_AES_128_CCM_SHA256", "TLS_AES_128_CCM_8_SHA256"})
"""Suites of TLS 1.3 (RFC 8446 B.4) that OpenSSL has but does not offer by default."""

_BLOCK_CIPHER = re.compile(r"(AES|CAMELLIA|ARIA)_(128|256)_")
_REPLACEMENTS = {
    "_CBC": "",
    "3DES_EDE": "DES-CBC3",
    "CCM_8": "CCM8",
    "CHACHA20_POLY1305_SHA256": "CHACHA20-POLY1305",
}


def sort_cipher_names(names: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Return OpenSSL's names of suites up to TLS 1.2, names of TLS 1.3 suites, and unknown names."""
    known = _list_known_suites()
    ciphers: list[str] = []
    suites: list[str] = []
    unknown: list[str] = []
    for name in names:
        if name.startswith("TLS_") and "_WITH_" not in name:
            (suites if name in known | _NOT_OFFERED else unknown).append(name)
            continue
        ours = find_openssl_name(name)
        (ciphers if ours in known else unknown).append(ours if ours in known else name)
    return ciphers, suites, unknown


def find_openssl_name(name: str) -> str:
    """Translate `TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256` to `ECDHE-RSA-AES128-GCM-SHA256`; keep others."""
    exchange, found, cipher = name.removeprefix("TLS_").partition("_WITH_")
    if not found:
        return name
    for iana, ours in _REPLACEMENTS.items():
        cipher = cipher.replace(iana, ours)
    cipher = _BLOCK_CIPHER.sub(r"\1\2_", cipher)
    parts = [cipher] if exchange == "RSA" else [exchange, cipher]
    # OpenSSL's names of the ARIA suites with ECDHE and RSA omit RSA.
    return "-".join(parts).replace("_", "-").replace("ECDHE-RSA-ARIA", "ECDHE-ARIA")


@cache
def _list_known_suites() -> frozenset[str]:
    context = Context(is_server=True)
    context.set_versions(TLS_1_0)
    context.set_ciphers("ALL:COMPLEMENTOFALL:@SECLEVEL=0")
    return frozenset(suite.name for suite in context.list_ciphers())
