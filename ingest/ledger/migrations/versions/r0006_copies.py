"""Allow several stored copies of one SOP instance UID, and index variants."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

COST = {"instances": 4.0}

_STORED = sa.text("state = 'stored'")
_VARIANT = sa.text("state = 'variant'")


def upgrade() -> None:
    """Change the tables. A revision is history: it does not follow ingest.ledger.schema."""
    op.add_column("instances", sa.Column("copy_digest", sa.Text, nullable=False, server_default=""))
    op.drop_index("instances_stored", "instances")
    _index_stored("sop_instance_uid", "copy_digest")
    op.create_index(
        "instances_variants",
        "instances",
        ["sop_instance_uid"],
        sqlite_where=_VARIANT,
        postgresql_where=_VARIANT,
    )


def downgrade() -> None:
    """Undo it; a copy becomes a variant."""
    op.execute("UPDATE instances SET state = 'variant' WHERE state = 'stored' AND copy_digest <> ''")
    op.drop_index("instances_variants", "instances")
    op.drop_index("instances_stored", "instances")
    _index_stored("sop_instance_uid")
    op.drop_column("instances", "copy_digest")


def _index_stored(*columns: str) -> None:
    op.create_index(
        "instances_stored",
        "instances",
        list(columns),
        unique=True,
        sqlite_where=_STORED,
        postgresql_where=_STORED,
    )
