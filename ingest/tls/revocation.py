"""Certificate revocation lists (CRLs, RFC 5280 5): read as PEM or DER, and checked by OpenSSL.

OpenSSL checks the CRLs while it verifies a peer in the handshake. A revoked peer therefore gets the alert
that names the reason. `ingest.ext.tls_verification` contains the rules of the verification.
"""

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ingest.config.model import TLS
from ingest.errors import ConfigError
from ingest.ext.tls_context import Context
from ingest.tls.keys import files, formats

if TYPE_CHECKING:
    from cryptography.x509 import Certificate, CertificateRevocationList, Name

_BLOCK = re.compile(rb"-----BEGIN X509 CRL-----[A-Za-z0-9+/=\s]+?-----END X509 CRL-----")
_SEQUENCE = b"\x30"
"""The first byte of each CRL in DER."""

REMEDIES: Final = {
    3: 'there is no CRL of its issuer: add one to crl, or set crl_missing = "allow"',
    8: "the CRL of its issuer is not signed by it: fetch it again",
    11: "the CRL of its issuer is not valid yet: correct the clock, or add the list that is valid now",
    12: 'the CRL of its issuer is past its nextUpdate: renew it, or set crl_expired = "allow"',
    33: "who signed the CRL of its issuer is not in its chain: add a CRL that the issuer itself signed",
    35: "its issuer has a key usage without cRLSign: have the issuer's certificate issued again with it",
    36: "the CRL of its issuer has a critical extension that OpenSSL does not know: add one without it",
    44: "the CRL of its issuer is for others (issuingDistributionPoint): add the one for its kind",
}
"""Remedy by OpenSSL's verify code (x509_vfy.h), if a peer was refused for lack of a usable CRL."""


@dataclass(frozen=True, slots=True)
class TrustedCertificate:
    """One certificate of the setting `trusted`.

    Attributes:
        index: Index of the entry in `trusted` that contains the certificate.
        pem: The certificate as `ingest.tls.keys.formats` returns it.
        certificate: The parsed certificate. None if only OpenSSL can read it or its names: such a certificate
            is looked up in no CRL.
    """

    index: int
    file: Path
    pem: str
    certificate: "Certificate | None"


def load_lists(context: Context, tls: TLS) -> None:
    """Make a context refuse revoked peers. Without a CRL in the section, nothing is checked.

    The whole chain is checked except for the trust anchor, which needs no CRL. `find_revoked_trusted` finds
    the trust anchors that are revoked themselves.

    Raises:
        ConfigError: A CRL cannot be read.
    """
    if not tls.crl:
        return
    from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415 - as below

    found = [each.public_bytes(Encoding.DER) for path in tls.crl for _, each in read_lists(path)]
    context.check_revocation(
        found, allow_missing=tls.crl_missing == "allow", allow_expired=tls.crl_expired == "allow"
    )


def read_lists(path: Path) -> Iterator[tuple[Path, "CertificateRevocationList"]]:
    """Yield each CRL of a file, or of all files of a folder, together with the path of its file.

    Raises:
        ConfigError: A file cannot be read, or the path contains no CRL. The message names it.
    """
    found = False
    for file in formats.list_files(path):
        try:
            content = files.read_regular_file(file)
        except OSError as error:
            raise ConfigError([f"{file}: {error.strerror}; let this user read it"]) from None
        for each in _parse(file, content, alone=file == path):
            found = True
            yield file, each
    if not found:
        raise ConfigError([f"{path}: holds no CRL, neither PEM nor DER; name the file or folder that does"])


def read_trusted(tls: TLS) -> list[TrustedCertificate]:
    """Read all certificates of the setting `trusted`.

    Raises:
        ConfigError: A file cannot be read.
    """
    from cryptography import x509  # noqa: PLC0415 - needed only if there are CRLs

    from ingest.tls.identity import UNREADABLE  # noqa: PLC0415 - as above

    found = []
    for index, path in enumerate(tls.trusted):
        for file, texts in formats.iterate_certificates(path, tls.password_file):
            for pem in texts:
                certificate = None
                with contextlib.suppress(*UNREADABLE):
                    read = x509.load_pem_x509_certificate(pem.encode())
                    for name in (read.subject, read.issuer):  # names are parsed on access only
                        name.public_bytes()
                    certificate = read
                found.append(TrustedCertificate(index, file, pem, certificate))
    return found


def find_revoked_trusted(tls: TLS) -> list[tuple[TrustedCertificate, str]]:
    """Find the certificates of `trusted` that are revoked, each with the reason.

    OpenSSL ends a chain at the first trusted certificate and checks no CRL for it. That certificate may be an
    intermediate authority, if a site trusts both the root and the authority. This function therefore finds
    trusted certificates that a CRL of their issuer names, and those that only revoked authorities have
    issued. If the issuer is not in `trusted`, the signature of its CRL cannot be checked: each CRL with the
    issuer's name counts.

    Raises:
        ConfigError: A file cannot be read.
    """
    from ingest.tls.identity import UNREADABLE  # noqa: PLC0415 - as above

    if not tls.crl:
        return []
    named: dict[str, list[tuple[Path, CertificateRevocationList]]] = {}
    for file, each in (found for path in tls.crl for found in read_lists(path)):
        with contextlib.suppress(*UNREADABLE):  # OpenSSL may still be able to read the issuer
            if not explain_unused_list(each):
                named.setdefault(_normalize_name(each.issuer), []).append((file, each))
    known = read_trusted(tls)
    readable = {each.pem: each.certificate for each in known if each.certificate is not None}
    issuers = _find_issuers(readable)
    out: dict[str, str] = {}
    for pem, certificate in readable.items():
        candidates = named.get(_normalize_name(certificate.issuer), []) if pem not in issuers[pem] else []
        for file, each in candidates:
            if _lists_certificate(each, certificate, issuers[pem].values()):
                out[pem] = f"the list in {file} names it"
    while more := [
        pem for pem, those in issuers.items() if pem not in out and those and those.keys() <= out.keys()
    ]:
        out |= dict.fromkeys(more, "its issuer is revoked")
    return [(each, out[each.pem]) for each in known if each.pem in out]


