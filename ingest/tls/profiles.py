"""Table of the secure transport connection profiles of PS3.15 Annex B, applied to contexts.

All profiles use OpenSSL's security level 2. It refuses RSA and DH below 2048 bits, curves below 224 bits
(RFC 9325 4.5) and SHA-1. `ingest.ext.tls_context` makes the settings of all contexts.

The suites follow PS3.15. Where PS3.15 leaves a choice, they follow DCMTK's profile of the same name.
"""

import ssl
from dataclasses import dataclass
from typing import Final

from ingest.config.model import TLS
from ingest.config.rules import TLS_VERSIONS
from ingest.errors import ConfigError
from ingest.ext.tls_context import NEWEST, TLS_1_2, CipherSuite, Context

_ECDHE_GCM = (
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
)
"""The four suites that RFC 9325 4.2 recommends for TLS 1.2."""

_DHE_GCM = ("DHE-RSA-AES128-GCM-SHA256", "DHE-RSA-AES256-GCM-SHA384")
"""RFC 7525 4.2 recommended these too; RFC 9325 4.2 no longer does."""

_MODIFIED = (
    "ECDHE-ECDSA-AES128-CCM",
    "ECDHE-ECDSA-AES128-CCM8",
    "ECDHE-ECDSA-AES256-CCM",
    "ECDHE-ECDSA-AES256-CCM8",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
)
"""Further suites of PS3.15 B.13. OpenSSL has none of its Camellia-GCM suites."""

_TLS13 = ("TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256", "TLS_AES_128_GCM_SHA256")
"""RFC 9325 4.3 refers to RFC 8446 9.1, which names these three."""

_GROUPS = ("X25519", "P-256", "P-384", "P-521", "X448")
"""RFC 9325 4.2.1: P-256 and X25519 for interoperability; PS3.15 B.11 and B.13: 256 bits or more."""

_SIGNATURES = (
    *("ECDSA+SHA256", "ECDSA+SHA384", "ECDSA+SHA512", "ed25519", "ed448"),
    *("rsa_pss_rsae_sha256", "rsa_pss_rsae_sha384", "rsa_pss_rsae_sha512"),
    *("rsa_pss_pss_sha256", "rsa_pss_pss_sha384", "rsa_pss_pss_sha512"),
    *("RSA+SHA256", "RSA+SHA384", "RSA+SHA512"),
)
"""RFC 9325 4.2.1: SHA-256 or better; RFC 9155 forbids MD5 and SHA-1."""


@dataclass(frozen=True, slots=True)
class Profile:
    """The parameters that one profile permits, by OpenSSL's names and in order of preference.

    Attributes:
        section: Section of PS3.15 that defines the profile.
        ciphers: Suites for TLS 1.2.
        suites: Suites for TLS 1.3.
        groups: Groups for ECDHE, in both versions.
        signatures: Signature algorithms of handshakes.
        maximum: The newest permitted version.
        is_retired: Whether the profile is retired from the standard. A node warns of it at each start.
    """

    section: str
    ciphers: tuple[str, ...]
    suites: tuple[str, ...] = _TLS13
    groups: tuple[str, ...] = _GROUPS
    signatures: tuple[str, ...] = _SIGNATURES
    maximum: int = NEWEST
    is_retired: bool = False


PROFILES: Final = {
    "rfc8996": Profile("PS3.15 B.12", _ECDHE_GCM),
    "rfc8996-modified": Profile(
        "PS3.15 B.13",
        (*_ECDHE_GCM, *_MODIFIED),
        suites=(*_TLS13, "TLS_AES_128_CCM_SHA256", "TLS_AES_128_CCM_8_SHA256"),
    ),
    # B.9 permits the fallback to the AES profile (B.3), whose only suite is AES128-SHA. That profile includes
    # TLS 1.0 and 1.1, but BCP 195 now forbids them (RFC 8996). TLS 1.2 is therefore the minimum here.
    "bcp195": Profile("PS3.15 B.9", (*_ECDHE_GCM, *_DHE_GCM, "AES128-SHA"), is_retired=True),
    "bcp195-nd": Profile("PS3.15 B.10", (*_ECDHE_GCM, *_DHE_GCM), is_retired=True),
    "bcp195-ex": Profile("PS3.15 B.11", (*_ECDHE_GCM, *_DHE_GCM), maximum=TLS_1_2, is_retired=True),
}


def apply_profile(context: Context, tls: TLS) -> None:
    """Apply the profile of a section to a context.

    Raises:
        ConfigError: OpenSSL supports none of the configured ciphers.
    """
    profile = PROFILES.get(tls.profile)
    if profile is None:
        _apply_custom(context, tls)
        return
    context.set_versions(TLS_1_2, profile.maximum)  # RFC 9325 3.1.1
    context.set_ciphers(":".join(("@SECLEVEL=2", *profile.ciphers)))
    context.restrict(":".join(profile.suites), ":".join(profile.groups), ":".join(profile.signatures))


def _apply_custom(context: Context, tls: TLS) -> None:
    """Apply version and ciphers of the section. Other parameters keep OpenSSL's defaults."""
    minimum, ciphers = TLS_VERSIONS[tls.minimum_version or "TLSv1.2"], tls.ciphers or ":".join(_ECDHE_GCM)
    if minimum < TLS_1_2 and not tls.ciphers:
        ciphers = "DEFAULT@SECLEVEL=0"  # the only level where OpenSSL 3 has TLS 1.0 and 1.1, which sign SHA-1
    context.set_versions(minimum)
    try:
        context.set_ciphers(ciphers)
    except ssl.SSLError:
        raise ConfigError(["ciphers: OpenSSL finds no cipher in it; write an OpenSSL cipher list"]) from None


def list_weaknesses(tls: TLS) -> list[tuple[str, str, str]]:
    """List the weaknesses of a section, each as key, cause and remedy."""
    profile = PROFILES.get(tls.profile)
    if profile is not None:
        if not profile.is_retired:
            return []
        cause = f'"{tls.profile}" ({profile.section}) is retired from the DICOM standard'
        return [("profile", cause, 'use "rfc8996" where all peers can')]
    found = []
    remedy = "use it in a closed network only, on a listener of its own"
    if tls.minimum_version in {"TLSv1", "TLSv1.1"}:
        cause = f"{tls.minimum_version} is broken, and forbidden by RFC 8996"
        found.append(("minimum_version", cause, remedy))
    if weak := _weak_ciphers(tls):
        more = f" and {len(weak) - 3} more" if len(weak) > 3 else ""
        lack = "without forward secrecy, AEAD or a certificate, against RFC 9325 4.2"
        cause = f"{', '.join(weak[:3])}{more}: {lack}"
        found.append(("ciphers", cause, remedy))
    return found


def _weak_ciphers(tls: TLS) -> list[str]:
    context = Context(is_server=True)
    try:
        _apply_custom(context, tls)
    except ConfigError:
        return []  # reported when the section is read
    return [suite.name for suite in context.list_ciphers() if not _is_strong(suite)]


def _is_strong(suite: CipherSuite) -> bool:
    forward_secret = suite.key_exchange in {"kx-any", "kx-ecdhe", "kx-dhe"}  # any: TLS 1.3
    return forward_secret and suite.is_aead and suite.authentication != "auth-null"
