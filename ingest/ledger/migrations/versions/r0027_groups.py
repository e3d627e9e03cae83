"""Choose a member of a group for each study."""

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change the tables. A revision is history: it does not follow ingest.ledger.schema."""
    op.add_column("deliveries", sa.Column("member", sa.Text(), nullable=False, server_default=""))
    op.create_table(
        "group_studies",
        sa.Column("study_uid", sa.Text(), primary_key=True),
        sa.Column("group_name", sa.Text(), primary_key=True),
        sa.Column("member", sa.Text(), nullable=False),
        sa.Column("turn", sa.BigInteger(), nullable=False),
        sa.Column("is_begun", sa.Boolean(), nullable=False),
    )
    op.create_index("group_studies_turn", "group_studies", ["group_name", "turn"])


def downgrade() -> None:
    """Undo it."""
    op.drop_table("group_studies")
    op.drop_column("deliveries", "member")
