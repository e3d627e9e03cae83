"""Index stored instances by age."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

COST = {"instances": 3.0}

_KEPT = sa.text("state || '' in ('stored', 'variant')")


def upgrade() -> None:
    """Change the tables. A revision is history: it does not follow ingest.ledger.schema."""
    op.create_index(
        "instances_kept",
        "instances",
        ["stored_at", "id", "study_uid", "size"],
        sqlite_where=_KEPT,
        postgresql_where=_KEPT,
    )


def downgrade() -> None:
    """Undo it."""
    op.drop_index("instances_kept", "instances")
