"""Configuration: frozen models, and the reader that turns a file into them.

`load` is what every role calls; `ingest.checks.node` looks at what the configuration points to.
"""

from ingest.config.faults import Fault
from ingest.config.model import TLS, Config
from ingest.config.reader import load, notes

__all__ = ["TLS", "Config", "Fault", "load", "notes"]
