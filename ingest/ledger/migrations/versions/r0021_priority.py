"""Give deliveries a priority."""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change the tables. A revision is history: it does not follow ingest.ledger.schema."""
    # A constant default: neither database rewrites the rows.
    op.add_column("deliveries", sa.Column("priority", sa.Integer, nullable=False, server_default="1"))


def downgrade() -> None:
    """Undo it."""
    op.drop_column("deliveries", "priority")
