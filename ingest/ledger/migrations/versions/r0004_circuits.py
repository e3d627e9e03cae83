"""Create the tables for circuits and throughput."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change the tables. A revision is history: it does not follow ingest.ledger.schema."""
    op.create_table(
        "circuits",
        sa.Column("destination", sa.Text, primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("opened_at", sa.BigInteger, nullable=False),
        sa.Column("probe_at", sa.BigInteger, nullable=False),
        sa.Column("permanent", sa.Boolean, nullable=False),
        sa.Column("last_error", sa.Text, nullable=False),
        sa.Column("last_error_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "throughput",
        sa.Column("destination", sa.Text, primary_key=True),
        sa.Column("minute", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("delivered", sa.BigInteger, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    """Undo it; what is forgotten is learnt again."""
    op.drop_table("throughput")
    op.drop_table("circuits")
