"""Record which instances broke an association, and since when the remote answers again."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

COST = {"deliveries": 0.5}

_SUSPECT = sa.text("suspect_since > 0")


def upgrade() -> None:
    """Change the tables. A revision is history: it does not follow ingest.ledger.schema."""
    op.add_column("deliveries", sa.Column("breaks", sa.Integer, nullable=False, server_default="0"))
    op.add_column("deliveries", sa.Column("suspect_since", sa.BigInteger, nullable=False, server_default="0"))
    op.create_index(
        "deliveries_suspects",
        "deliveries",
        ["destination", "state", "next_at", "instance_id"],
        sqlite_where=_SUSPECT,
        postgresql_where=_SUSPECT,
    )
    op.add_column("circuits", sa.Column("breaks", sa.Integer, nullable=False, server_default="0"))
    op.add_column("circuits", sa.Column("answered_at", sa.BigInteger, nullable=False, server_default="0"))


def downgrade() -> None:
    """Undo it; a suspect is tried like any other delivery then."""
    op.drop_index("deliveries_suspects", "deliveries")
    for table, column in (
        ("circuits", "answered_at"),
        ("circuits", "breaks"),
        ("deliveries", "suspect_since"),
        ("deliveries", "breaks"),
    ):
        op.drop_column(table, column)
