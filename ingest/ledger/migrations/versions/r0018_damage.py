"""Record in a column whether an instance was damaged in the spool; until now its note said so."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change the tables. A revision is history: it does not follow ingest.ledger.schema."""
    op.add_column(
        "instances",
        sa.Column("is_damaged_in_spool", sa.Boolean, nullable=False, server_default=sa.false()),
    )
    instances = sa.table(
        "instances", sa.column("state"), sa.column("note"), sa.column("is_damaged_in_spool", sa.Boolean)
    )
    # The index of `state` finds the few quarantined rows among millions.
    op.execute(
        instances.update()
        .where(instances.c.state == "quarantined", instances.c.note.like("damaged in the spool%"))
        .values(is_damaged_in_spool=True)
    )


def downgrade() -> None:
    """Undo it."""
    op.drop_column("instances", "is_damaged_in_spool")
