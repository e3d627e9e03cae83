"""Create the tables for instances and their deliveries."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make both tables. A revision is history: it does not follow ingest.ledger.schema."""
    op.create_table(
        "instances",
        sa.Column("id", _Id, primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("sop_instance_uid", sa.Text, nullable=False),
        sa.Column("sop_class_uid", sa.Text, nullable=False),
        sa.Column("study_uid", sa.Text, nullable=False),
        sa.Column("series_uid", sa.Text, nullable=False),
        sa.Column("transfer_syntax_uid", sa.Text, nullable=False),
        sa.Column("store_key", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("data_set_offset", sa.BigInteger, nullable=False),
        sa.Column("calling_ae", sa.Text, nullable=False),
        sa.Column("called_ae", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("spool_ref", sa.Text, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("received_at", sa.BigInteger, nullable=False),
        sa.Column("stored_at", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("spool_ref", name="instances_spool_ref"),
    )
    op.create_index("instances_sop_instance_uid", "instances", ["sop_instance_uid"])
    op.create_index("instances_study_uid", "instances", ["study_uid"])
    op.create_index("instances_state", "instances", ["state"])
    op.create_index(
        "instances_store_key",
        "instances",
        ["store_key"],
        unique=True,
        sqlite_where=sa.text("state <> 'replaced'"),
        postgresql_where=sa.text("state <> 'replaced'"),
    )
    op.create_table(
        "deliveries",
        sa.Column("id", _Id, primary_key=True),
        sa.Column("instance_id", _Id, sa.ForeignKey("instances.id"), nullable=False),
        sa.Column("destination", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_at", sa.BigInteger, nullable=False),
        sa.Column("lease_owner", sa.Text),
        sa.Column("lease_until", sa.BigInteger),
        sa.Column("last_status", sa.Integer),
        sa.Column("last_error", sa.Text),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("instance_id", "destination", name="deliveries_instance_destination"),
    )
    op.create_index("deliveries_due", "deliveries", ["destination", "state", "next_at", "instance_id"])


def downgrade() -> None:
    """Remove both tables."""
    op.drop_table("deliveries")
    op.drop_table("instances")
