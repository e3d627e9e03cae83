"""Certificate revocation lists (RFC 5280 5): read in whatever form a site has them, checked by OpenSSL.

OpenSSL looks them up while it verifies a peer in the handshake, so that who is revoked gets the alert that
says so. Python's `ssl` lacks two things for it. A list comes into a context from a file only: it is given one
that is in memory. And peers of whose issuer there is no list, or only an old one, can be let in by
`ext.tls_settings` alone.
"""

import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ext import tls_settings
from ingest.config.model import TLS
from ingest.errors import ConfigError
from ingest.tls import files, forms, material

if TYPE_CHECKING:
    from cryptography.x509 import CertificateRevocationList

_BLOCK = re.compile(rb"-----BEGIN X509 CRL-----[A-Za-z0-9+/=\s]+?-----END X509 CRL-----")
_SEQUENCE = b"\x30"
"""What every DER list begins with."""

REMEDIES: Final = {
    3: 'there is no CRL of its issuer: add one to crl, or set crl_missing = "allow"',
    8: "the CRL of its issuer is not signed by it: fetch it again",
    12: 'the CRL of its issuer is past its nextUpdate: renew it, or set crl_expired = "allow"',
}
"""By OpenSSL's verify code (x509_vfy.h): what to do about a peer that was refused for want of a good list."""


def load(context: ssl.SSLContext, tls: TLS) -> None:
    """Have a context refuse revoked peers, as the section says; without a list nothing is checked.

    The whole chain is checked but for the certificate that stands in `trusted`, which needs no list.

    Raises:
        ConfigError: A list cannot be read, or the policy cannot be followed with this Python.
    """
    if not tls.crl:
        return
    _give(context, [found for path in tls.crl for _, found in lists(path)])
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    if not tls_settings.forgive_crls(context, tls.crl_missing == "allow", tls.crl_expired == "allow"):
        cause = "crl: the OpenSSL of this Python cannot be reached"
        raise ConfigError([f"{cause}; use a Python that is linked with it as a library, or leave crl empty"])


def lists(path: Path) -> Iterator[tuple[Path, "CertificateRevocationList"]]:
    """The lists in a file, or in every file of a folder whatever its name, PEM or DER, with where each was.

    Raises:
        ConfigError: A file cannot be read, or there is no list; the message names it.
    """
    found = False
    for file in forms.files(path):
        try:
            content = files.read(file)
        except OSError as error:
            raise ConfigError([f"{file}: {error.strerror}; let this user read it"]) from None
        for each in _parse(file, content, alone=file == path):
            found = True
            yield file, each
    if not found:
        raise ConfigError([f"{path}: holds no CRL, neither PEM nor DER; name the file or folder that does"])


def _parse(file: Path, content: bytes, *, alone: bool) -> Iterator["CertificateRevocationList"]:
    from cryptography import x509  # noqa: PLC0415 - only who has lists needs it

    blocks = _BLOCK.findall(content)
    try:
        if blocks or not content.startswith(_SEQUENCE):
            yield from map(x509.load_pem_x509_crl, blocks)
        else:
            yield x509.load_der_x509_crl(content)
    except ValueError:
        if blocks or alone:  # what else is in a folder may be a certificate
            raise ConfigError([f"{file}: its CRL cannot be read; fetch it again"]) from None


def _give(context: ssl.SSLContext, found: list["CertificateRevocationList"]) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415 - as above

    with material.in_memory(b"".join(each.public_bytes(Encoding.PEM) for each in found)) as path:
        context.load_verify_locations(cafile=path)
