"""Every test in here needs a program or library that is not ours."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.nodes import Node, cleaned
from tests.support.pki import Material


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.interop)


@pytest.fixture(scope="module")
def shared_node(tmp_path_factory: pytest.TempPathFactory, material: Material) -> Iterator[Node]:
    """One running node for all tests of a file that do not mind what else it holds."""
    with cleaned(Node(tmp_path_factory.mktemp("shared"), material)) as node:
        yield node.start()
