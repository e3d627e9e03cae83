"""Processes that migrate a ledger, and ledgers of older schema versions."""

import os
import subprocess
import sys
from pathlib import Path

from alembic import command

from ingest.ledger import Ledger
from ingest.ledger.migrations import configuration

ROOT = Path(__file__).parents[2]

# Migrates argv[1]; after the revision argv[2] it waits, in the midst of the transaction, until it is killed.
_PROGRAM = """
import sys, time
from ingest.ledger import Ledger
from ingest.log import configure_logging
configure_logging("warning", "console", None)
url, pause_after = sys.argv[1:]
def report(revision):
    if revision == pause_after:
        print("in the midst", flush=True)
        time.sleep(60)
ledger = Ledger(url)
done = ledger.database.migrate(report)
print("migrated from", done.found if done else "-", flush=True)
ledger.close()
"""


def start_migration(url: str, *, pause_after: str = "") -> "subprocess.Popen[str]":
    """Migrate in a process of its own, which stays in the midst if `pause_after` names a revision."""
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, url, pause_after],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def read_line(process: "subprocess.Popen[str]") -> str:
    """The next line that a migrating process prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def finish(process: "subprocess.Popen[str]") -> str:
    """What a migrating process prints until it ends, which it does without an error."""
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 0, output
    return output.strip()


def downgrade(ledger: Ledger, revision: str) -> None:
    """Bring the ledger to an older schema version."""
    with ledger.database.begin_write() as connection:
        command.downgrade(configuration(connection), revision)


def pretend_newer(ledger: Ledger, release: str = "99.1.0") -> None:
    """Let the ledger look as though a newer release had migrated it."""
    with ledger.database.begin_write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        connection.exec_driver_sql(
            "INSERT INTO hosts (host, data_dir, role, release, schema_version, seen_at) "
            f"VALUES ('elsewhere', '/var/lib/dicom-ingest', 'persist', '{release}', '9999', 1)"
        )
