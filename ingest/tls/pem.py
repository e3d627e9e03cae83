"""Where the PEM certificates are: in a bundle, or in every file of a folder."""

import re
from collections.abc import Iterator
from pathlib import Path

from ingest.errors import ConfigError

_BLOCK = re.compile(rb"-----BEGIN ((?:X509 |TRUSTED )?CERTIFICATE)-----[A-Za-z0-9+/=\s]+?-----END \1-----")


def blocks(path: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each file with certificates at `path`, whatever its name, and its certificates as PEM text.

    What stands around them (comments in any encoding, private keys) is left out.

    Raises:
        ConfigError: A file or folder cannot be read; the message names it.
    """
    for file in files(path):
        try:
            found = [block.group().decode("ascii") for block in _BLOCK.finditer(file.read_bytes())]
        except OSError as error:
            raise ConfigError([f"{file}: {error.strerror}; let this user read it"]) from None
        if found:
            yield file, found


def not_pem(path: Path, what: str) -> str:
    """Cause and remedy for a file in which no `what` was found."""
    if path.is_dir():
        return f"holds no file with a {what} in PEM; put one there"
    if path.read_bytes()[:1] == b"\x30":  # an ASN.1 SEQUENCE
        return "is DER or PKCS#12, not PEM; convert it (`openssl x509 -inform DER`, `openssl pkcs12`)"
    return f"holds no {what} in PEM; name the file that does"


def files(path: Path) -> list[Path]:
    """The file itself, or every file of a folder.

    Raises:
        ConfigError: The folder cannot be read; the message names it.
    """
    try:
        return sorted(entry for entry in path.iterdir() if entry.is_file()) if path.is_dir() else [path]
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}; let this user read the folder"]) from None
