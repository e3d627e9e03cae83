"""The destinations of a configuration as remotes: whom to associate with, as whom, with which TLS context."""

from ingest.config.model import TLS, Config
from ingest.tls.contexts import client_context
from ingest.transport import Remote


def remotes(config: Config) -> dict[str, Remote]:
    """By the destination's name.

    Raises:
        ConfigError: TLS material cannot be used.
    """
    contexts = {
        section: client_context(config.tls[section])
        for section in {destination.tls for destination in config.destinations}
        if section
    }
    return {
        destination.name: Remote(
            destination.host,
            destination.port,
            destination.ae_title,
            destination.calling_ae_title or config.node.ae_title,
            contexts[destination.tls] if destination.tls else None,
            anonymous=bool(destination.tls) and not _has_certificate(config.tls[str(destination.tls)]),
        )
        for destination in config.destinations
    }


def _has_certificate(tls: TLS) -> bool:
    return tls.certificate is not None or tls.pkcs12 is not None
