"""Index due deliveries and suspects, so that a lease skips suspects within the index."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

COST = {"deliveries": 3.0}

_SUSPECT = sa.text("suspect_since > 0")


def upgrade() -> None:
    """Change the tables. A revision is history: it does not follow ingest.ledger.schema."""
    _index(
        ["destination", "state", "next_at", "instance_id", "suspect_since"],
        ["destination", "next_at", "instance_id"],
    )


def downgrade() -> None:
    """Undo it."""
    columns = ["destination", "state", "next_at", "instance_id"]
    _index(columns, columns)


def _index(due: list[str], suspects: list[str]) -> None:
    op.drop_index("deliveries_due", "deliveries")
    op.create_index("deliveries_due", "deliveries", due)
    op.drop_index("deliveries_suspects", "deliveries")
    op.create_index(
        "deliveries_suspects", "deliveries", suspects, sqlite_where=_SUSPECT, postgresql_where=_SUSPECT
    )
