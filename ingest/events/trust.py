"""TLS contexts of Python's `ssl` module for web and mail servers, with the trust of a `[tls.NAME]` section.

DICOM connections use OpenSSL through `ext/`, because the standard demands profiles and answers to failed
handshakes that the `ssl` module does not have. A client of a web or mail server needs none of that: httpcore
and smtplib take contexts of the `ssl` module, so this module makes them. No public authority is trusted,
unless the section names the file of the operating system.
"""

import ssl
from pathlib import Path

from ingest.config.model import TLS
from ingest.errors import ConfigError
from ingest.tls import revocation
from ingest.tls.keys import formats, loading
from ingest.tls.keys.files import read_password


def create_client_context(tls: TLS) -> ssl.SSLContext:
    """Make a context that verifies certificate and name of a server, with TLS 1.2 or newer.

    A CRL of the section is used strictly, regardless of `crl_missing` and `crl_expired`: a server without a
    valid CRL of its issuer is not trusted.

    Raises:
        ConfigError: A file cannot be used. The message names the file and the remedy.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # As for DICOM: a chain ends at the first trusted certificate, also if that one is no root.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    _trust(context, tls)
    _load_lists(context, tls)
    _load_pair(context, tls)
    return context


def _trust(context: ssl.SSLContext, tls: TLS) -> None:
    revoked = {each.pem for each, _ in revocation.find_revoked_trusted(tls)}
    for path in tls.trusted:
        for file, found in formats.iterate_certificates(path, tls.password_file):
            taken = "".join(each for each in found if each not in revoked)
            try:
                if taken:
                    context.load_verify_locations(cadata=taken)
            except ssl.SSLError as error:
                cause = f"a certificate in it cannot be read ({error.reason or error})"
                raise ConfigError([f"{file}: {cause}; export it again as PEM"]) from None


def _load_lists(context: ssl.SSLContext, tls: TLS) -> None:
    if not tls.crl:
        return
    from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415 - only lists need it

    found = b"".join(
        each.public_bytes(Encoding.PEM) for path in tls.crl for _, each in revocation.read_lists(path)
    )
    if found:
        with loading.in_memory(found) as name:
            context.load_verify_locations(cafile=name)
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN


def _load_pair(context: ssl.SSLContext, tls: TLS) -> None:
    found = loading.read_pair(tls)
    if found is None:
        return
    pair, certificate, key = found
    content = "".join(pair.certificates).encode() + pair.keys[0]

    def password() -> bytes:
        if tls.password_file is None:
            raise ConfigError([f"{key}: is encrypted; name the file with its password in password_file"])
        return read_password(tls.password_file)

    with loading.in_memory(content) as name:
        try:
            context.load_cert_chain(Path(name), password=password)
        except ssl.SSLError as error:
            cause = f"OpenSSL refuses it ({error.reason or error})"
            raise ConfigError([f"{certificate}: {cause}; see `ingest check`"]) from None
