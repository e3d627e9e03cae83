"""Fixtures of the unit tests. They import their helpers late, as tests/conftest.py explains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ingest.ledger import Ledger
    from tests.support.channels import Line, MakeLine
    from tests.support.commits import Bench
    from tests.support.persisting import Site
    from tests.support.pki import Material
    from tests.support.servers import Valkey


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """A PostgreSQL of the test session's own, as an SQLAlchemy URL; tests empty what they use."""
    from tests.support.servers import postgresql, require_postgresql

    require_postgresql()
    with postgresql() as url:
        yield url


@pytest.fixture
def empty_postgresql_url(postgresql_url: str) -> Iterator[str]:
    """The same server without tables; they are removed afterwards, because a test may leave odd ones."""
    from ingest.ledger import Ledger

    server = Ledger(postgresql_url)
    for is_over in (False, True):
        with server.database.begin_write() as connection:
            connection.exec_driver_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        if not is_over:
            yield postgresql_url
    server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without tables; the path of SQLite's has a space."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'a b' / 'ledger.db'}"
    return str(request.getfixturevalue("empty_postgresql_url"))


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    """An empty ledger on both databases."""
    from ingest.ledger import Ledger

    opened = Ledger(url)
    opened.migrate()
    yield opened
    opened.close()


@pytest.fixture
def make_persist_site(
    tmp_path: Path, redis_server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Site]]:
    """Makes sites for persist workers, which block for a moment only."""
    from tests.support.persisting import make_site

    monkeypatch.setattr("ingest.workers.persist.worker.BLOCK_MILLISECONDS", 1)
    sites: list[Site] = []

    def make_one(**sections: Any) -> Site:
        sites.append(make_site(tmp_path, redis_server.url, **sections))
        return sites[-1]

    yield make_one
    for site in sites:
        site.client.close()


@pytest.fixture
def site(make_persist_site: Callable[..., Site]) -> Site:
    """A site with the defaults."""
    return make_persist_site()


@pytest.fixture(params=["sqlite", "postgresql"])
def either_ledger(
    request: pytest.FixtureRequest, make_persist_site: Callable[..., Site]
) -> Callable[..., Site]:
    """Makes sites whose ledger is the one or the other, and empty."""

    def make(**sections: Any) -> Site:
        if request.param == "postgresql":
            sections["ledger"] = {"url": request.getfixturevalue("postgresql_url")}
        site = make_persist_site(**sections)
        with site.ledger() as ledger, ledger.database.begin_write() as connection:
            for table in ("deliveries", "instances", "studies", "series", "study_senders"):
                connection.exec_driver_sql(f"DELETE FROM {table}")
        return site

    return make


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[Bench]:
    """Without threads until `start`: what is committed before waits."""
    from tests.support.commits import bench

    with bench(tmp_path, durable=True) as made:
        yield made


@pytest.fixture
def cached(tmp_path: Path) -> Iterator[Bench]:
    from tests.support.commits import bench

    with bench(tmp_path, durable=False) as made:
        yield made


@pytest.fixture(params=["durable", "cached"])
def either(request: pytest.FixtureRequest) -> Bench:
    """One of the two, at work."""
    made: Bench = request.getfixturevalue(request.param)
    if request.param == "durable":
        made.start()
    return made


TLS_LINES = ["tls 1.2", "tls 1.3"]


@pytest.fixture
def lines(material: Material) -> Iterator[MakeLine]:
    """Makes channels and their peers."""
    from tests.support.channels import line_maker

    with line_maker(material) as make:
        yield make


@pytest.fixture(params=[*TLS_LINES, "plain"])
def channel_line(request: pytest.FixtureRequest, lines: MakeLine) -> Line:
    """A channel of each kind."""
    return lines(*request.param.split())


@pytest.fixture(params=TLS_LINES)
def tls_line(request: pytest.FixtureRequest, lines: MakeLine) -> Line:
    """A channel of each kind with TLS."""
    return lines(*request.param.split())
