"""Migrations of the ledger's schema; alembic finds env.py and versions/ here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection


def configuration(connection: Connection | None = None) -> Config:
    """Return an alembic configuration for this folder; no alembic.ini is needed.

    Args:
        connection: The connection to migrate, in a transaction of the caller.
    """
    config = Config()
    # configparser reads the values and interprets %.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def head() -> str | None:
    """Return the newest revision."""
    return ScriptDirectory.from_config(configuration()).get_current_head()


@dataclass(frozen=True, slots=True)
class MigrationStep:
    """One migration.

    Attributes:
        revision: The schema version after it.
        sentence: What it does, for people.
        cost: Seconds for a million rows of each table that it reads or writes as a whole (`COST` of its
            module). A step without costs takes about the same time for any ledger.
    """

    revision: str
    sentence: str
    cost: Mapping[str, float]


def list_steps(found: str) -> list[MigrationStep]:
    """Return the migrations that a ledger with this schema version needs, in their order."""
    scripts = ScriptDirectory.from_config(configuration()).walk_revisions()
    return [
        MigrationStep(script.revision, str(script.doc), getattr(script.module, "COST", {}))
        for script in reversed(list(scripts))
        if script.revision > found
    ]


def upgrade(connection: Connection, report_step: Callable[[str], None] | None = None) -> bool:
    """Bring the ledger to the newest revision, within the caller's transaction.

    Args:
        connection: The connection to migrate.
        report_step: Called with the revision of each migration that was run.

    Returns:
        False if this program does not know the revision of the ledger; nothing was changed.
    """
    config = configuration(connection)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if connection.dialect.has_table(connection, "alembic_version"):
        found = {str(row[0]) for row in connection.exec_driver_sql("SELECT version_num FROM alembic_version")}
        if not found <= known:
            return False
    config.attributes["report_step"] = report_step
    command.upgrade(config, "head")
    return True
