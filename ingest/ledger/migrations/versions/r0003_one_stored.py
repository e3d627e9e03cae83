"""Allow one stored object for each SOP instance UID, whatever its study and series."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

COST = {"instances": 6.0}

_STORED = sa.text("state = 'stored'")


def upgrade() -> None:
    """Change the tables. A revision is history: it does not follow ingest.ledger.schema."""
    # Two workers may have stored one UID under two studies. The first one stays stored. The concatenation
    # keeps SQLite from the index of `state`, with which every row would be compared with every other one.
    op.execute(
        "UPDATE instances SET state = 'variant', note = 'another object of its SOP instance UID was first' "
        "WHERE state = 'stored' AND EXISTS (SELECT 1 FROM instances AS other "
        "WHERE other.state || '' = 'stored' AND other.sop_instance_uid = instances.sop_instance_uid "
        "AND other.id < instances.id)"
    )
    op.create_index(
        "instances_stored",
        "instances",
        ["sop_instance_uid"],
        unique=True,
        sqlite_where=_STORED,
        postgresql_where=_STORED,
    )


def downgrade() -> None:
    """Undo it; what has become a variant stays one."""
    op.drop_index("instances_stored", "instances")
