"""TLS contexts for both roles, made from a `[tls.NAME]` section.

The public authorities of the operating system are not trusted: a hospital itself decides whom it trusts.
"""

import ssl
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ingest.config.model import TLS, Config
from ingest.errors import ConfigError
from ingest.ext.tls_connection import BufferedConnection
from ingest.ext.tls_context import Context
from ingest.tls import profiles, revocation
from ingest.tls.keys import loading


@dataclass(frozen=True, slots=True)
class Contexts:
    """The TLS contexts of a configuration, by the NAME of `[tls.NAME]`.

    Attributes:
        listening: Contexts for `[[listeners]]`.
        calling: Contexts for `[[destinations]]`.
    """

    listening: Mapping[str, Context]
    calling: Mapping[str, Context]


def build_contexts(config: Config, roles: Collection[str]) -> Contexts:
    """Make the contexts of all sections that these roles ("listen", "forward") use.

    Raises:
        ConfigError: Files cannot be used. The error contains the faults of all sections with their keys.
    """
    listening: dict[str, Context] = {}
    calling: dict[str, Context] = {}
    faults: dict[str, None] = {}
    for name, tls in config.tls.items():
        try:
            if "listen" in roles and any(each.tls == name for each in config.listeners):
                listening[name] = build_server_context(tls)
            if "forward" in roles and any(each.tls == name for each in config.destinations):
                calling[name] = build_client_context(tls)
            if name in listening or name in calling:
                rehearse_handshake(tls)
        except ConfigError as error:
            faults |= dict.fromkeys(f"tls.{name}: {fault}" for fault in error.faults)
    if faults:
        raise ConfigError(list(faults))
    return Contexts(listening, calling)


def rehearse_handshake(tls: TLS) -> None:
    """Try a handshake in memory with a peer of the same profile, without client certificate.

    OpenSSL loads pairs that no handshake can use, for example a key on a curve outside the profile.

    Raises:
        ConfigError: The handshake fails.
    """
    if tls.certificate is None and tls.pkcs12 is None:
        return
    ours, theirs = Context(is_server=True), Context(is_server=False)
    profiles.apply_profile(ours, tls)
    loading.load_pair(ours, tls)
    profiles.apply_profile(theirs, tls)
    server, client = BufferedConnection(ours), BufferedConnection(theirs)
    try:
        while not server.established:
            if not client.established:
                client.shake_hands()
            server.feed(client.output())
            server.shake_hands()
            client.feed(server.output())
    except ssl.SSLError as error:
        cause = f"no peer can shake hands with this certificate and key ({error.reason or error})"
        remedy = "make a pair of RSA 2048 or EC P-256, or choose another profile"
        raise ConfigError([f"{tls.pkcs12 or tls.certificate}: {cause}; {remedy}"]) from None


def build_server_context(tls: TLS) -> Context:
    """Make the context of a listener (SCP).

    Raises:
        ConfigError: A file cannot be used. The message names the file and the remedy.
    """
    context = Context(is_server=True)
    _set_up(context, tls)
    if tls.certificate is None and tls.pkcs12 is None:
        raise ConfigError(
            ["certificate: a listener needs one; name a PEM file (`ingest certs new` makes one), or pkcs12"]
        )
    return context


def build_client_context(tls: TLS) -> Context:
    """Make the context of a sender (SCU). With `check_server_name`, its connections need a server name.

    Raises:
        ConfigError: A file cannot be used. The message names the file and the remedy.
    """
    context = Context(is_server=False)
    context.check_host_name = tls.check_server_name
    _set_up(context, tls)
    return context


def _set_up(context: Context, tls: TLS) -> None:
    profiles.apply_profile(context, tls)
    loading.load_pair(context, tls)
    if tls.peer_certificate != "none" and not tls.trusted:
        raise ConfigError(
            ['trusted: nothing to verify peers with; name PEM bundles, or peer_certificate = "none"']
        )
    loading.load_trusted(context, tls, {each.pem for each, _ in revocation.find_revoked_trusted(tls)})
    if tls.peer_certificate != "none":
        context.verify_peers(required=tls.peer_certificate == "required")
    revocation.load_lists(context, tls)
