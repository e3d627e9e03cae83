"""The destinations of a configuration as remotes: address, AE titles and TLS context of each."""

from collections.abc import Mapping

from ingest.config.model import TLS, Config
from ingest.ext.tls_context import Context
from ingest.requestor.transport import Remote
from ingest.tls.contexts import build_contexts


def build_remotes(config: Config, calling: Mapping[str, Context] | None = None) -> dict[str, Remote]:
    """Build the remote of each destination, by the destination's name.

    Args:
        config: The configuration.
        calling: Client contexts of `[tls.NAME]`, by name. None builds them here.

    Raises:
        ConfigError: A certificate or key cannot be used.
    """
    known = build_contexts(config, {"forward"}).calling if calling is None else calling
    return {
        destination.name: Remote(
            destination.host,
            destination.port,
            destination.ae_title,
            destination.calling_ae_title or config.node.ae_title,
            known[destination.tls] if destination.tls else None,
            certificate=destination.certificate,
            issuer=destination.issuer,
            is_anonymous=bool(destination.tls) and not _has_certificate(config.tls[str(destination.tls)]),
        )
        for destination in config.destinations
    }


def _has_certificate(tls: TLS) -> bool:
    return tls.certificate is not None or tls.pkcs12 is not None
