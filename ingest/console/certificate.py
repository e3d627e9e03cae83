"""The TLS context of the console, from a `[tls.NAME]` section.

The listeners use contexts of our own (`ingest.tls.contexts`), which asyncio cannot use. This context is one
of Python's ssl module with the section's certificate and key. Browsers present no certificate, so trusted
certificates and CRLs of the section have no effect here.
"""

import os
import ssl
from typing import Final

from ingest.config.model import Config, ConsoleSettings
from ingest.errors import ConfigError
from ingest.tls.keys.loading import read_plain_pair

_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""RFC 9325 4.2, which every browser of the last ten years can use."""


def build_tls_context(config: Config, settings: ConsoleSettings) -> ssl.SSLContext | None:
    """Return the context for https; None for http.

    Raises:
        ConfigError: Certificate or key cannot be used.
    """
    if not settings.tls:
        return None
    key, tls = f"tls.{settings.tls}", config.tls[settings.tls]
    content = read_plain_pair(tls)
    if content is None:
        raise ConfigError([f"{key}.certificate: https needs one; name a PEM file, or pkcs12"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    # The ssl module reads keys from files only. One in memory keeps the decrypted key off the disk.
    fd = os.memfd_create("console-pair", os.MFD_CLOEXEC)
    try:
        os.write(fd, content)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    except ssl.SSLError as error:
        cause = f"OpenSSL refuses it ({error.reason or error})"
        raise ConfigError([f"{key}: {cause}; make a pair of RSA 2048 or EC P-256"]) from None
    finally:
        os.close(fd)
    return context
