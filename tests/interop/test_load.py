"""Many instances over many associations at once: all of them arrive, none of them twice."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ingest.requestor.send_files import send_files
from ingest.requestor.transport import Remote
from ingest.tls.contexts import build_client_context
from tests.interop.files import made_uid, write_made
from tests.interop.memory import watched
from tests.support.nodes import Node, destination, eventually
from tests.support.pki import Material

INSTANCES = 5000
SIZE = 8192
ASSOCIATIONS = 16
LISTENERS = 4
DEADLINE_SECONDS = 120

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


def test_5000_instances_over_16_associations_arrive_once_each(
    make_node: Callable[..., Node],
    material: Material,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    files = write_made(tmp_path / "made", INSTANCES, size=SIZE)
    far = make_node("far", workers="[workers]\npersist = 1\nforward = 0").start()
    near = make_node(
        "near",
        receive=f"[receive]\nprocesses = {LISTENERS}\nmin_free_bytes = 0",
        workers="[workers]\npersist = 1\nforward = 2",
        destinations=destination("far", far.tls_port, associations=2),
    ).start()
    remote = Remote("localhost", near.tls_port, "INGEST", "TESTS", build_client_context(material.tls("peer")))

    with watched([near, far]) as peaks:
        began = time.monotonic()
        summary = send_files(remote, files, ASSOCIATIONS)
        acknowledged = time.monotonic()
        assert len(summary.stored_files) == INSTANCES, summary.failed_files[:3]
        eventually(lambda: count(near, "instances") == INSTANCES, DEADLINE_SECONDS, "all in the ledger")
        kept = time.monotonic()
        eventually(lambda: near.deliveries() == {"delivered": INSTANCES}, DEADLINE_SECONDS, "all delivered")
        eventually(lambda: count(far, "instances") == INSTANCES, DEADLINE_SECONDS, "all in the far ledger")
        ended = time.monotonic()

    record_property("acknowledged_per_second", round(INSTANCES / (acknowledged - began)))
    record_property("stored_per_second", round(INSTANCES / (kept - began)))
    record_property("whole_path_per_second", round(INSTANCES / (ended - began)))
    record_property("peak_resident_mb", {name: round(size / 1e6) for name, size in peaks.items()})
    expected = {made_uid(number) for number in range(INSTANCES)}
    for node in (near, far):
        assert node.stored().keys() == expected
        assert len(list(node.store.rglob("*.dcm"))) == INSTANCES
        assert node.query("SELECT state, count(*) FROM instances GROUP BY state") == [("stored", INSTANCES)]
        assert not node.events("duplicate_dropped")
        eventually(lambda node=node: not node.spooled(), 10, "an empty spool")
    # 16 associations, spread over all listeners.
    accepted = near.events("association_accepted")
    assert len(accepted) == ASSOCIATIONS
    assert len({event["pid"] for event in accepted}) == LISTENERS


def count(node: Node, table: str) -> int:
    found = node.query(f"SELECT count(*) FROM {table}")
    return int(found[0][0]) if found else 0
