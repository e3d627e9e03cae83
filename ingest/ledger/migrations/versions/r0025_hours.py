"""Give deliveries the hours of their routes."""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change the tables. A revision is history: it does not follow ingest.ledger.schema."""
    # A constant default: neither database rewrites the rows.
    op.add_column("deliveries", sa.Column("hours", sa.Text, nullable=False, server_default=""))


def downgrade() -> None:
    """Undo it."""
    op.drop_column("deliveries", "hours")
