"""Keep failed attempts, caller certificates and paused destinations."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_PAUSE = ("paused_at", "paused_by", "pause_reason")


def upgrade() -> None:
    """Change the tables. A revision is history: it does not follow ingest.ledger.schema."""
    identity = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "attempts",
        sa.Column(
            "delivery_id", identity, sa.ForeignKey("deliveries.id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("ended_at", sa.BigInteger, nullable=False),
        sa.Column("duration_ms", sa.Integer),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("next_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "caller_certificates",
        sa.Column("fingerprint", sa.Text, primary_key=True),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("issuer", sa.Text, nullable=False),
        sa.Column("not_before", sa.BigInteger, nullable=False),
        sa.Column("not_after", sa.BigInteger, nullable=False),
        sa.Column("first_at", sa.BigInteger, nullable=False),
        sa.Column("last_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "caller_titles",
        sa.Column("fingerprint", sa.Text, primary_key=True),
        sa.Column("calling_ae", sa.Text, primary_key=True),
        sa.Column("first_at", sa.BigInteger, nullable=False),
        sa.Column("last_at", sa.BigInteger, nullable=False),
    )
    op.add_column("instances", sa.Column("certificate", sa.Text, nullable=False, server_default=""))
    op.add_column("deliveries", sa.Column("duration_ms", sa.Integer))
    for name, kind, default in zip(_PAUSE, (sa.BigInteger, sa.Text, sa.Text), ("0", "", ""), strict=True):
        op.add_column("circuits", sa.Column(name, kind, nullable=False, server_default=default))


def downgrade() -> None:
    """Undo it."""
    for name in _PAUSE:
        op.drop_column("circuits", name)
    op.drop_column("deliveries", "duration_ms")
    op.drop_column("instances", "certificate")
    for table in ("caller_titles", "caller_certificates", "attempts"):
        op.drop_table(table)
