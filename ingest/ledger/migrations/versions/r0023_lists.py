"""Find deliveries by their last change and their error, and the newest instances of a state."""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

COST = {"instances": 2.0, "deliveries": 3.0}

_HAS_ERROR = sa.text("last_error <> ''")


def upgrade() -> None:
    """Change the tables. A revision is history: it does not follow ingest.ledger.schema."""
    op.drop_index("instances_state", "instances")
    op.create_index("instances_state", "instances", ["state", "id"])
    op.create_index("deliveries_updated", "deliveries", ["updated_at"])
    op.create_index(
        "deliveries_with_error",
        "deliveries",
        ["instance_id"],
        sqlite_where=_HAS_ERROR,
        postgresql_where=_HAS_ERROR,
    )


def downgrade() -> None:
    """Undo it."""
    for name in ("deliveries_with_error", "deliveries_updated"):
        op.drop_index(name, "deliveries")
    op.drop_index("instances_state", "instances")
    op.create_index("instances_state", "instances", ["state"])
