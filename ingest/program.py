"""The formats of ledger and data folder that this program writes."""

from typing import Final

SCHEMA_VERSION: Final = "0027"
"""The newest migration of `ingest/ledger/migrations`, which creates the tables of `ingest.ledger.schema`.

It stands here, because the supervisor compares it and must not load SQLAlchemy.
"""

DATA_FORMAT: Final = 1
"""The format of the data folder; `ingest.filesystem.data_format` has the history."""
