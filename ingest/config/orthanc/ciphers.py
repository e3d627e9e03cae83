"""Names of cipher suites: Orthanc takes OpenSSL's, and IANA's are what its users find in documents."""

import re
import ssl
import warnings
from collections.abc import Sequence
from functools import cache

_NOT_OFFERED = frozenset({"TLS_AES_128_CCM_SHA256", "TLS_AES_128_CCM_8_SHA256"})
"""Suites of TLS 1.3 (RFC 8446 B.4) that OpenSSL has, and offers to nobody by itself."""

_BLOCK = re.compile(r"(AES|CAMELLIA|ARIA)_(128|256)_")
_CUT = {"_CBC": "", "3DES_EDE": "DES-CBC3", "CCM_8": "CCM8", "CHACHA20_POLY1305_SHA256": "CHACHA20-POLY1305"}


def translated(names: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """What OpenSSL calls each suite up to TLS 1.2; names of TLS 1.3 suites; and names that nobody knows."""
    known = _known()
    ciphers: list[str] = []
    suites: list[str] = []
    unknown: list[str] = []
    for name in names:
        if name.startswith("TLS_") and "_WITH_" not in name:
            (suites if name in known | _NOT_OFFERED else unknown).append(name)
            continue
        ours = openssl_name(name)
        (ciphers if ours in known else unknown).append(ours if ours in known else name)
    return ciphers, suites, unknown


def openssl_name(name: str) -> str:
    """`TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256` as `ECDHE-RSA-AES128-GCM-SHA256`; other names as they are."""
    exchange, found, cipher = name.removeprefix("TLS_").partition("_WITH_")
    if not found:
        return name
    for iana, ours in _CUT.items():
        cipher = cipher.replace(iana, ours)
    cipher = _BLOCK.sub(r"\1\2_", cipher)
    parts = [cipher] if exchange == "RSA" else [exchange, cipher]
    # OpenSSL gave the ARIA suites of ECDHE and RSA a name without RSA.
    return "-".join(parts).replace("_", "-").replace("ECDHE-RSA-ARIA", "ECDHE-ARIA")


@cache
def _known() -> frozenset[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1  # else suites of old versions are left out
    context.set_ciphers("ALL:COMPLEMENTOFALL:@SECLEVEL=0")
    return frozenset(cipher["name"] for cipher in context.get_ciphers())
