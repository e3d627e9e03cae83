"""An empty ledger on both databases."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.ledger import Ledger


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without tables; the path of SQLite's has a space."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'a b' / 'ledger.db'}"
    url: str = request.getfixturevalue("postgresql_url")
    emptied = Ledger(url)
    with emptied.database.begin_write() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    emptied.close()
    return url


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    opened = Ledger(url)
    opened.migrate()
    yield opened
    opened.close()
