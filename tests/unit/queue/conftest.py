"""Fixtures of the tests of the queue. They import their helpers late, as tests/conftest.py explains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import redis

    from ingest.config.model import Config
    from ingest.spool.spool import Spool
    from tests.support.servers import Valkey


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is lost is looked for within tenths of seconds."""
    from ingest.queue import publisher

    monkeypatch.setattr(publisher, "SWEEP_SECONDS", 0.1)
    monkeypatch.setattr(publisher, "SWEEP_AGE_SECONDS", 0.2)
    monkeypatch.setattr(publisher, "SWEEP_SHARE", 1)


@pytest.fixture(params=["spool", "redis"])
def carrier(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(redis_server: Valkey) -> Iterator[redis.Redis]:
    with closing(redis_server.client()) as made:
        yield made


@pytest.fixture
def settings(tmp_path: Path, redis_server: Valkey) -> Config:
    from tests.support.spools import config

    return config(tmp_path, redis_server.url)


@pytest.fixture
def own(settings: Config) -> Iterator[Spool]:
    """A spool whose slot this process holds."""
    from tests.support.spools import claim

    held = claim(settings)
    yield held
    held.close()
