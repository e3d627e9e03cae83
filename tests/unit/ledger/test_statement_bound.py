"""A process that bounds its statements gives up a slow one, and its connection works on."""

import contextlib
import time

import pytest
from sqlalchemy import text

from ingest.errors import LedgerError
from ingest.ledger import Ledger, database

SLOW = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
    "postgresql": "SELECT pg_sleep(60)",
}


def test_slow_statement_is_given_up_after_its_time(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_statement_seconds", 0.3)
    with contextlib.closing(Ledger(url)) as ledger:
        ledger.migrate()
        began = time.monotonic()
        with pytest.raises(LedgerError), ledger.database.begin_read() as connection:
            connection.execute(text(SLOW[ledger.database.dialect]))
        assert time.monotonic() - began < 10
        assert ledger.instances.count_by_state() == {}
