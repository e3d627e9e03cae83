"""The tables of the ledger as its newest revision has them; times are integers, Unix milliseconds."""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

SCHEMA_VERSION: Final = "0011"
"""The revision in ingest/migrations that made the tables below."""

# SQLite hands out row ids of its own only for a primary key that is declared INTEGER.
_Id = BigInteger().with_variant(Integer(), "sqlite")

metadata = MetaData()

_STORED = text("state = 'stored'")
IS_VARIANT: Final = text("state = 'variant'")
# Not the bare column: SQLite would go by the index of states, and read the rows.
KEPT: Final = text("state || '' in ('stored', 'variant')")
QUARANTINED: Final = text("state = 'quarantined'")
SUSPECT: Final = text("suspect_since > 0")
HAS_FILE: Final = text("state not in ('replaced', 'removing', 'removed')")

instances = Table(
    "instances",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("state", Text, nullable=False),
    Column("sop_instance_uid", Text, nullable=False),
    Column("sop_class_uid", Text, nullable=False),
    Column("study_uid", Text, nullable=False),
    Column("series_uid", Text, nullable=False),
    Column("transfer_syntax_uid", Text, nullable=False),
    Column("store_key", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("data_set_offset", BigInteger, nullable=False),
    Column("calling_ae", Text, nullable=False),
    Column("called_ae", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("spool_ref", Text, nullable=False),
    Column("note", Text, nullable=False),
    Column("received_at", BigInteger, nullable=False),
    Column("stored_at", BigInteger, nullable=False),
    # Names of the rules that took it, or why none did.
    Column("routed", Text, nullable=False, server_default=""),
    # Of a further copy (`[store] duplicates = "keep-both"`) the digest of its content; otherwise empty.
    Column("copy_digest", Text, nullable=False, server_default=""),
    # In quarantine: what the sender was answered (0 is Success), how often the same thing came, what it is.
    Column("refused_status", Integer, nullable=False, server_default="0"),
    Column("times", Integer, nullable=False, server_default="1"),
    Column("content_digest", Text, nullable=False, server_default=""),
    # The same reference twice is the same instance.
    UniqueConstraint("spool_ref", name="instances_spool_ref"),
    Index("instances_sop_instance_uid", "sop_instance_uid"),
    Index("instances_study_uid", "study_uid"),
    Index("instances_state", "state"),
    # What lies in quarantine, by what it is: the same thing is kept once.
    Index("instances_quarantined", "content_digest", sqlite_where=QUARANTINED, postgresql_where=QUARANTINED),
    # Of several workers that store one UID, under whatever study, one is the first; each copy is there once.
    Index(
        "instances_stored",
        "sop_instance_uid",
        "copy_digest",
        unique=True,
        sqlite_where=_STORED,
        postgresql_where=_STORED,
    ),
    # Nearly empty: tells without a look at the rows that nothing of a UID is a variant.
    Index("instances_variants", "sop_instance_uid", sqlite_where=IS_VARIANT, postgresql_where=IS_VARIANT),
    # What the store holds, oldest first, and how large it is: without a look at the rows.
    Index("instances_kept", "stored_at", "id", "study_uid", "size", sqlite_where=KEPT, postgresql_where=KEPT),
    # A file of the store belongs to one row. What has gone from there keeps the name that it had.
    Index(
        "instances_store_key",
        "store_key",
        unique=True,
        sqlite_where=HAS_FILE,
        postgresql_where=HAS_FILE,
    ),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("instance_id", _Id, ForeignKey("instances.id"), nullable=False),
    Column("destination", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    # When somebody may take the row: 0 while waiting, the time of the next attempt, or the end of the lease.
    Column("next_at", BigInteger, nullable=False),
    Column("lease_owner", Text),
    Column("lease_until", BigInteger),
    Column("last_status", Integer),
    Column("last_error", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    # Associations that ended with this instance in hand, and since when it is a suspect; 0: it is none.
    Column("breaks", Integer, nullable=False, server_default="0"),
    Column("suspect_since", BigInteger, nullable=False, server_default="0"),
    UniqueConstraint("instance_id", "destination", name="deliveries_instance_destination"),
    # Equality on the first two and the order of the next two is how a lease reads, whatever the backlog; the
    # last has it pass over suspects without a look at their rows.
    Index("deliveries_due", "destination", "state", "next_at", "instance_id", "suspect_since"),
    # Suspects go last and alone: they are few, and are found without a look at the others.
    Index(
        "deliveries_suspects",
        "destination",
        "next_at",
        "instance_id",
        sqlite_where=SUSPECT,
        postgresql_where=SUSPECT,
    ),
)

# Which store and which quarantine this ledger tells of (`ingest.filesystem.folder_identity`).
folders = Table(
    "folders",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("folder_id", Text, nullable=False),
)

# Of which nothing is kept, but whose listener still has its copy (`ingest.ledger.spool_references`).
duplicates = Table(
    "duplicates",
    metadata,
    Column("spool_ref", Text, primary_key=True),
    Column("noted_at", BigInteger, nullable=False),
)

# What workers share of a destination as a whole; one that never failed has no row.
circuits = Table(
    "circuits",
    metadata,
    Column("destination", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("opened_at", BigInteger, nullable=False),
    Column("probe_at", BigInteger, nullable=False),
    Column("permanent", Boolean, nullable=False),
    Column("last_error", Text, nullable=False),
    Column("last_error_at", BigInteger, nullable=False),
    Column("breaks", Integer, nullable=False, server_default="0"),
    Column("answered_at", BigInteger, nullable=False, server_default="0"),
)

# What was delivered in each of the last minutes, for people who ask for a rate.
throughput = Table(
    "throughput",
    metadata,
    Column("destination", Text, primary_key=True),
    # Unix time in whole minutes.
    Column("minute", BigInteger, primary_key=True, autoincrement=False),
    Column("delivered", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
)
