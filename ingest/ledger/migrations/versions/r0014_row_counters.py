"""Count rows while they are written, because counting millions of rows takes seconds.

Triggers keep the numbers, so that no statement of the program can forget to. On SQLite, which has one writer
at a time, each row changes a counter. On PostgreSQL each statement changes the counters of its own session:
otherwise every writer would wait for the commit of every other one. The sum over all sessions counts.
"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

COST = {"instances": 0.5, "deliveries": 0.5}

_EVENTS = ("insert", "update", "delete")
_TABLES = {"instances": "''", "deliveries": "{row}.destination"}
"""Counted tables, and the SQL of the destination of a row."""

_ADD = (
    "ON CONFLICT (counted, destination, state, session) "
    "DO UPDATE SET number = row_counts.number + excluded.number"
)


def upgrade() -> None:
    """Change the tables. A revision is history: it does not follow ingest.ledger.schema."""
    op.create_table(
        "row_counts",
        sa.Column("counted", sa.Text, primary_key=True),
        sa.Column("destination", sa.Text, primary_key=True),
        sa.Column("state", sa.Text, primary_key=True),
        sa.Column("session", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    for table, destination in _TABLES.items():
        named = destination.format(row=table)
        # In the order of an index, so that nothing is sorted.
        grouping = "state" if table == "instances" else "destination, state"
        op.execute(
            f"INSERT INTO row_counts SELECT '{table}', {named}, state, 0, count(*) "  # noqa: S608 - constants
            f"FROM {table} GROUP BY {grouping}"
        )
    if op.get_bind().dialect.name == "sqlite":
        _create_sqlite_triggers()
    else:
        _create_postgresql_triggers()


def downgrade() -> None:
    """Undo it."""
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    for table in _TABLES:
        for event in _EVENTS:
            op.execute(f"DROP TRIGGER {table}_count_{event}" + ("" if is_sqlite else f" ON {table}"))
        if not is_sqlite:
            op.execute(f"DROP TRIGGER {table}_count_truncate ON {table}")
            op.execute(f"DROP FUNCTION count_{table}()")
    if not is_sqlite:
        op.execute("DROP FUNCTION merge_row_counts()")
    op.drop_table("row_counts")


def _create_sqlite_triggers() -> None:
    for table, destination in _TABLES.items():
        plus = f"('{table}', {destination.format(row='NEW')}, NEW.state, 0, 1)"
        minus = f"('{table}', {destination.format(row='OLD')}, OLD.state, 0, -1)"
        for event, condition, values in (
            ("insert", "", plus),
            ("update", " OF state", f"{minus}, {plus}"),
            ("delete", "", minus),
        ):
            when = " WHEN OLD.state <> NEW.state" if event == "update" else ""
            op.execute(
                f"CREATE TRIGGER {table}_count_{event} "  # noqa: S608 - constants
                f"AFTER {event.upper()}{condition} ON {table}{when} "
                f"BEGIN INSERT INTO row_counts VALUES {values} {_ADD}; END"
            )


def _create_postgresql_triggers() -> None:
    # A session that has ended leaves its counters. Once in about a thousand batches they are added to those
    # of session 0. One transaction at a time does so, and no other one waits for it.
    op.execute("""
        CREATE FUNCTION merge_row_counts() RETURNS void LANGUAGE plpgsql AS $$
        BEGIN
            IF random() >= 0.001 OR NOT pg_try_advisory_xact_lock(1908928) THEN RETURN; END IF;
            WITH left_over AS (
                DELETE FROM row_counts
                WHERE session <> 0 AND session NOT IN (SELECT pid FROM pg_stat_activity WHERE pid IS NOT NULL)
                RETURNING counted, destination, state, number
            )
            INSERT INTO row_counts (counted, destination, state, session, number)
            SELECT counted, destination, state, 0, sum(number)
            FROM left_over GROUP BY counted, destination, state
            ON CONFLICT (counted, destination, state, session)
            DO UPDATE SET number = row_counts.number + excluded.number;
        END $$
        """)
    for table in _TABLES:
        named = "''" if table == "instances" else "destination"
        changes = {
            "INSERT": "SELECT {0}, state, 1 AS number FROM new_rows",
            "DELETE": "SELECT {0}, state, -1 AS number FROM old_rows",
        }
        changes["UPDATE"] = f"{changes['INSERT']} UNION ALL {changes['DELETE']}"
        branches = "".join(
            f"IF TG_OP = '{event}' THEN "  # noqa: S608 - constants
            "INSERT INTO row_counts (counted, destination, state, session, number) "
            f"SELECT '{table}', named, state, pg_backend_pid(), sum(number) "
            f"FROM ({change.format(f'{named} AS named')}) AS changes "
            f"GROUP BY named, state HAVING sum(number) <> 0 {_ADD}; END IF; "
            for event, change in changes.items()
        )
        branches += f"IF TG_OP = 'TRUNCATE' THEN DELETE FROM row_counts WHERE counted = '{table}'; END IF; "  # noqa: S608
        merge = (
            "IF TG_OP = 'INSERT' THEN PERFORM merge_row_counts(); END IF; " if table == "instances" else ""
        )
        op.execute(
            f"CREATE FUNCTION count_{table}() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN {branches}{merge}RETURN NULL; END $$"
        )
        seen = {
            "insert": "NEW TABLE AS new_rows",
            "update": "OLD TABLE AS old_rows NEW TABLE AS new_rows",
            "delete": "OLD TABLE AS old_rows",
        }
        op.execute(
            f"CREATE TRIGGER {table}_count_truncate AFTER TRUNCATE ON {table} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION count_{table}()"
        )
        for event, tables in seen.items():
            op.execute(
                f"CREATE TRIGGER {table}_count_{event} AFTER {event.upper()} ON {table} "
                f"REFERENCING {tables} FOR EACH STATEMENT EXECUTE FUNCTION count_{table}()"
            )
