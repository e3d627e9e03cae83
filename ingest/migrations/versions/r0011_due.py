"""Leases pass over suspects in the index, without a look at their rows."""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change the tables. A revision is history: it does not follow ingest.ledger.schema."""
    op.drop_index("deliveries_due", "deliveries")
    op.create_index(
        "deliveries_due", "deliveries", ["destination", "state", "next_at", "instance_id", "suspect_since"]
    )


def downgrade() -> None:
    """Undo it."""
    op.drop_index("deliveries_due", "deliveries")
    op.create_index("deliveries_due", "deliveries", ["destination", "state", "next_at", "instance_id"])
