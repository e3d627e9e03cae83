"""Fixtures of the tests of the requestor. They import their helpers late, as tests/conftest.py explains."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ingest.config.model import TLS


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TLS:
    from tests.support.peers import make_tls

    return make_tls(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Eight bytes of preamble, and a data set."""
    path = tmp_path / "data set"
    path.write_bytes(b"PREAMBLE" + os.urandom(300_000))
    return path
