"""Which destinations an instance goes to."""

import pytest

from ingest.config.model import Route
from ingest.errors import ConfigError
from workers.routes import Router


def test_without_routes_nothing_is_forwarded() -> None:
    assert Router([]).destinations() == ()


def test_routes_are_joined_and_every_destination_is_named_once() -> None:
    routes = [Route(to=("pacs", "archive")), Route(to=("archive", "ai"))]
    assert Router(routes).destinations() == ("pacs", "archive", "ai")


def test_condition_that_is_not_understood_is_refused_and_named() -> None:
    with pytest.raises(ConfigError, match=r"routes\.1\.when"):
        Router([Route(to=("pacs",)), Route(to=("ai",), when={"modality": ["CT"]})])
