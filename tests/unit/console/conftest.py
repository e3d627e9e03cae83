"""Consoles that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.consoles import ConsoleNode, ConsoleProcess
    from tests.support.pki import Material


@pytest.fixture(scope="session")
def local_console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleProcess]:
    """A console without users."""
    from tests.support import consoles

    folder = tmp_path_factory.mktemp("local")
    _, port = consoles.write_config(folder)
    with consoles.running_console(folder, port) as console:
        yield console


@pytest.fixture(scope="session")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleProcess]:
    """A console with a user of each role, who has the name of the role."""
    from tests.support import consoles

    folder = tmp_path_factory.mktemp("users")
    config, port = consoles.write_config(folder, "max_connections = 60")
    tokens = consoles.add_users(config)
    with consoles.running_console(folder, port) as running:
        running.tokens = tokens
        yield running


@pytest.fixture(scope="session")
def console_node(tmp_path_factory: pytest.TempPathFactory, material: Material) -> Iterator[ConsoleNode]:
    """A whole node with a console. It has received a study of hostile names, and cannot reach its PACS."""
    from tests.support import consoles

    with consoles.running_node(tmp_path_factory.mktemp("node"), material) as node:
        yield node
