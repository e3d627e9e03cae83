"""The destinations of a configuration as remotes: whom to associate with, as whom, with which TLS context."""

import ssl
from collections.abc import Mapping

from ingest.config.model import TLS, Config
from ingest.requestor.transport import Remote
from ingest.tls.contexts import contexts


def remotes(config: Config, calling: Mapping[str, ssl.SSLContext] | None = None) -> dict[str, Remote]:
    """By the destination's name.

    Args:
        config: The configuration.
        calling: The contexts of its `[tls.NAME]`; made here where they are not given.

    Raises:
        ConfigError: TLS material cannot be used.
    """
    known = contexts(config, {"forward"}).calling if calling is None else calling
    return {
        destination.name: Remote(
            destination.host,
            destination.port,
            destination.ae_title,
            destination.calling_ae_title or config.node.ae_title,
            known[destination.tls] if destination.tls else None,
            certificate=destination.certificate,
            issuer=destination.issuer,
            anonymous=bool(destination.tls) and not _has_certificate(config.tls[str(destination.tls)]),
        )
        for destination in config.destinations
    }


def _has_certificate(tls: TLS) -> bool:
    return tls.certificate is not None or tls.pkcs12 is not None
