"""Try events that their receiver refuses apart from the others, and find events that were given up."""

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None

_IS_OPEN = sa.text("state in ('waiting', 'sending')")
_IS_DEAD = sa.text("state = 'dead'")


def upgrade() -> None:
    """Change the tables. A revision is history: it does not follow ingest.ledger.schema."""
    op.add_column("outbox", sa.Column("is_refused", sa.Boolean, nullable=False, server_default=sa.false()))
    op.drop_index("outbox_open", "outbox")
    op.create_index(
        "outbox_open",
        "outbox",
        ["target", "is_refused", "id"],
        sqlite_where=_IS_OPEN,
        postgresql_where=_IS_OPEN,
    )
    op.create_index(
        "outbox_dead", "outbox", ["target", "id"], sqlite_where=_IS_DEAD, postgresql_where=_IS_DEAD
    )


def downgrade() -> None:
    """Undo it."""
    op.drop_index("outbox_dead", "outbox")
    op.drop_index("outbox_open", "outbox")
    op.create_index(
        "outbox_open", "outbox", ["target", "id"], sqlite_where=_IS_OPEN, postgresql_where=_IS_OPEN
    )
    op.drop_column("outbox", "is_refused")
