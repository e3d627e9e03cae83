"""The tables of the ledger in their newest version; times are integers in Unix milliseconds.

`ingest.program.SCHEMA_VERSION` is the migration in `ingest/ledger/migrations` that creates these tables.
"""

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
    false,
    text,
)

# SQLite assigns row ids only to a primary key that is declared INTEGER.
_Id = BigInteger().with_variant(Integer(), "sqlite")

# Bytewise order on both databases, so that a range of an index finds a prefix.
_SearchText = Text().with_variant(Text(collation="C"), "postgresql")

metadata = MetaData()

_STORED = text("state = 'stored'")
IS_VARIANT: Final = text("state = 'variant'")
# The concatenation keeps SQLite from the index of `state`, for which it would read the rows too.
KEPT: Final = text("state || '' in ('stored', 'variant')")
QUARANTINED: Final = text("state = 'quarantined'")
SUSPECT: Final = text("suspect_since > 0")
HAS_ERROR: Final = text("last_error <> ''")
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
    # Names of the rules that matched, or why none did.
    Column("routed", Text, nullable=False, server_default=""),
    # Digest of the content of a further copy (`[store] duplicates = "keep-both"`); otherwise empty.
    Column("copy_digest", Text, nullable=False, server_default=""),
    # Quarantined instances: status of the response (0 is Success), number of arrivals, digest of the content.
    Column("refused_status", Integer, nullable=False, server_default="0"),
    Column("times", Integer, nullable=False, server_default="1"),
    Column("content_digest", Text, nullable=False, server_default=""),
    # SHA-256 fingerprint of the certificate that the sender presented; empty without one.
    Column("certificate", Text, nullable=False, server_default=""),
    # The bytes in quarantine are not the bytes that were received.
    Column("is_damaged_in_spool", Boolean, nullable=False, server_default=false()),
    # INVARIANT 14: the same reference is the same instance.
    UniqueConstraint("spool_ref", name="instances_spool_ref"),
    Index("instances_sop_instance_uid", "sop_instance_uid"),
    Index("instances_study_uid", "study_uid"),
    # With the id, so that PostgreSQL too finds the newest of a state.
    Index("instances_state", "state", "id"),
    # Finds the same content in quarantine, which is kept only once.
    Index("instances_quarantined", "content_digest", sqlite_where=QUARANTINED, postgresql_where=QUARANTINED),
    # If several workers store one UID, even under different studies, one of them is first. Each copy exists
    # once.
    Index(
        "instances_stored",
        "sop_instance_uid",
        "copy_digest",
        unique=True,
        sqlite_where=_STORED,
        postgresql_where=_STORED,
    ),
    # Nearly empty. It shows without reading rows that a UID has no variants.
    Index("instances_variants", "sop_instance_uid", sqlite_where=IS_VARIANT, postgresql_where=IS_VARIANT),
    # Lists stored instances by age, with their sizes, without reading rows.
    Index("instances_kept", "stored_at", "id", "study_uid", "size", sqlite_where=KEPT, postgresql_where=KEPT),
    # A file of the store belongs to one row. A removed instance keeps its old key.
    Index(
        "instances_store_key",
        "store_key",
        unique=True,
        sqlite_where=HAS_FILE,
        postgresql_where=HAS_FILE,
    ),
)

