"""The most memory that the processes of nodes have at a time."""

import contextlib
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence

import psutil

from tests.support.nodes import Node

INTERVAL_SECONDS = 0.05


@contextlib.contextmanager
def watched(nodes: Sequence[Node]) -> Iterator[dict[str, int]]:
    """Look at all processes of the nodes all the time; gives the largest resident size by name, in bytes.

    The dictionary grows while the `with` block runs, and is complete after it.
    """
    peaks: dict[str, int] = defaultdict(int)
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            for node in nodes:
                for name, size in _sizes(node):
                    peaks[name] = max(peaks[name], size)
            over.wait(INTERVAL_SECONDS)

    thread = threading.Thread(target=watch, name="memory", daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        over.set()
        thread.join(10)


def _sizes(node: Node) -> Iterator[tuple[str, int]]:
    assert node.process is not None
    with contextlib.suppress(psutil.NoSuchProcess):
        supervisor = psutil.Process(node.process.pid)
        yield "supervisor", supervisor.memory_info().rss
        for child in supervisor.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                yield child.name(), child.memory_info().rss
