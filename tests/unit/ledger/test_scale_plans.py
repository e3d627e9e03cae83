"""Lists and pages read a small part of a large ledger, on both databases.

The work of SQLite is counted in instructions of its virtual machine, which do not depend on the machine.
PostgreSQL shows its plans. `make bench-scale` measures times with ten million instances.
"""

import re
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, event

from benchmarks.scale import fill_ledger, list_calls
from ingest.ledger import Ledger

INSTANCES = 100_000
INSTRUCTIONS_MAX = 900_000
"""Reading each of 100,000 rows takes more than a million instructions."""

STEP = 1000


@pytest.fixture(scope="module")
def sqlite_ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    ledger = Ledger(f"sqlite:///{tmp_path_factory.mktemp('scale')}/ledger.db")
    ledger.migrate()
    fill_ledger(ledger, INSTANCES, lambda _: None)
    yield ledger
    ledger.close()


def test_no_list_of_sqlite_reads_all_rows(sqlite_ledger: Ledger) -> None:
    counted = {}
    engine: Engine = sqlite_ledger.database._engine
    steps = 0

    def count_step() -> int:
        nonlocal steps
        steps += 1
        return 0

    def watch(connection, cursor, *_) -> None:
        connection.connection.driver_connection.set_progress_handler(count_step, STEP)

    event.listen(engine, "before_cursor_execute", watch)
    try:
        for name, call in list_calls(sqlite_ledger, INSTANCES).items():
            steps = 0
            call()
            counted[name] = steps * STEP
    finally:
        event.remove(engine, "before_cursor_execute", watch)
    assert {name: count for name, count in counted.items() if count > INSTRUCTIONS_MAX} == {}


def test_no_list_of_postgresql_reads_all_rows(postgresql_url: str) -> None:
    # As it is set for SSDs. With the default, which is for disks, reading all of 100,000 rows is cheaper.
    ledger = Ledger(f"{postgresql_url}&options=-crandom_page_cost%3D1.1")
    with ledger.database.begin_write() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    ledger.migrate()
    fill_ledger(ledger, INSTANCES, lambda _: None)
    asked = []

    def watch(_connection, _cursor, statement: str, parameters, *_) -> None:
        if not statement.startswith("EXPLAIN"):
            asked.append((statement, parameters))

    engine: Engine = ledger.database._engine
    event.listen(engine, "before_cursor_execute", watch)
    scans = {}
    try:
        # Of a hundred studies among a thousand PostgreSQL rightly reads all rows.
        for name, call in list_calls(ledger, INSTANCES, limit=10).items():
            asked.clear()
            call()
            for statement, parameters in tuple(asked):
                if not statement.lstrip().upper().startswith(("SELECT", "WITH")):
                    continue
                with ledger.database.begin_read() as connection:
                    plan = connection.exec_driver_sql("EXPLAIN " + statement, parameters).scalars().all()
                scanned = [line for line in plan if re.search(r"Seq Scan on (instances|deliveries)\b", line)]
                # A scan that ends after some matches is right where nearly all rows match.
                if scanned and not (plan[0].startswith("Limit") and len(plan) <= 3):
                    scans[name] = scanned
    finally:
        event.remove(engine, "before_cursor_execute", watch)
        with ledger.database.begin_write() as connection:
            connection.exec_driver_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        ledger.close()
    assert scans == {}
