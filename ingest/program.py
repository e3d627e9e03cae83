"""The versions of this program: its release, and the formats of ledger and data folder that it writes."""

import functools
from importlib import metadata
from typing import Final

DISTRIBUTION: Final = "dicom-ingest"

SCHEMA_VERSION: Final = "0019"
"""The newest migration of `ingest/ledger/migrations`, which creates the tables of `ingest.ledger.schema`.

It stands here, because the supervisor compares it and must not load SQLAlchemy.
"""

DATA_FORMAT: Final = 1
"""The format of the data folder; `ingest.filesystem.data_format` has the history."""


@functools.cache
def read_release() -> str:
    """Return the release of the installed distribution; "unknown" for sources that are not installed."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"
