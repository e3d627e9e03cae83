"""The ledger as one object."""

from ingest.ledger.backfill import Backfill
from ingest.ledger.circuits import Circuits
from ingest.ledger.deliveries import Deliveries
from ingest.ledger.delivery_search import Search
from ingest.ledger.index import Browse
from ingest.ledger.instances import Instances
from ingest.ledger.quarantine import Quarantine
from ingest.ledger.removal_lock import LedgerExclusion
from ingest.ledger.retention import Retention
from ingest.ledger.spool_references import Settled
from ingest.ledger.store_agreement import Agreement
from ingest.ledger.store_folders import Folders
from ingest.ledger.throughput import ProgressReport


class Ledger(
    Instances,
    Deliveries,
    Circuits,
    ProgressReport,
    Search,
    Browse,
    Backfill,
    Quarantine,
    Retention,
    Folders,
    Agreement,
    Settled,
):
    """Instances and deliveries in SQLite (WAL, synchronous FULL) or PostgreSQL.

    Make one for each process, after the fork. `migrate` once at the start, then every method may be called
    from any thread. Each is one transaction, durable on return; while the database is away it raises
    `LedgerError`.
    """

    def exclusion(self) -> LedgerExclusion | None:
        """What excludes processes on other hosts; None for SQLite, which is for one host."""
        return LedgerExclusion(self) if self.dialect == "postgresql" else None
