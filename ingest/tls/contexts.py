"""TLS contexts for both roles, from a `[tls.NAME]`; the profiles of PS3.15 Annex B.

`ssl.SSLContext` is used directly: `ssl.create_default_context` would trust the system's public authorities,
which have no say in a hospital, and write session keys to $SSLKEYLOGFILE.
"""

import ssl
from pathlib import Path

from ext import tls_settings
from ingest.config.model import TLS
from ingest.errors import ConfigError
from ingest.tls import crl, pem, profiles

_VERIFY = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}
_PASSWORD_MAX = 1024
"""Bytes; Python's limit for the password of a key."""


def server_context(tls: TLS) -> ssl.SSLContext:
    """The context of a listener (SCP).

    Raises:
        ConfigError: A file cannot be used; the message names it and what to do.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # A resumed session is not verified again, so a certificate that was revoked since would still be let in.
    context.num_tickets = 0
    tls_settings.forget_sessions(context)
    _set_up(context, tls)
    if tls.certificate is None:
        raise ConfigError(
            ["certificate: a listener needs one; name a PEM file (`ingest certs new` makes one)"]
        )
    return context


def client_context(tls: TLS) -> ssl.SSLContext:
    """The context of a sender (SCU). With `check_server_name`, wrap with `server_hostname`.

    Raises:
        ConfigError: A file cannot be used; the message names it and what to do.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = tls.check_server_name
    _set_up(context, tls)
    return context


def _set_up(context: ssl.SSLContext, tls: TLS) -> None:
    # Trusting a certificate that is not self-signed (a modality's own, from another authority) must work, as
    # it does in DCMTK and Orthanc; and what modalities make lacks extensions that RFC 5280 asks for, so the
    # strict checks, which Python 3.13 sets in its default contexts, stay off whatever the default becomes.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    profiles.apply(context, tls)
    if tls.certificate is not None:
        _load_pair(context, tls.certificate, tls.private_key or tls.certificate, tls.password_file)
    if tls.peer_certificate != "none" and not tls.trusted:
        raise ConfigError(
            ['trusted: nothing to verify peers with; name PEM bundles, or peer_certificate = "none"']
        )
    for path in tls.trusted:
        _load_trusted(context, path)
    context.verify_mode = _VERIFY[tls.peer_certificate]
    crl.load(context, tls)


def _load_pair(context: ssl.SSLContext, certificate: Path, key: Path, password_file: Path | None) -> None:
    def password() -> bytes:
        # Without it OpenSSL would ask on the terminal.
        if password_file is None:
            raise ConfigError([f"{key}: is encrypted; name the file with its password in password_file"])
        return read_password(password_file)

    try:
        context.load_cert_chain(certificate, key, password)
    except ssl.SSLError as error:
        raise ConfigError([_diagnose(certificate, key, password_file, error)]) from None
    except OSError as error:
        # load_cert_chain does not say which of the two files it could not open.
        raise ConfigError(
            [_unreadable(certificate) or _unreadable(key) or f"{certificate}: {error}"]
        ) from None


def read_password(path: Path) -> bytes:
    """The first line of a password file.

    Raises:
        ConfigError: It cannot be read, is empty, or is longer than a key's password may be.
    """
    try:
        password = path.read_bytes().partition(b"\n")[0].removesuffix(b"\r")
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}; let this user read the password file"]) from None
    if not 0 < len(password) <= _PASSWORD_MAX:
        raise ConfigError(
            [f"{path}: holds no password of 1 to {_PASSWORD_MAX} bytes; write it on the first line"]
        )
    return password


def _unreadable(path: Path) -> str | None:
    try:
        path.read_bytes()
    except OSError as error:
        return f"{path}: {error.strerror}; name a file that this user may read"
    return None


def _diagnose(certificate: Path, key: Path, password_file: Path | None, error: ssl.SSLError) -> str:
    """What is wrong with a pair that OpenSSL refused; its own words do not say which file it means."""
    # Imported here, because only a pair that does not fit needs it.
    from cryptography import x509  # noqa: PLC0415 - see above
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415 - see above

    try:
        chain = x509.load_pem_x509_certificates(certificate.read_bytes())
    except ValueError:
        return f"{certificate}: {pem.not_pem(certificate, 'certificate')}"
    try:
        private = load_pem_private_key(
            key.read_bytes(), read_password(password_file) if password_file else None
        )
    except (
        TypeError
    ):  # a password for a key that has none; load_cert_chain does not mind, so it is not the cause
        private = load_pem_private_key(key.read_bytes(), None)
    except ValueError:
        if password_file is not None and b"ENCRYPTED" in key.read_bytes():
            return f"{key}: cannot be decrypted with the password in {password_file}; correct the password"
        return f"{key}: {pem.not_pem(key, 'private key')}"
    own = private.public_key()
    if chain[0].public_key() != own:
        if any(c.public_key() == own for c in chain[1:]):
            return f"{certificate}: does not begin with the certificate of {key}; put it before its issuers"
        return (
            f"{certificate}: does not belong to the private key {key}; name the two that were made together"
        )
    remedy = "make a pair with at least RSA 2048 or EC P-256"
    return f"{certificate}: OpenSSL refuses it ({error.reason or error}); {remedy}"


def _load_trusted(context: ssl.SSLContext, path: Path) -> None:
    """Trust every certificate in a bundle, or in every file of a folder whatever its name."""
    found = False
    for file, blocks in pem.blocks(path):
        try:
            context.load_verify_locations(cadata="\n".join(blocks))
        except ssl.SSLError as error:
            cause = f"a certificate in it cannot be read ({error.reason or error})"
            raise ConfigError([f"{file}: {cause}; export it again as PEM"]) from None
        found = True
    if not found:
        raise ConfigError([f"{path}: {pem.not_pem(path, 'certificate')}"])
