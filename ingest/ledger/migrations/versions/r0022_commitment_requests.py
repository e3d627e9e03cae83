"""Create what storage commitment by destinations needs: a column of deliveries, and a table of requests."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Change the tables. A revision is history: it does not follow ingest.ledger.schema."""
    op.add_column(
        "deliveries", sa.Column("commitment", sa.Text, nullable=False, server_default=sa.text("'none'"))
    )
    op.add_column("deliveries", sa.Column("commitment_request_id", sa.BigInteger))
    is_open = sa.text("commitment in ('wanted', 'asked')")
    op.create_index(
        "deliveries_commitment",
        "deliveries",
        ["destination", "commitment", "id"],
        sqlite_where=is_open,
        postgresql_where=is_open,
    )
    op.create_table(
        "commitment_requests",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("transaction_uid", sa.Text, nullable=False),
        sa.Column("destination", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("instances", sa.Integer, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("asked_at", sa.BigInteger, nullable=False),
        sa.Column("next_at", sa.BigInteger, nullable=False),
        sa.Column("last_error", sa.Text, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("transaction_uid", name="commitment_requests_transaction"),
    )
    op.create_index("commitment_requests_destination", "commitment_requests", ["destination", "id"])


def downgrade() -> None:
    """Undo it. What was asked is forgotten."""
    op.drop_index("commitment_requests_destination", "commitment_requests")
    op.drop_table("commitment_requests")
    op.drop_index("deliveries_commitment", "deliveries")
    op.drop_column("deliveries", "commitment_request_id")
    op.drop_column("deliveries", "commitment")