IS_COMMITMENT_OPEN: Final = text("commitment in ('wanted', 'asked')")

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("instance_id", _Id, ForeignKey("instances.id"), nullable=False),
    Column("destination", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    # When the row may be leased: the time of the next attempt, or the end of the lease. A row that waits has
    # 0, or -1 if it is urgent, or 1 if it is bulk (`ingest.ledger.lease_order`).
    Column("next_at", BigInteger, nullable=False),
    Column("lease_owner", Text),
    Column("lease_until", BigInteger),
    Column("last_status", Integer),
    Column("last_error", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    # Associations that ended while this instance was sent. Since when it is a suspect; 0: it is none.
    Column("breaks", Integer, nullable=False, server_default="0"),
    Column("suspect_since", BigInteger, nullable=False, server_default="0"),
    # Time from the first byte of the last attempt to its end. NULL: nothing was sent yet.
    Column("duration_ms", Integer),
    # 0 urgent, 1 normal, 2 bulk (`ingest.dicom.priority`).
    Column("priority", Integer, nullable=False, server_default="1"),
    # Storage commitment by the destination: none, wanted, asked, committed or failed.
    Column("commitment", Text, nullable=False, server_default="none"),
    # The request that asked for it last.
    Column("commitment_request_id", BigInteger),
    # What an `awaiting` delivery waits for: "series" or "study".
    Column("awaits", Text, nullable=False, server_default=""),
    # Hours of the routes in which it may be sent (`ingest.config.hours`); empty: at any time.
    Column("hours", Text, nullable=False, server_default=""),
    # If `destination` is a group: the member that it was leased for last.
    Column("member", Text, nullable=False, server_default=""),
    UniqueConstraint("instance_id", "destination", name="deliveries_instance_destination"),
    # Deliveries whose commitment is open are few.
    Index(
        "deliveries_commitment",
        "destination",
        "commitment",
        "id",
        sqlite_where=IS_COMMITMENT_OPEN,
        postgresql_where=IS_COMMITMENT_OPEN,
    ),
    # A lease compares the first two columns and reads in the order of the next two, however long the backlog
    # is. With the last column it skips suspects without reading their rows.
    Index("deliveries_due", "destination", "state", "next_at", "instance_id", "suspect_since"),
    # Suspects are few. This index finds them without reading other rows.
    Index(
        "deliveries_suspects",
        "destination",
        "next_at",
        "instance_id",
        sqlite_where=SUSPECT,
        postgresql_where=SUSPECT,
    ),
    # What changed lately, and what failed with a text, among millions that were delivered at once.
    Index("deliveries_updated", "updated_at"),
    Index("deliveries_with_error", "instance_id", sqlite_where=HAS_ERROR, postgresql_where=HAS_ERROR),
)

FIRST_DUE: Final = deliveries.c.priority - 1
"""`next_at` of a row that waits (`ingest.ledger.lease_order.find_first_due`)."""

TIMES: Final = (*(deliveries.c.next_at == due for due in (-1, 0, 1)), deliveries.c.next_at > 1)
"""Ranges of `next_at`. All but the last have their rows in the order of `instance_id`."""

# Attempts that did not deliver. A delivery keeps its first and its last ones (`ingest.ledger.attempts`).
attempts = Table(
    "attempts",
    metadata,
    Column("delivery_id", _Id, ForeignKey("deliveries.id", ondelete="CASCADE"), primary_key=True),
    # 1 for the first attempt. A gap shows how many attempts were not kept.
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("ended_at", BigInteger, nullable=False),
    Column("duration_ms", Integer),
    # The state of the delivery after the attempt.
    Column("state", Text, nullable=False),
    Column("status", Integer),
    Column("error", Text, nullable=False),
    Column("next_at", BigInteger, nullable=False),
)

# Certificates that callers presented and that were verified (`ingest.ledger.callers`).
caller_certificates = Table(
    "caller_certificates",
    metadata,
    Column("fingerprint", Text, primary_key=True),
    Column("subject", Text, nullable=False),
    Column("issuer", Text, nullable=False),
    Column("not_before", BigInteger, nullable=False),
    Column("not_after", BigInteger, nullable=False),
    Column("first_at", BigInteger, nullable=False),
    Column("last_at", BigInteger, nullable=False),
)

# Calling AE titles of associations that a certificate was presented for.
caller_titles = Table(
    "caller_titles",
    metadata,
    Column("fingerprint", Text, primary_key=True),
    Column("calling_ae", Text, primary_key=True),
    Column("first_at", BigInteger, nullable=False),
    Column("last_at", BigInteger, nullable=False),
)

# Numbers of rows by state, kept by triggers (`r0014_row_counters`); `ingest.ledger.row_counts` reads them.
row_counts = Table(
    "row_counts",
    metadata,
    # "instances" or "deliveries".
    Column("counted", Text, primary_key=True),
    Column("destination", Text, primary_key=True),
    Column("state", Text, primary_key=True),
    # The session of PostgreSQL that counted; 0 for those that have ended, and on SQLite.
    Column("session", BigInteger, primary_key=True, autoincrement=False),
    Column("number", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# One row for each Study Instance UID that has a row in `instances`. Attributes are personal data. They come
# from the newest instance, as far as `[ledger] index` allows (`ingest.ledger.study_index`).
studies = Table(
    "studies",
    metadata,
    Column("study_uid", Text, primary_key=True),
    # Arrival of the first and of the last instance, and their ids. They are bounds after rows were deleted.
    Column("first_at", BigInteger, nullable=False),
    Column("last_at", BigInteger, nullable=False),
    Column("first_id", BigInteger, nullable=False),
    Column("last_id", BigInteger, nullable=False),
    # When an instance was last stored; 0: the store never had one.
    Column("last_stored_at", BigInteger, nullable=False),
    # Sender of the newest instance.
    Column("calling_ae", Text, nullable=False, server_default=""),
    Column("patient_id", _SearchText, nullable=False, server_default=""),
    Column("issuer_of_patient_id", Text, nullable=False, server_default=""),
    Column("patient_name", Text, nullable=False, server_default=""),
    # The component groups of the name for searching (`ingest.dicom.study_attributes.normalize_name`).
    Column("name_alphabetic", _SearchText, nullable=False, server_default=""),
    Column("name_ideographic", _SearchText, nullable=False, server_default=""),
    Column("name_phonetic", _SearchText, nullable=False, server_default=""),
    Column("accession_number", _SearchText, nullable=False, server_default=""),
    Column("study_date", _SearchText, nullable=False, server_default=""),
    Column("study_time", Text, nullable=False, server_default=""),
    Column("study_description", Text, nullable=False, server_default=""),
    Column("institution_name", Text, nullable=False, server_default=""),
    # Whether instances of different patients came with this UID. The newest values are above.
    Column("patients_differ", Boolean, nullable=False, server_default=text("false")),
    # Level of `[ledger] index` that all its instances were read with; empty: before there was an index.
    Column("indexed_as", Text, nullable=False, server_default=""),
    Index("studies_received", "last_at", "study_uid", "first_at", "last_stored_at", "first_id", "last_id"),
    Index("studies_newest", "last_id"),
    Index("studies_patient_id", "patient_id", "last_at"),
    Index("studies_accession_number", "accession_number", "last_at"),
    Index("studies_study_date", "study_date", "last_at"),
    Index("studies_name_alphabetic", "name_alphabetic", "last_at"),
    Index("studies_name_ideographic", "name_ideographic", "last_at"),
    Index("studies_name_phonetic", "name_phonetic", "last_at"),
    Index("studies_indexed_as", "indexed_as"),
)

series = Table(
    "series",
    metadata,
    Column("study_uid", Text, primary_key=True),
    Column("series_uid", Text, primary_key=True),
    Column("modality", Text, nullable=False, server_default=""),
    Column("series_number", BigInteger),
    Column("series_description", Text, nullable=False, server_default=""),
    Column("station_name", Text, nullable=False, server_default=""),
    Column("institution_name", Text, nullable=False, server_default=""),
    Column("body_part", Text, nullable=False, server_default=""),
    Index("series_series_uid", "series_uid"),
    Index("series_modality", "modality", "study_uid"),
)

# The AE titles that instances of a study came from.
study_senders = Table(
    "study_senders",
    metadata,
    Column("study_uid", Text, primary_key=True),
    Column("calling_ae", Text, primary_key=True),
    Index("study_senders_calling_ae", "calling_ae", "study_uid"),
)

# One row: the process that reads older studies for the index now, and the number of unreadable files
# (`ingest.ledger.reindexing`).
reindexing = Table(
    "reindexing",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("owner", Text, nullable=False),
    Column("lease_until", BigInteger, nullable=False),
    # Level of `[ledger] index` that `unreadable` belongs to.
    Column("level", Text, nullable=False),
    Column("unreadable", BigInteger, nullable=False),
)

# Identities of the store and quarantine folders (`ingest.filesystem.folder_identity`).
folders = Table(
    "folders",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("folder_id", Text, nullable=False),
)

# Duplicates that are not kept, while their listener still has a copy (`ingest.ledger.spool_references`).
duplicates = Table(
    "duplicates",
    metadata,
    Column("spool_ref", Text, primary_key=True),
    Column("noted_at", BigInteger, nullable=False),
)

# The state of a destination that all workers share. A destination that never failed has no row.
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
    # A person paused the destination: since when (0: not paused), the name of that person, the reason.
    Column("paused_at", BigInteger, nullable=False, server_default="0"),
    Column("paused_by", Text, nullable=False, server_default=""),
    Column("pause_reason", Text, nullable=False, server_default=""),
)

# The member of each group that a study goes to (`ingest.ledger.group_leases`).
group_studies = Table(
    "group_studies",
    metadata,
    Column("study_uid", Text, primary_key=True),
    Column("group_name", Text, primary_key=True),
    Column("member", Text, nullable=False),
    # Number of the choice, for groups that choose in turn.
    Column("turn", BigInteger, nullable=False),
    # Whether the member is known to have something of the study.
    Column("is_begun", Boolean, nullable=False),
    Index("group_studies_turn", "group_name", "turn"),
)

# Deliveries of each of the last minutes, from which rates are computed.
throughput = Table(
    "throughput",
    metadata,
    Column("destination", Text, primary_key=True),
    # Unix time in whole minutes.
    Column("minute", BigInteger, primary_key=True, autoincrement=False),
    Column("delivered", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
)

# Transfers that no audit message describes yet (`ingest.ledger.audit`). A note is JSON of AE titles and UIDs.
audit_notes = Table(
    "audit_notes",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("body", Text, nullable=False),
)

audit_groups = Table(
    "audit_groups",
    metadata,
    Column("id", _Id, primary_key=True),
    # JSON of `TransferKey`: the common values of the transfers of one audit message. Peers choose its values,
    # and PostgreSQL cannot index a long text, so the index has a digest.
    Column("key", Text, nullable=False),
    Column("digest", Text, nullable=False),
    # Number of instances of each SOP class, as JSON.
    Column("sop_classes", Text, nullable=False),
    # Times of the first and the last transfer.
    Column("first_at", BigInteger, nullable=False),
    Column("last_at", BigInteger, nullable=False),
    # When the first and the last note was merged, by the clock of the ledger.
    Column("created_at", BigInteger, nullable=False),
    Column("merged_at", BigInteger, nullable=False),
    Column("is_begun", Integer, nullable=False),
    Index("audit_groups_digest", "digest", unique=True),
)

# One row: which monitor reports transfers, and until when.
audit_lease = Table(
    "audit_lease",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("owner", Text, nullable=False),
    Column("until", BigInteger, nullable=False),
)


# Counters and gauges of a node at one time, for charts (`ingest.ledger.samples`).
samples = Table(
    "samples",
    metadata,
    Column("source", Text, primary_key=True),
    Column("at", BigInteger, primary_key=True, autoincrement=False),
    Column("is_minute", Boolean, nullable=False),
    Column("content", Text, nullable=False),
)

IS_OPEN_EVENT: Final = text("state in ('waiting', 'sending')")
IS_DEAD_EVENT: Final = text("state = 'dead'")

# Events to send: alerts and webhooks (`ingest.ledger.outbox`).
outbox = Table(
    "outbox",
    metadata,
    Column("id", _Id, primary_key=True),
    # The same in each attempt, so that a receiver recognizes a repetition.
    Column("event_id", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("payload", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    # The time of the next attempt, or the end of the lease.
    Column("next_at", BigInteger, nullable=False),
    Column("lease_owner", Text, nullable=False),
    Column("last_error", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    # Whether its receiver refuses this event alone. Then it does not hold up the others.
    Column("is_refused", Boolean, nullable=False, server_default=false()),
    UniqueConstraint("event_id", name="outbox_event_id"),
    Index(
        "outbox_open",
        "target",
        "is_refused",
        "id",
        sqlite_where=IS_OPEN_EVENT,
        postgresql_where=IS_OPEN_EVENT,
    ),
    Index("outbox_dead", "target", "id", sqlite_where=IS_DEAD_EVENT, postgresql_where=IS_DEAD_EVENT),
)

IS_OPEN_COMMITMENT: Final = text("state in ('waiting', 'due')")

# Requests for storage commitment (PS3.4 Annex J), and what each of them references.
commitments = Table(
    "commitments",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("transaction_uid", Text, nullable=False),
    Column("calling_ae", Text, nullable=False),
    # The AE title that was asked. The report comes from it.
    Column("called_ae", Text, nullable=False),
    # Where the report goes; empty if the caller has no destination.
    Column("destination", Text, nullable=False),
    Column("spool_ref", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("requested_at", BigInteger, nullable=False),
    # Time from which it is judged or reported next, or the end of a lease.
    Column("next_at", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("last_error", Text, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    UniqueConstraint("spool_ref", name="commitments_spool_ref"),
    # Open requests are few.
    Index(
        "commitments_open",
        "state",
        "destination",
        "next_at",
        sqlite_where=IS_OPEN_COMMITMENT,
        postgresql_where=IS_OPEN_COMMITMENT,
    ),
)

# Requests of this node to its destinations for storage commitment (`ingest.ledger.commitment_requests`).
commitment_requests = Table(
    "commitment_requests",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("transaction_uid", Text, nullable=False),
    Column("destination", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("instances", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("asked_at", BigInteger, nullable=False),
    # The end of the wait for the report, or the time before which the destination is not asked again.
    Column("next_at", BigInteger, nullable=False),
    Column("last_error", Text, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    UniqueConstraint("transaction_uid", name="commitment_requests_transaction"),
    Index("commitment_requests_destination", "destination", "id"),
)

commitment_references = Table(
    "commitment_references",
    metadata,
    Column("commitment_id", _Id, ForeignKey("commitments.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("sop_class_uid", Text, nullable=False),
    Column("sop_instance_uid", Text, nullable=False),
    # NULL: not judged yet. 0: committed. Otherwise the Failure Reason.
    Column("outcome", Integer),
)

IS_RECEIVING: Final = text("state = 'receiving'")

# Studies, and series if a route waits for one, whose completion is judged (`ingest.ledger.receptions`). The
# row of a study has no Series Instance UID.
receptions = Table(
    "receptions",
    metadata,
    Column("study_uid", Text, primary_key=True),
    Column("series_uid", Text, primary_key=True),
    # 1 until the first completion. An instance after a completion begins the next one.
    Column("generation", Integer, nullable=False),
    # receiving or complete.
    Column("state", Text, nullable=False),
    # When the first and the last instance of this generation were stored, and their number.
    Column("first_at", BigInteger, nullable=False),
    Column("last_at", BigInteger, nullable=False),
    Column("instances", BigInteger, nullable=False),
    # The longest time of the routes that wait; 0: that of `[node]`.
    Column("stable_ms", BigInteger, nullable=False),
    Column("due_at", BigInteger, nullable=False),
    # Those that are not complete are few.
    Index(
        "receptions_due",
        "due_at",
        "study_uid",
        "series_uid",
        sqlite_where=IS_RECEIVING,
        postgresql_where=IS_RECEIVING,
    ),
    Index("receptions_ended", "state", "last_at"),
)

# The study and the series that an association carried last, while the association is open.
carriers = Table(
    "carriers",
    metadata,
    Column("association", BigInteger, primary_key=True, autoincrement=False),
    Column("study_uid", Text, nullable=False),
    Column("series_uid", Text, nullable=False),
    # Arrival of the last instance.
    Column("at", BigInteger, nullable=False),
    # When an instance was stored, or the monitor last saw progress.
    Column("seen_at", BigInteger, nullable=False),
    Index("carriers_study_uid", "study_uid", "series_uid"),
)

# One row for each completion of a study or series, and for each time that a complete one was reopened. The
# ids grow in the order of the events.
completions = Table(
    "completions",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("study_uid", Text, nullable=False),
    Column("series_uid", Text, nullable=False),
    Column("generation", Integer, nullable=False),
    # complete or reopened.
    Column("event", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("instances", BigInteger, nullable=False),
    Column("first_at", BigInteger, nullable=False),
    Column("last_at", BigInteger, nullable=False),
    # INVARIANT 2: a completion that is judged twice has one row.
    UniqueConstraint("study_uid", "series_uid", "generation", "event", name="completions_generation"),
    Index("completions_at", "at"),
)

# Up to which time each spool is persisted: the arrival of its oldest entry, or the time of the look.
spool_marks = Table(
    "spool_marks",
    metadata,
    Column("spool", Text, primary_key=True),
    Column("low_water", BigInteger, nullable=False),
    Column("seen_at", BigInteger, nullable=False),
)

# The state of a subject that each alert has reported last (`ingest.ledger.alert_groups`).
alert_groups = Table(
    "alert_groups",
    metadata,
    Column("alert", Text, primary_key=True),
    # Empty for what all hosts of a ledger see alike; otherwise the host and its data folder.
    Column("scope", Text, primary_key=True),
    Column("subject", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
)

# Work that one of several hosts does for all.
leases = Table(
    "leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("until", BigInteger, nullable=False),
)

# Whether a caller sent something in an hour (Unix time in whole hours), and when last in it. One row without
# an AE title holds the last id of `instances` that was read.
peer_hours = Table(
    "peer_hours",
    metadata,
    Column("ae_title", Text, primary_key=True),
    Column("hour", BigInteger, primary_key=True, autoincrement=False),
    Column("last_at", BigInteger, nullable=False),
)

# Hosts that use the ledger (`ingest.ledger.hosts`). Later programs read it too, so these columns never
# change.
hosts = Table(
    "hosts",
    metadata,
    Column("host", Text, primary_key=True),
    Column("data_dir", Text, primary_key=True),
    Column("role", Text, primary_key=True),
    Column("release", Text, nullable=False),
    Column("schema_version", Text, nullable=False),
    Column("seen_at", BigInteger, nullable=False),
)
