"""Fixtures of the hand-off's tests."""

from collections.abc import Iterator
from contextlib import closing

import pytest
import redis

from ingest.queue import publisher
from tests.support.servers import Valkey


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is lost is looked for within tenths of seconds."""
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
