"""What forwarding needs: which rule took an instance, circuits of destinations, what they took by the minute.

Also states of instances that are no longer in the store.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_HAS_FILE = sa.text("state not in ('replaced', 'removing', 'removed', 'released', 'dropped')")
_HAD_FILE = sa.text("state <> 'replaced'")


def upgrade() -> None:
    """Change the tables. A revision is history: it does not follow ingest.ledger.schema."""
    op.add_column("instances", sa.Column("routed", sa.Text, nullable=False, server_default=""))
    _index_store_keys(_HAS_FILE)
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
        sa.Column("minute", sa.BigInteger, primary_key=True),
        sa.Column("delivered", sa.BigInteger, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("failed", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    """Undo it; what was removed from the store keeps its state."""
    op.drop_table("throughput")
    op.drop_table("circuits")
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
