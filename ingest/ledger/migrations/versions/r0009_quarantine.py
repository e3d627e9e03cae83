"""Distinguish acknowledged from refused instances in quarantine, and keep each content once."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

COST = {"instances": 1.0}

_QUARANTINED = sa.text("state = 'quarantined'")
# Before this revision only the note showed that an instance was refused.
_REFUSED = sa.text(
    "UPDATE instances SET refused_status = :status WHERE state = 'quarantined' AND note LIKE :note"
)


def upgrade() -> None:
    """Change the tables. A revision is history: it does not follow ingest.ledger.schema."""
    for column in (
        sa.Column("refused_status", sa.Integer, nullable=False, server_default="0"),
        sa.Column("times", sa.Integer, nullable=False, server_default="1"),
        sa.Column("content_digest", sa.Text, nullable=False, server_default=""),
    ):
        op.add_column("instances", column)
    for status in (0xA900, 0xC000):
        told = {"status": status, "note": f"refused with {status:04X}H:%"}
        op.get_bind().execute(_REFUSED, told)
    op.create_index(
        "instances_quarantined",
        "instances",
        ["content_digest"],
        sqlite_where=_QUARANTINED,
        postgresql_where=_QUARANTINED,
    )


def downgrade() -> None:
    """Undo it."""
    op.drop_index("instances_quarantined", "instances")
    for column in ("content_digest", "times", "refused_status"):
        op.drop_column("instances", column)
