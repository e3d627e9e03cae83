"""What a file of keys and certificates holds, once it is read; `ingest.tls.keys.formats` reads it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes


@dataclass(frozen=True, slots=True)
class Held:
    """What one file holds.

    Attributes:
        form: "PEM", "DER", "PKCS#7", "PKCS#12"; "JKS" is Java's old form, which is not read; "" is none.
        certificates: As PEM text. Of PKCS#12: the key's own first, its issuers next, then the others. Of
            PKCS#7, which has no order: one that has issued none of the others first, its issuers next.
        keys: Private keys as PEM; those of PEM and DER are as they stand, maybe encrypted.
        names: Of PKCS#12: the alias of each certificate, or "".
        aliases: Of PKCS#12: the alias of each key, or "".
        locked: Of PKCS#12: whether a password opened it.
    """

    form: str
    certificates: tuple[str, ...] = ()
    keys: tuple[bytes, ...] = ()
    names: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    locked: bool = False

    def lacks(self, what: str) -> str:
        """Cause and remedy for who looked for a `what` here in vain."""
        if self.form == "JKS":
            return (
                "is a Java key store of the old form; convert it "
                "(`keytool -importkeystore -srckeystore OLD -destkeystore NEW.p12 -deststoretype PKCS12`)"
            )
        if self.certificates and not self.keys:
            return f"holds certificates but no {what}; name the file that does"
        if self.keys and not self.certificates:
            return f"holds a private key but no {what}; name the file that does"
        return f"holds no {what}, neither PEM nor DER; name the file that does"


def is_encrypted(key: bytes) -> bool:
    """Whether a key in PEM needs a password: PKCS#8 (RFC 7468 11) or traditional (RFC 1421 4.6.1.1)."""
    return b"ENCRYPTED" in key


def with_issuers(first: "x509.Certificate", others: Iterable["x509.Certificate"]) -> list["x509.Certificate"]:
    """A certificate, then its issuers among `others`, each before its own issuer (RFC 8446 4.4.2)."""
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


def plain(key: "PrivateKeyTypes") -> bytes:
    """As PEM, PKCS#8, not encrypted: for memory only."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - as above

    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
