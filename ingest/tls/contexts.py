"""TLS contexts for both roles, from a `[tls.NAME]`; the profiles of PS3.15 Annex B.

`ssl.SSLContext` is used directly: `ssl.create_default_context` would trust the system's public authorities,
which have no say in a hospital, and write session keys to $SSLKEYLOGFILE.
"""

import ssl

from ext import tls_settings
from ingest.config.model import TLS
from ingest.errors import ConfigError
from ingest.tls import crl, material, profiles

_VERIFY = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}


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
    if tls.certificate is None and tls.pkcs12 is None:
        raise ConfigError(
            ["certificate: a listener needs one; name a PEM file (`ingest certs new` makes one), or pkcs12"]
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
    material.load_pair(context, tls)
    if tls.peer_certificate != "none" and not tls.trusted:
        raise ConfigError(
            ['trusted: nothing to verify peers with; name PEM bundles, or peer_certificate = "none"']
        )
    material.load_trusted(context, tls)
    context.verify_mode = _VERIFY[tls.peer_certificate]
    crl.load(context, tls)
