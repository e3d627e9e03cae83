"""Create what the completion of studies and series needs: a column of deliveries, and four tables."""

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_IS_RECEIVING = sa.text("state = 'receiving'")


def upgrade() -> None:
    """Change the tables. A revision is history: it does not follow ingest.ledger.schema."""
    op.add_column("deliveries", sa.Column("awaits", sa.Text, nullable=False, server_default=sa.text("''")))
    op.create_table(
        "receptions",
        sa.Column("study_uid", sa.Text, primary_key=True),
        sa.Column("series_uid", sa.Text, primary_key=True),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("first_at", sa.BigInteger, nullable=False),
        sa.Column("last_at", sa.BigInteger, nullable=False),
        sa.Column("instances", sa.BigInteger, nullable=False),
        sa.Column("stable_ms", sa.BigInteger, nullable=False),
        sa.Column("due_at", sa.BigInteger, nullable=False),
    )
    op.create_index(
        "receptions_due",
        "receptions",
        ["due_at", "study_uid", "series_uid"],
        sqlite_where=_IS_RECEIVING,
        postgresql_where=_IS_RECEIVING,
    )
    op.create_index("receptions_ended", "receptions", ["state", "last_at"])
    op.create_table(
        "carriers",
        sa.Column("association", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("study_uid", sa.Text, nullable=False),
        sa.Column("series_uid", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("seen_at", sa.BigInteger, nullable=False),
    )
    op.create_index("carriers_study_uid", "carriers", ["study_uid", "series_uid"])
    op.create_table(
        "completions",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("study_uid", sa.Text, nullable=False),
        sa.Column("series_uid", sa.Text, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("event", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("instances", sa.BigInteger, nullable=False),
        sa.Column("first_at", sa.BigInteger, nullable=False),
        sa.Column("last_at", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("study_uid", "series_uid", "generation", "event", name="completions_generation"),
    )
    op.create_index("completions_at", "completions", ["at"])
    op.create_table(
        "spool_marks",
        sa.Column("spool", sa.Text, primary_key=True),
        sa.Column("low_water", sa.BigInteger, nullable=False),
        sa.Column("seen_at", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    """Undo it. Deliveries that await a completion go at once."""
    op.execute("update deliveries set state = 'waiting' where state = 'awaiting'")
    op.drop_table("spool_marks")
    op.drop_index("completions_at", "completions")
    op.drop_table("completions")
    op.drop_index("carriers_study_uid", "carriers")
    op.drop_table("carriers")
    for name in ("receptions_ended", "receptions_due"):
        op.drop_index(name, "receptions")
    op.drop_table("receptions")
    op.drop_column("deliveries", "awaits")