def explain_unused_list(found: "CertificateRevocationList") -> str:
    """Explain why OpenSSL ignores a CRL. Return "" if OpenSSL uses it."""
    from cryptography import x509  # noqa: PLC0415 - as above

    from ingest.tls.identity import UNREADABLE  # noqa: PLC0415 - as above

    with contextlib.suppress(*UNREADABLE):
        for extension in found.extensions:
            match extension.value:
                case x509.DeltaCRLIndicator():
                    return "has only what changed since another (deltaCRLIndicator)"
                case x509.IssuingDistributionPoint(indirect_crl=True):
                    return "is also about what others issued (indirectCRL)"
                case x509.IssuingDistributionPoint(only_some_reasons=reasons) if reasons:
                    return "is about some reasons only (onlySomeReasons)"
    return ""


def find_list_doubts(
    found: "CertificateRevocationList", expired: str, now: datetime
) -> Iterator[tuple[str, str]]:
    """Yield the cause and the remedy of each doubt about a CRL. `expired` is the policy `crl_expired`."""
    from ingest.tls.identity import UNREADABLE  # noqa: PLC0415 - as above

    begin, end = found.last_update_utc, found.next_update_utc
    try:
        issuer = found.issuer.rfc4514_string()
    except UNREADABLE:
        issuer = "an issuer whose name cannot be read"
        cause = f"the CRL of {issuer} is used for peers, but not for what stands in trusted"
        yield cause, "remove from trusted what it names"
    if why := explain_unused_list(found):
        yield f"the CRL of {issuer} is not used: it {why}", "name the complete list of that issuer"
    if begin > now:
        cause = f"the CRL of {issuer} is not valid before {begin:%Y-%m-%d %H:%M} UTC"
        yield cause, "correct the clock, or add the list that is valid now"
    # RFC 5280 5.1.2.5: the issuer publishes the next CRL by nextUpdate.
    if end is not None and end <= now:
        cause = f"a new CRL of {issuer} was due on {end:%Y-%m-%d %H:%M} UTC"
        yield cause, f'fetch it; crl_expired = "{expired}" decides about its peers until then'


def _find_issuers(known: Mapping[str, "Certificate"]) -> dict[str, dict[str, "Certificate"]]:
    """Map each certificate to its known issuers, by PEM. A self-signed certificate is its own issuer."""
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - as above

    from ingest.tls.identity import UNREADABLE  # noqa: PLC0415 - as above

    subjects: dict[bytes, list[str]] = {}
    for pem, each in known.items():
        subjects.setdefault(each.subject.public_bytes(), []).append(pem)
    found: dict[str, dict[str, Certificate]] = {pem: {} for pem in known}
    for pem, each in known.items():
        for issuer in subjects.get(each.issuer.public_bytes(), []):
            with contextlib.suppress(InvalidSignature, *UNREADABLE):
                each.verify_directly_issued_by(known[issuer])
                found[pem][issuer] = known[issuer]
    return found


def _normalize_name(name: "Name") -> str:
    """Normalize case and blanks of a name, which OpenSSL ignores in comparisons (RFC 5280 7.1)."""
    return " ".join(name.rfc4514_string().casefold().split())


def _lists_certificate(
    found: "CertificateRevocationList", certificate: "Certificate", issuers: Collection["Certificate"]
) -> bool:
    """Whether a CRL names a certificate and, if `issuers` are known, is signed by one of them."""
    if found.get_revoked_certificate_by_serial_number(certificate.serial_number) is None:
        return False
    return not issuers or any(_is_signed_by(found, issuer) for issuer in issuers)


def _is_signed_by(found: "CertificateRevocationList", issuer: "Certificate") -> bool:
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - as above

    from ingest.tls.identity import UNREADABLE  # noqa: PLC0415 - as above

    try:
        return found.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]  # raises TypeError
    except UnsupportedAlgorithm:  # OpenSSL may support the algorithm
        return True
    except UNREADABLE:
        return False


def _parse(file: Path, content: bytes, *, alone: bool) -> Iterator["CertificateRevocationList"]:
    from cryptography import x509  # noqa: PLC0415 - needed only if there are CRLs

    blocks = _BLOCK.findall(content)
    try:
        if blocks or not content.startswith(_SEQUENCE):
            yield from map(x509.load_pem_x509_crl, blocks)
        else:
            yield x509.load_der_x509_crl(content)
    except ValueError:
        if blocks or alone:  # another file of a folder may be a certificate
            raise ConfigError([f"{file}: its CRL cannot be read; fetch it again"]) from None
