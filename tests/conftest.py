"""Fixtures that several folders of tests use; the servers and peers themselves are in tests/*.py."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.nodes import Node, cleaned
from tests.pki import Material, make


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """Key pairs and trust bundle."""
    return make(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def make_node(tmp_path: Path, material: Material) -> Iterator[Callable[..., Node]]:
    """Makes nodes that are not started yet; ends them after the test."""
    with contextlib.ExitStack() as stack:

        def make_one(name: str = "node", **sections: str) -> Node:
            node = Node(tmp_path / name, material)
            node.configure(**sections)
            return stack.enter_context(cleaned(node))

        yield make_one


@pytest.fixture
def node(make_node: Callable[..., Node]) -> Node:
    """One running node without destinations."""
    return make_node().start()
