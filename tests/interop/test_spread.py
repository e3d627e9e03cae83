"""New associations and the listeners that take them: evenly, and past one that has been stopped."""

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable

import pytest

from ingest.dicom import uids
from ingest.requestor.store_scu import StoreSCU
from ingest.requestor.transport import Remote
from ingest.tls.contexts import build_client_context
from tests.support.nodes import Node
from tests.support.pki import Material

LISTENERS = 4
PROPOSALS = [(uids.VERIFICATION, (uids.IMPLICIT_LITTLE_ENDIAN,))]


@pytest.fixture
def node(make_node: Callable[..., Node]) -> Node:
    """Four listeners, and nothing to forward."""
    return make_node(
        receive=f"[receive]\nprocesses = {LISTENERS}\nmin_free_bytes = 0",
        workers="[workers]\npersist = 1\nforward = 0",
    ).start()


@pytest.fixture
def remote(node: Node, material: Material) -> Remote:
    return Remote("localhost", node.tls_port, "INGEST", "TESTS", build_client_context(material.tls("peer")))


def taken(node: Node) -> Counter[int]:
    """Associations accepted so far, by the process that did."""
    return Counter(event["pid"] for event in node.events("association_accepted"))


@pytest.mark.parametrize("associations", [1, 6, 16, 23])
def test_new_associations_spread_over_the_listeners_with_counts_that_differ_by_one_at_most(
    associations: int, node: Node, remote: Remote
) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(associations):
            assert stack.enter_context(StoreSCU.open(remote, PROPOSALS)).send_echo().status == 0
        counts = taken(node)
    assert sum(counts.values()) == associations
    most, least = max(counts.values()), min(counts.values()) if len(counts) == LISTENERS else 0
    assert most - least <= 1, counts


def test_a_stopped_listener_does_not_hold_the_others_back(node: Node, remote: Remote) -> None:
    stopped = node.children("ingest-listen")[0]
    os.kill(stopped.pid, signal.SIGSTOP)
    try:
        with contextlib.ExitStack() as stack:
            began = time.monotonic()
            for _ in range(12):
                assert stack.enter_context(StoreSCU.open(remote, PROPOSALS)).send_echo().status == 0
            seconds = time.monotonic() - began
            counts = taken(node)
    finally:
        os.kill(stopped.pid, signal.SIGCONT)
    # Waiting for its heartbeat to be old would take longer than this by itself, for each of them.
    assert seconds < 20
    assert stopped.pid not in counts
    assert sum(counts.values()) == 12
    # On a busy machine one listener may be late for its turn.
    assert min(counts.values()) >= 3
