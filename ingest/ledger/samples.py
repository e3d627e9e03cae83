"""Samples: values of the counters and gauges of a node every 20 seconds, for charts.

A sample holds counters as they stand, not differences. Leaving out samples therefore loses no event: rates
and quantiles come from the difference of any two samples. Samples older than an hour are thinned to one a
minute.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import and_, bindparam, delete, false, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from ingest.ledger.database import Database
from ingest.ledger.schema import samples

FINE_MS: Final = 65 * 60_000
"""Age up to which every sample is kept."""

KEPT_MS: Final = 25 * 3_600_000
"""Age up to which one sample of each minute is kept."""

NAMES_MAX: Final = 64
"""Number of callers, and of destinations, with separate figures in a sample: those with most instances."""

_AHEAD_MS: Final = 60_000
"""A sample that lies further in the future was taken before the clock was set back."""

_INSERT: Final = {
    "sqlite": sqlite.insert(samples).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(samples).on_conflict_do_nothing(),
}
_FORGET: Final = delete(samples).where(
    or_(
        samples.c.at < bindparam("oldest"),
        samples.c.at > bindparam("newest"),
        and_(samples.c.is_minute == false(), samples.c.at < bindparam("oldest_fine")),
    )
)
_READ: Final = (
    select(samples.c.at, samples.c.content)
    .where(samples.c.source == bindparam("of"), samples.c.at >= bindparam("since"))
    .order_by(samples.c.at)
)


@dataclass(frozen=True, slots=True)
class StoredSample:
    """One sample.

    Attributes:
        at_ms: When it was taken, in Unix milliseconds.
        content: Its values, as `ingest.workers.monitor.sampling` composes them.
    """

    at_ms: int
    content: Mapping[str, Any]


class Samples:
    """The samples of all nodes of one ledger. It raises LedgerError while the database is unavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_sample(self, source: str, sample: StoredSample, *, is_minute: bool) -> None:
        """Add a sample, and remove samples that are too old.

        Args:
            source: Name of the node. Several nodes may share a ledger.
            sample: The sample.
            is_minute: Whether the sample is kept for longer than an hour.
        """
        row = {
            "source": source,
            "at": sample.at_ms,
            "is_minute": is_minute,
            "content": json.dumps(sample.content, separators=(",", ":")),
        }
        bounds = {
            "oldest": sample.at_ms - KEPT_MS,
            "newest": sample.at_ms + _AHEAD_MS,
            "oldest_fine": sample.at_ms - FINE_MS,
        }
        with self._database.begin_write() as connection:
            connection.execute(_INSERT[self._database.dialect], row)
            connection.execute(_FORGET, bounds)

    def read_samples(self, source: str, since_ms: int) -> list[StoredSample]:
        """Return the samples of a node since a time, the oldest first."""
        with self._database.begin_read() as connection:
            rows = connection.execute(_READ, {"of": source, "since": since_ms}).all()
        return [StoredSample(at, json.loads(content)) for at, content in rows]
