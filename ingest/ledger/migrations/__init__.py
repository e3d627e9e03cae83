"""Migrations of the ledger's schema; alembic finds env.py and versions/ here."""

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


def upgrade(connection: Connection) -> bool:
    """Bring the ledger to the newest revision, within the caller's transaction.

    Returns:
        False if this program does not know the revision of the ledger; nothing was changed.
    """
    config = configuration(connection)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if connection.dialect.has_table(connection, "alembic_version"):
        found = {str(row[0]) for row in connection.exec_driver_sql("SELECT version_num FROM alembic_version")}
        if not found <= known:
            return False
    command.upgrade(config, "head")
    return True
