"""Record references of duplicates until their listener has removed its copies."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change the tables. A revision is history: it does not follow ingest.ledger.schema."""
    op.create_table(
        "duplicates",
        sa.Column("spool_ref", sa.Text, primary_key=True),
        sa.Column("noted_at", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    """Undo it."""
    op.drop_table("duplicates")
