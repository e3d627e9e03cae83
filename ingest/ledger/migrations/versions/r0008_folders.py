"""Record the identities of the store and quarantine folders."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change the tables. A revision is history: it does not follow ingest.ledger.schema."""
    op.create_table(
        "folders",
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("folder_id", sa.Text, nullable=False),
    )


def downgrade() -> None:
    """Undo it; what is forgotten is learnt again."""
    op.drop_table("folders")
