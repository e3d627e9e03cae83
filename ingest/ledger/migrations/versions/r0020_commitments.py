"""Create the tables of requests for storage commitment."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Change the tables. A revision is history: it does not follow ingest.ledger.schema."""
    op.create_table(
        "commitments",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("transaction_uid", sa.Text, nullable=False),
        sa.Column("calling_ae", sa.Text, nullable=False),
        sa.Column("called_ae", sa.Text, nullable=False),
        sa.Column("destination", sa.Text, nullable=False),
        sa.Column("spool_ref", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("requested_at", sa.BigInteger, nullable=False),
        sa.Column("next_at", sa.BigInteger, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("last_error", sa.Text, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("spool_ref", name="commitments_spool_ref"),
    )
    is_open = sa.text("state in ('waiting', 'due')")
    op.create_index(
        "commitments_open",
        "commitments",
        ["state", "destination", "next_at"],
        sqlite_where=is_open,
        postgresql_where=is_open,
    )
    op.create_table(
        "commitment_references",
        sa.Column(
            "commitment_id", _ID, sa.ForeignKey("commitments.id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("sop_class_uid", sa.Text, nullable=False),
        sa.Column("sop_instance_uid", sa.Text, nullable=False),
        sa.Column("outcome", sa.Integer),
    )


def downgrade() -> None:
    """Undo it. Requests that wait are lost; their requestors have to ask again."""
    op.drop_table("commitment_references")
    op.drop_index("commitments_open", "commitments")
    op.drop_table("commitments")
