"""The ledger of one node: its parts, which share one database."""

from ingest.ledger.alert_groups import AlertGroups
from ingest.ledger.announcements import Announcer
from ingest.ledger.attempts import Attempts
from ingest.ledger.backfill import Backfill
from ingest.ledger.callers import Callers
from ingest.ledger.circuits import Circuits
from ingest.ledger.commitment_requests import CommitmentRequests
from ingest.ledger.commitments import Commitments
from ingest.ledger.database import Database, Migration
from ingest.ledger.deliveries import Deliveries
from ingest.ledger.delivery_admin import DeliveryAdmin
from ingest.ledger.hosts import Hosts
from ingest.ledger.instance_lists import InstanceLists
from ingest.ledger.instances import Instances
from ingest.ledger.outbox import Outbox
from ingest.ledger.peer_hours import PeerHours
from ingest.ledger.quarantine import Quarantine
from ingest.ledger.receptions import Receptions
from ingest.ledger.records import Counts
from ingest.ledger.reindexing import Reindexing
from ingest.ledger.removal_lock import RemovalLock
from ingest.ledger.retention import Retention
from ingest.ledger.samples import Samples
from ingest.ledger.spool_references import SpoolReferences
from ingest.ledger.store_folders import StoreFolders
from ingest.ledger.study_lists import StudyLists
from ingest.ledger.throughput import Throughput
from ingest.ledger.transfers import Transfers


class Ledger:
    """Instances and deliveries in SQLite (WAL, synchronous FULL) or PostgreSQL.

    Make one ledger for each process, after the fork. Call `migrate` once at the start; then any thread may
    call any method. Each method of a part is one transaction, durable on return. While the database is
    away, every method raises `LedgerError`.

    Attributes:
        database: Opens transactions, for the parts and for other queries.
        instances: Received instances.
        deliveries: Leases and results of deliveries.
        attempts: Attempts that did not deliver.
        callers: Certificates and AE titles of callers.
        delivery_admin: Lists, requeues and drops deliveries for a person.
        backfill: Creates deliveries of instances that are stored already.
        circuits: One circuit for each destination.
        commitments: Requests for storage commitment, and their reports.
        commitment_requests: What destinations are asked to commit.
        throughput: Backlog and rate of each destination.
        instance_lists: Lists instances.
        study_lists: Lists studies and their series.
        receptions: Studies and series that are being received, and their completions.
        reindexing: Studies whose attributes have to be read again.
        quarantine: Decisions about quarantined instances.
        retention: Age and removal of stored instances.
        samples: Counters and gauges over time, for charts.
        spool_references: References whose spool entries may be removed.
        store_folders: Identities of the store and quarantine folders.
        transfers: Transfers that audit messages have to describe.
        outbox: Events that wait until they are sent.
        alert_groups: Alarms that alerts have reported.
        peer_hours: When callers send.
        hosts: Hosts that use this ledger, and their releases.
    """

    def __init__(
        self,
        url: str,
        *,
        is_audited: bool = False,
        announcer: Announcer | None = None,
        is_read_only: bool = False,
    ) -> None:
        """Prepare the parts; the first method that is called opens the database.

        Args:
            url: An SQLAlchemy URL: `sqlite:////abs/path` or `postgresql+psycopg://…`.
            is_audited: Whether transfers are noted for audit messages. Then a monitor has to run.
            announcer: Makes events for webhooks; None makes none.
            is_read_only: Whether the database refuses every write of this ledger.

        Raises:
            LedgerError: The URL is invalid, or its driver is not installed.
        """
        self.database = Database(url, is_read_only=is_read_only)
        self.instances = Instances(self.database, is_audited=is_audited, announcer=announcer)
        self.deliveries = Deliveries(self.database, is_audited=is_audited, announcer=announcer)
        self.attempts = Attempts(self.database)
        self.callers = Callers(self.database)
        self.delivery_admin = DeliveryAdmin(self.database)
        self.backfill = Backfill(self.database)
        self.circuits = Circuits(self.database)
        self.commitments = Commitments(self.database)
        self.commitment_requests = CommitmentRequests(self.database, announcer=announcer)
        self.throughput = Throughput(self.database)
        self.instance_lists = InstanceLists(self.database)
        self.study_lists = StudyLists(self.database)
        self.receptions = Receptions(self.database, announcer=announcer)
        self.reindexing = Reindexing(self.database)
        self.quarantine = Quarantine(self.database, announcer=announcer)
        self.retention = Retention(self.database)
        self.samples = Samples(self.database)
        self.spool_references = SpoolReferences(self.database)
        self.store_folders = StoreFolders(self.database)
        self.transfers = Transfers(self.database)
        self.outbox = Outbox(self.database)
        self.alert_groups = AlertGroups(self.database)
        self.peer_hours = PeerHours(self.database)
        self.hosts = Hosts(self.database)

    def close(self) -> None:
        """Close all connections."""
        self.database.close()

    def migrate(self) -> Migration | None:
        """Bring the schema to the version of this program; see `Database.migrate`."""
        return self.database.migrate()

    def read_schema_version(self) -> str | None:
        """Return the schema version; None for an empty ledger."""
        return self.database.read_schema_version()

    def require_schema(self) -> None:
        """Raise LedgerError unless the ledger has the schema version of this program."""
        self.database.require_schema()

    def require_writable(self) -> None:
        """Raise LedgerError unless the database accepts writes."""
        self.database.require_writable()

    def unix_ms(self) -> int:
        """Return the time that all hosts of this ledger share; see `Database.unix_ms`."""
        return self.database.unix_ms()

    def count_rows(self) -> Counts:
        """Count the instances by state, and the deliveries by destination and state."""
        return Counts(self.instances.count_by_state(), self.deliveries.count_by_state())

    def create_removal_lock(self) -> RemovalLock | None:
        """Return the lock that excludes other hosts; None for SQLite, which serves one host only."""
        return RemovalLock(self.database) if self.database.dialect == "postgresql" else None
