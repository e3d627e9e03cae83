"""Secrets of senders, read from files when an event is sent, so that a replaced file counts at once."""

from pathlib import Path

from ingest.config.alert_rules import find_open_secret
from ingest.errors import ConfigError
from ingest.tls.keys.files import read_password


def read_secret(path: Path) -> bytes:
    """Read the first line of a file with a secret.

    Raises:
        ConfigError: The file cannot be read, is empty, or is open to others.
    """
    if cause := find_open_secret(path):
        raise ConfigError([f"{cause}; run `chmod 600 {path}`"])
    return read_password(path)
