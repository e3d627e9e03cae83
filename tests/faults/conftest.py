"""Nodes that the tests of one file share, and a look at their logs."""

import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.faults.watch import Watch, assert_sound
from tests.support.nodes import Node, cleaned
from tests.support.pki import Material


@pytest.fixture(scope="module")
def start_node(tmp_path_factory: pytest.TempPathFactory, material: Material) -> Iterator[Callable[..., Node]]:
    """Starts nodes that last until the end of the file; their logs then must blame nobody but the peers."""
    nodes = []
    with contextlib.ExitStack() as stack:

        def start(**sections: str) -> Node:
            node = Node(tmp_path_factory.mktemp("node") / "node", material)
            node.configure(**sections)
            nodes.append(stack.enter_context(cleaned(node)).start())
            return node

        yield start
    for node in nodes:
        assert_sound(node)


@pytest.fixture
def watch(node: Node) -> Watch:
    """The log from the beginning of the test on."""
    return Watch(node)
