"""Remember how far audit messages are written."""

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change the tables. A revision is history: it does not follow ingest.ledger.schema."""


def downgrade() -> None:
    """Undo it."""
