"""Index studies and series."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

COST = {"instances": 9.0}

_SEARCH_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

# What older rows tell without their files. Attributes follow in the background (`ingest ledger reindex`).
_FILL = (
    """INSERT INTO studies (study_uid, first_at, last_at, first_id, last_id, last_stored_at)
    SELECT study_uid, min(received_at), max(received_at), min(id), max(id),
    max(CASE WHEN state IN ('stored', 'variant') THEN stored_at ELSE 0 END)
    FROM instances GROUP BY study_uid""",
    """UPDATE studies SET calling_ae =
    (SELECT substr(calling_ae, 1, 64) FROM instances WHERE instances.id = studies.last_id)""",
    """INSERT INTO series (study_uid, series_uid)
    SELECT DISTINCT study_uid, series_uid FROM instances WHERE length(series_uid) <= 128""",
    """INSERT INTO study_senders (study_uid, calling_ae)
    SELECT DISTINCT study_uid, substr(calling_ae, 1, 64) FROM instances""",
)


def _text(name: str, type_: sa.types.TypeEngine[str] | None = None) -> sa.Column[str]:
    return sa.Column(name, type_ or sa.Text, nullable=False, server_default="")


def upgrade() -> None:
    """Change the tables. A revision is history: it does not follow ingest.ledger.schema."""
    op.create_table(
        "studies",
        sa.Column("study_uid", sa.Text, primary_key=True),
        *(
            sa.Column(name, sa.BigInteger, nullable=False)
            for name in ("first_at", "last_at", "first_id", "last_id", "last_stored_at")
        ),
        _text("calling_ae"),
        _text("patient_id", _SEARCH_TEXT),
        _text("issuer_of_patient_id"),
        _text("patient_name"),
        _text("name_alphabetic", _SEARCH_TEXT),
        _text("name_ideographic", _SEARCH_TEXT),
        _text("name_phonetic", _SEARCH_TEXT),
        _text("accession_number", _SEARCH_TEXT),
        _text("study_date", _SEARCH_TEXT),
        _text("study_time"),
        _text("study_description"),
        _text("institution_name"),
        sa.Column("patients_differ", sa.Boolean, nullable=False, server_default=sa.text("false")),
        _text("indexed_as"),
    )
    op.create_table(
        "series",
        sa.Column("study_uid", sa.Text, primary_key=True),
        sa.Column("series_uid", sa.Text, primary_key=True),
        _text("modality"),
        sa.Column("series_number", sa.BigInteger),
        _text("series_description"),
        _text("station_name"),
        _text("institution_name"),
        _text("body_part"),
    )
    op.create_table(
        "study_senders",
        sa.Column("study_uid", sa.Text, primary_key=True),
        sa.Column("calling_ae", sa.Text, primary_key=True),
    )
    op.create_table(
        "reindexing",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("lease_until", sa.BigInteger, nullable=False),
        sa.Column("level", sa.Text, nullable=False),
        sa.Column("unreadable", sa.BigInteger, nullable=False),
    )
    op.execute("INSERT INTO reindexing (id, owner, lease_until, level, unreadable) VALUES (1, '', 0, '', 0)")
    for statement in _FILL:
        op.execute(statement)
    received = ["last_at", "study_uid", "first_at", "last_stored_at", "first_id", "last_id"]
    for name, table, columns in (
        ("studies_received", "studies", received),
        ("studies_newest", "studies", ["last_id"]),
        ("studies_patient_id", "studies", ["patient_id", "last_at"]),
        ("studies_accession_number", "studies", ["accession_number", "last_at"]),
        ("studies_study_date", "studies", ["study_date", "last_at"]),
        ("studies_name_alphabetic", "studies", ["name_alphabetic", "last_at"]),
        ("studies_name_ideographic", "studies", ["name_ideographic", "last_at"]),
        ("studies_name_phonetic", "studies", ["name_phonetic", "last_at"]),
        ("studies_indexed_as", "studies", ["indexed_as"]),
        ("series_series_uid", "series", ["series_uid"]),
        ("series_modality", "series", ["modality", "study_uid"]),
        ("study_senders_calling_ae", "study_senders", ["calling_ae", "study_uid"]),
    ):
        op.create_index(name, table, columns)


def downgrade() -> None:
    """Undo it."""
    for name in ("reindexing", "study_senders", "series", "studies"):
        op.drop_table(name)
