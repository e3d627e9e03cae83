"""Certificate revocation lists (RFC 5280 5): read in whatever form a site has them, checked by OpenSSL.

OpenSSL looks them up while it verifies a peer in the handshake, so that who is revoked gets the alert that
says so. How it verifies is in `ingest.ext.tls_verification`.
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
"""What every DER list begins with."""

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
"""By OpenSSL's verify code (x509_vfy.h): what to do about a peer that was refused for want of a good list."""


@dataclass(frozen=True, slots=True)
class Trusted:
    """One certificate of `trusted`.

    Attributes:
        index: Of its entry in `trusted`.
        pem: As `ingest.tls.keys.formats` has it.
        certificate: None where only OpenSSL can read it, or its names; then no list is looked into for it.
    """

    index: int
    file: Path
    pem: str
    certificate: "Certificate | None"


def load(context: Context, tls: TLS) -> None:
    """Have a context refuse revoked peers, as the section says; without a list nothing is checked.

    The whole chain is checked but for the certificate that stands in `trusted`, which needs no list; see
    `revoked` for what must not stand there.

    Raises:
        ConfigError: A list cannot be read.
    """
    if not tls.crl:
        return
    from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415 - as below

    found = [each.public_bytes(Encoding.DER) for path in tls.crl for _, each in lists(path)]
    context.check_revocation(
        found, allow_missing=tls.crl_missing == "allow", allow_expired=tls.crl_expired == "allow"
    )


def lists(path: Path) -> Iterator[tuple[Path, "CertificateRevocationList"]]:
    """The lists in a file, or in every file of a folder whatever its name, PEM or DER, with where each was.

    Raises:
        ConfigError: A file cannot be read, or there is no list; the message names it.
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


def trusted(tls: TLS) -> list[Trusted]:
    """Every certificate in `trusted`.

    Raises:
        ConfigError: A file cannot be read.
    """
    from cryptography import x509  # noqa: PLC0415 - only who has lists needs it

    from ingest.tls.identity import UNREADABLE  # noqa: PLC0415 - as above

    found = []
    for index, path in enumerate(tls.trusted):
        for file, texts in formats.iterate_certificates(path, tls.password_file):
            for pem in texts:
                certificate = None
                with contextlib.suppress(*UNREADABLE):
                    read = x509.load_pem_x509_certificate(pem.encode())
                    for name in (read.subject, read.issuer):  # read when asked for only
                        name.public_bytes()
                    certificate = read
                found.append(Trusted(index, file, pem, certificate))
    return found


def revoked(tls: TLS) -> list[tuple[Trusted, str]]:
    """What must not be trusted although it stands in `trusted`, each with the reason.

    OpenSSL ends a chain at the first certificate that it trusts, such as an authority between a root and its
    peers when a site trusts both, and asks no list about that. So what a list of its issuer names is found
    here, and with it what was issued by that alone. Where the issuer is not in `trusted`, nothing tells whose
    signature its list should have: any list in its name is believed.

    Raises:
        ConfigError: A file cannot be read.
    """
    from ingest.tls.identity import UNREADABLE  # noqa: PLC0415 - as above

    if not tls.crl:
        return []
    named: dict[str, list[tuple[Path, CertificateRevocationList]]] = {}
    for file, each in (found for path in tls.crl for found in lists(path)):
        with contextlib.suppress(*UNREADABLE):  # OpenSSL may know its issuer all the same
            if not unused(each):
                named.setdefault(_alike(each.issuer), []).append((file, each))
    known = trusted(tls)
    readable = {each.pem: each.certificate for each in known if each.certificate is not None}
    issuers = _issuers(readable)
    out: dict[str, str] = {}
    for pem, certificate in readable.items():
        candidates = named.get(_alike(certificate.issuer), []) if pem not in issuers[pem] else []
        for file, each in candidates:
            if _names(each, certificate, issuers[pem].values()):
                out[pem] = f"the list in {file} names it"
    while more := [
        pem for pem, those in issuers.items() if pem not in out and those and those.keys() <= out.keys()
    ]:
        out |= dict.fromkeys(more, "its issuer is revoked")
    return [(each, out[each.pem]) for each in known if each.pem in out]


def unused(found: "CertificateRevocationList") -> str:
    """Why OpenSSL takes no notice of a list, as we use it; "" if it does."""
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


def doubts(found: "CertificateRevocationList", expired: str, now: datetime) -> Iterator[tuple[str, str]]:
    """What is to be said about a list, and the remedy; `expired` is the policy `crl_expired`."""
    from ingest.tls.identity import UNREADABLE  # noqa: PLC0415 - as above

    begin, end = found.last_update_utc, found.next_update_utc
    try:
        issuer = found.issuer.rfc4514_string()
    except UNREADABLE:
        issuer = "an issuer whose name cannot be read"
        cause = f"the CRL of {issuer} is used for peers, but not for what stands in trusted"
        yield cause, "remove from trusted what it names"
    if why := unused(found):
        yield f"the CRL of {issuer} is not used: it {why}", "name the complete list of that issuer"
    if begin > now:
        cause = f"the CRL of {issuer} is not valid before {begin:%Y-%m-%d %H:%M} UTC"
        yield cause, "correct the clock, or add the list that is valid now"
    # RFC 5280 5.1.2.5: a new list is to be there by nextUpdate
    if end is not None and end <= now:
        cause = f"a new CRL of {issuer} was due on {end:%Y-%m-%d %H:%M} UTC"
        yield cause, f'fetch it; crl_expired = "{expired}" decides about its peers until then'


def _issuers(known: Mapping[str, "Certificate"]) -> dict[str, dict[str, "Certificate"]]:
    """By the PEM of each who of them issued it, by theirs; itself where it is self-signed."""
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


def _alike(name: "Name") -> str:
    """Equal for names that OpenSSL takes for the same (RFC 5280 7.1), whatever their case and blanks."""
    return " ".join(name.rfc4514_string().casefold().split())


def _names(
    found: "CertificateRevocationList", certificate: "Certificate", issuers: Collection["Certificate"]
) -> bool:
    """Whether a list in the name of its issuer names a certificate, and is signed by one of those, if any."""
    if found.get_revoked_certificate_by_serial_number(certificate.serial_number) is None:
        return False
    return not issuers or any(_signed(found, issuer) for issuer in issuers)


def _signed(found: "CertificateRevocationList", issuer: "Certificate") -> bool:
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - as above

    from ingest.tls.identity import UNREADABLE  # noqa: PLC0415 - as above

    try:
        return found.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]  # says TypeError
    except UnsupportedAlgorithm:  # OpenSSL may know it
        return True
    except UNREADABLE:
        return False


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
