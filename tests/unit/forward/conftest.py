"""Fixtures of the tests of the forward worker. They import their helpers late, as in tests/conftest.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ingest.config.model import TLS
    from tests.support.forwarding import Forwarding
    from tests.support.servers import Valkey


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TLS:
    from tests.support.peers import make_tls

    return make_tls(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def forwarding(tmp_path: Path, redis_server: Valkey, tls: TLS) -> Iterator[Forwarding]:
    """A ledger and a store with deliveries over TLS, beside a Valkey."""
    from tests.support.forwarding import Forwarding

    made = Forwarding(tmp_path / "node", redis_server, tls)
    yield made
    made.ledger.close()


@pytest.fixture
def plain(tmp_path: Path, redis_server: Valkey) -> Iterator[Forwarding]:
    """As `forwarding`, without TLS."""
    from tests.support.forwarding import Forwarding

    made = Forwarding(tmp_path / "node", redis_server)
    yield made
    made.ledger.close()
