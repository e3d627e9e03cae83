"""The key container: the keys and certificates of one file, as `ingest.tls.keys.formats` reads them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes


@dataclass(frozen=True, slots=True)
class KeyContainer:
    """The keys and certificates of one file.

    Attributes:
        key_format: "PEM", "DER", "PKCS#7" or "PKCS#12". "JKS" is Java's old format, which is recognized but
            not read. "" means that the file holds neither keys nor certificates.
        certificates: Certificates as PEM text. In PKCS#12 the certificate of the key comes first, then its
            issuers, then the others. PKCS#7 has no order: a certificate that issued none of the others comes
            first, then its issuers.
        keys: Private keys as PEM. Keys from PEM and DER stay as they are, possibly encrypted.
        certificate_aliases: PKCS#12 only: the alias of each certificate, or "".
        key_aliases: PKCS#12 only: the alias of each key, or "".
        was_encrypted: PKCS#12 only: a password was needed to open the file.
    """

    key_format: str
    certificates: tuple[str, ...] = ()
    keys: tuple[bytes, ...] = ()
    certificate_aliases: tuple[str, ...] = ()
    key_aliases: tuple[str, ...] = ()
    was_encrypted: bool = False

    def explain_missing(self, what: str) -> str:
        """Return cause and remedy for a file that lacks the wanted item, such as "private key"."""
        if self.key_format == "JKS":
            return (
                "is a Java key store of the old format (JKS); convert it "
                "(`keytool -importkeystore -srckeystore OLD -destkeystore NEW.p12 -deststoretype PKCS12`)"
            )
        if self.certificates and not self.keys:
            return f"holds certificates but no {what}; name the file that does"
        if self.keys and not self.certificates:
            return f"holds a private key but no {what}; name the file that does"
        return f"holds no {what}, neither PEM nor DER; name the file that does"


def is_encrypted(key: bytes) -> bool:
    """Tell whether a PEM key needs a password: PKCS#8 (RFC 7468 11) or traditional (RFC 1421 4.6.1.1)."""
    return b"ENCRYPTED" in key


def order_chain(first: "x509.Certificate", others: Iterable["x509.Certificate"]) -> list["x509.Certificate"]:
    """Return a certificate and its issuers among `others`, each before its own issuer (RFC 8446 4.4.2)."""
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - PEM needs none of it

    from ingest.tls.identity import UNREADABLE  # noqa: PLC0415 - as above

    found, left = [first], [each for each in others if each != first]
    while True:
        for each in left:
            try:
                found[-1].verify_directly_issued_by(each)
            except (InvalidSignature, *UNREADABLE):
                continue
            found.append(each)
            left.remove(each)
            break
        else:
            return found


def encode_key_unencrypted(key: "PrivateKeyTypes") -> bytes:
    """Encode a key as unencrypted PKCS#8 PEM. The result must stay in memory."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - as above

    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
