"""The hosts that use a ledger, and the release of each one.

Workers note their host once a minute. `ingest upgrade` reads which other hosts still run, and the error about
a newer ledger names the release that migrated it. The columns of this table never change, so that every
later program can read it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, bindparam, delete, inspect, select

from ingest.build_info import read_version
from ingest.ledger.database import INSERT_BY_DIALECT, Database
from ingest.ledger.schema import hosts
from ingest.program import SCHEMA_VERSION

RUNNING_MS: Final = 150_000
"""A host that was seen since then probably runs: workers note it every minute."""

KEPT_MS: Final = 90 * 86_400_000
"""Rows of hosts that were not seen for longer are deleted."""

_KEY: Final = ("host", "data_dir", "role")


@dataclass(frozen=True, slots=True)
class HostNote:
    """A role that ran on a host.

    Attributes:
        host: Name of the host.
        data_dir: Its data folder.
        role: The worker's role, such as "persist".
        release: Release of the program.
        schema_version: Schema version that this release needs.
        seen_at: When its worker last used the ledger, in Unix milliseconds of the ledger's clock.
    """

    host: str
    data_dir: str
    role: str
    release: str
    schema_version: str
    seen_at: int


class Hosts:
    """Notes and lists the hosts of a ledger.

    Every method is one transaction. It raises LedgerError while the database is unavailable.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def note_host(self, host: str, data_dir: str, role: str) -> None:
        """Note that a worker of this program runs, if the ledger still has the schema of this program.

        Raises:
            LedgerVersionError: A newer program has migrated the ledger.
        """
        now = self._database.unix_ms()
        row = HostNote(host, data_dir, role, read_version(), SCHEMA_VERSION, now)
        values = {name: getattr(row, name) for name in HostNote.__dataclass_fields__}
        insert = INSERT_BY_DIALECT[self._database.dialect](hosts).values(values)
        changed = {name: insert.excluded[name] for name in values if name not in _KEY}
        with self._database.begin_write() as connection:
            self._database.require_schema_within(connection)
            connection.execute(insert.on_conflict_do_update(index_elements=_KEY, set_=changed))
            connection.execute(_DELETE_OLD, {"before": now - KEPT_MS})

    def list_hosts(self) -> Sequence[HostNote]:
        """Return all notes, the newest first; none for a ledger from before this table."""
        with self._database.begin_read() as connection:
            return read_hosts(connection)


_DELETE_OLD: Final = delete(hosts).where(hosts.c.seen_at < bindparam("before"))


def read_hosts(connection: Connection) -> list[HostNote]:
    """Return the notes as `Hosts.list_hosts`, within a transaction, whatever the schema version is."""
    if not inspect(connection).has_table(hosts.name):
        return []
    columns = [hosts.c[name] for name in HostNote.__dataclass_fields__]
    rows = connection.execute(select(*columns).order_by(hosts.c.seen_at.desc()))
    return [HostNote(*row) for row in rows]
