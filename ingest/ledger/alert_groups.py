"""States of alerts, and the lease of the one host that reports alarms of the whole ledger."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import and_, bindparam, delete, select, update

from ingest.ledger.database import INSERT_BY_DIALECT, Database
from ingest.ledger.outbox import NewEvent, insert_events
from ingest.ledger.schema import alert_groups, leases

Key = tuple[str, str, str]
"""Alert, scope and subject of a group."""

_TAKE: Final = (
    update(leases)
    .where(
        leases.c.name == bindparam("of"),
        (leases.c.owner == bindparam("me")) | (leases.c.until <= bindparam("now")),
    )
    .values(owner=bindparam("me"), until=bindparam("end"))
)


class AlertGroups:
    """Keeps the state of each group of alarms.

    Every method is one transaction, durable on return. It raises LedgerError while the database is
    unavailable.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def take_lease(self, name: str, owner: str, unix_ms: int, lease_ms: int) -> bool:
        """Take or renew a lease that one owner holds at a time; return whether `owner` has it."""
        insert: Any = INSERT_BY_DIALECT[self._database.dialect](leases)
        insert = insert.values(name=name, owner=owner, until=unix_ms + lease_ms).on_conflict_do_nothing()
        insert = insert.returning(leases.c.name)
        parameters = {"of": name, "me": owner, "now": unix_ms, "end": unix_ms + lease_ms}
        with self._database.begin_write() as connection:
            if connection.execute(_TAKE, parameters).rowcount:
                return True
            return connection.execute(insert).first() is not None

    def read_groups(self, scope: str | None = None) -> dict[Key, str]:
        """Return the states of a scope, or of all scopes, as JSON."""
        query = select(alert_groups)
        if scope is not None:
            query = query.where(alert_groups.c.scope == scope)
        with self._database.begin_read() as connection:
            rows = connection.execute(query).mappings()
            return {(row["alert"], row["scope"], row["subject"]): row["state"] for row in rows}

    def record(self, changes: Mapping[Key, str], events: Sequence[NewEvent], unix_ms: int) -> None:
        """Record new states together with the events that report them.

        Args:
            changes: JSON of each state that changed; empty text removes the group.
            events: Events to insert.
            unix_ms: Current time.
        """
        with self._database.begin_write() as connection:
            insert_events(connection, events)
            for (alert, scope, subject), state in changes.items():
                key = {"alert": alert, "scope": scope, "subject": subject}
                if not state:
                    columns = (alert_groups.c[name] == value for name, value in key.items())
                    connection.execute(delete(alert_groups).where(and_(*columns)))
                    continue
                insert: Any = INSERT_BY_DIALECT[self._database.dialect](alert_groups)
                insert = insert.values(**key, state=state, updated_at=unix_ms)
                insert = insert.on_conflict_do_update(
                    index_elements=list(key), set_={"state": state, "updated_at": unix_ms}
                )
                connection.execute(insert)

    def remove_unused(self, updated_before: int) -> int:
        """Remove groups that no host has changed for long: their alert or host is gone."""
        statement = delete(alert_groups).where(alert_groups.c.updated_at < updated_before)
        with self._database.begin_write() as connection:
            return connection.execute(statement).rowcount
