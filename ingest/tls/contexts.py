"""TLS contexts for both roles, from a `[tls.NAME]`; the profiles of PS3.15 Annex B.

`ssl.SSLContext` is used directly: `ssl.create_default_context` would trust the system's public authorities,
which have no say in a hospital, and write session keys to $SSLKEYLOGFILE.
"""

import ssl
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ingest.config.model import TLS, Config
from ingest.errors import ConfigError
from ingest.ext import tls_offered, tls_settings
from ingest.tls import profiles, revocation
from ingest.tls.keys import loading
from ingest.tls.pump import Pump

_VERIFY = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}


@dataclass(frozen=True, slots=True)
class Contexts:
    """All that a configuration has its processes speak TLS with, by the NAME of `[tls.NAME]`.

    Attributes:
        listening: Of `[[listeners]]`.
        calling: Of `[[destinations]]`.
    """

    listening: Mapping[str, ssl.SSLContext]
    calling: Mapping[str, ssl.SSLContext]


def contexts(config: Config, roles: Collection[str]) -> Contexts:
    """The contexts of all sections that these roles use ("listen", "forward").

    Raises:
        ConfigError: Files cannot be used; with the faults of every section, each with its key.
    """
    listening: dict[str, ssl.SSLContext] = {}
    calling: dict[str, ssl.SSLContext] = {}
    faults: dict[str, None] = {}
    for name, tls in config.tls.items():
        try:
            if "listen" in roles and any(each.tls == name for each in config.listeners):
                listening[name] = server_context(tls)
            if "forward" in roles and any(each.tls == name for each in config.destinations):
                calling[name] = client_context(tls)
            if name in listening or name in calling:
                rehearse(tls)
        except ConfigError as error:
            faults |= dict.fromkeys(f"tls.{name}: {fault}" for fault in error.faults)
    if faults:
        raise ConfigError(list(faults))
    return Contexts(listening, calling)


def rehearse(tls: TLS) -> None:
    """Shake hands with a peer of the same profile, in memory: OpenSSL takes pairs that no handshake can use.

    Such as a key on a curve that the profile does not have. Peers' certificates are not asked for.

    Raises:
        ConfigError: It does not come to a connection.
    """
    if tls.certificate is None and tls.pkcs12 is None:
        return
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    profiles.apply(ours, tls)
    loading.load_pair(ours, tls)
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    theirs.check_hostname, theirs.verify_mode = False, ssl.CERT_NONE
    profiles.apply(theirs, tls)
    server, client = Pump(ours), Pump(theirs, server_side=False)
    try:
        while not server.established:
            if not client.established:
                client.handshake()
            server.feed(memoryview(client.output()))
            server.handshake()
            client.feed(memoryview(server.output()))
    except ssl.SSLError as error:
        cause = f"no peer can shake hands with this certificate and key ({error.reason or error})"
        remedy = "make a pair of RSA 2048 or EC P-256, or choose another profile"
        raise ConfigError([f"{tls.pkcs12 or tls.certificate}: {cause}; {remedy}"]) from None


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
    loading.load_pair(context, tls)
    if tls.peer_certificate != "none" and not tls.trusted:
        raise ConfigError(
            ['trusted: nothing to verify peers with; name PEM bundles, or peer_certificate = "none"']
        )
    loading.load_trusted(context, tls, {each.pem for each, _ in revocation.revoked(tls)})
    context.verify_mode = _VERIFY[tls.peer_certificate]
    tls_offered.keep_refused(context)
    revocation.load(context, tls)
