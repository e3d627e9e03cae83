"""Record the matching routes, and allow instances that are no longer in the store."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

COST = {"instances": 9.0}

_HAS_FILE = sa.text("state not in ('replaced', 'removing', 'removed')")
_HAD_FILE = sa.text("state <> 'replaced'")


def upgrade() -> None:
    """Change the table. A revision is history: it does not follow ingest.ledger.schema."""
    op.add_column("instances", sa.Column("routed", sa.Text, nullable=False, server_default=""))
    _index_store_keys(_HAS_FILE)


def downgrade() -> None:
    """Undo it; what was removed from the store keeps its state."""
    _index_store_keys(_HAD_FILE)
    op.drop_column("instances", "routed")


def _index_store_keys(where: sa.TextClause) -> None:
    op.drop_index("instances_store_key", "instances")
    op.create_index(
        "instances_store_key",
        "instances",
        ["store_key"],
        unique=True,
        sqlite_where=where,
        postgresql_where=where,
    )
