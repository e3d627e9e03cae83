"""Urgent deliveries overtake others within an association, whatever happens to remote, workers and Redis."""

import contextlib
import threading
import time
from typing import Any

from ingest.config.model import TLS, Route
from ingest.dicom.priority import HIGH, LOW, MEDIUM, Priority
from ingest.ledger import DeliveryTerms
from ingest.ledger.lease_order import AGED_MS
from ingest.workers.forward.drain import URGENT_SECONDS
from ingest.workers.forward.leases import BATCH
from tests.support.drains import open_worker
from tests.support.forwarding import Forwarding
from tests.support.instances import EXPLICIT, Made
from tests.support.nodes import eventually
from tests.support.peers import CT, PynetdicomRemote, ScriptedPeer, Stored

CONTEXTS = [(CT, [EXPLICIT])]
URGENT_ROUTE = Route(to=("pacs",), priority="urgent")


def record(forwarding: Forwarding, series: str, count: int, priority: Priority) -> set[str]:
    made = [Made(sop=f"1.2.{series}.{number}", series=f"1.2.{series}") for number in range(1, count + 1)]
    forwarding.record(*made, terms={"pacs": DeliveryTerms(priority=priority)})
    return {one.sop for one in made}


def test_urgent_instances_overtake_the_batch_of_a_running_association_and_say_so(
    forwarding: Forwarding, tls: TLS
) -> None:
    def answer(_: Stored) -> int:
        time.sleep(0.06)
        return 0

    with PynetdicomRemote(CONTEXTS, tls, answer=answer) as scp:
        forwarding.add(scp.port)
        forwarding.routes = (URGENT_ROUTE,)
        record(forwarding, "7", 10, Priority.NORMAL)
        bulk = record(forwarding, "8", 60, Priority.BULK)
        with forwarding.worker():
            eventually(lambda: len(scp.stored) >= 3, what="a batch is under way")
            urgent = record(forwarding, "9", 5, Priority.URGENT)
            forwarding.wait({"delivered": 75}, 60)
        order = [one.sop_instance for one in scp.stored]
    assert max(order.index(sop) for sop in urgent) < 50
    assert order[-20:] == [f"1.2.8.{number}" for number in range(41, 61)]
    assert scp.associations == 1
    assert len(order) == len(set(order)) == 75
    said = {one.sop_instance: one.priority for one in scp.stored}
    assert {said[sop] for sop in urgent} == {HIGH}
    assert {said[sop] for sop in bulk} == {LOW}
    assert said["1.2.7.1"] == MEDIUM


def test_every_delivery_of_every_priority_ends_although_remote_worker_and_redis_fail(
    forwarding: Forwarding, tls: TLS
) -> None:
    refused = 0

    def answer(one: Stored) -> int:
        nonlocal refused
        refused += 1
        time.sleep(0.005)
        return 0xA700 if refused % 7 == 0 else 0

    forwarding.routes = (URGENT_ROUTE,)
    expected: set[str] = set()
    with PynetdicomRemote(CONTEXTS, tls, answer=answer) as scp:
        forwarding.add(scp.port, retry_max_seconds=1.0, associations=2)
        for number, priority in enumerate((*Priority, *Priority)):
            expected |= record(forwarding, f"{10 + number}", 20, priority)
        with forwarding.worker() as first:
            eventually(lambda: len(scp.stored) >= 20, what="some are sent")
            first.kill()
        expected |= record(forwarding, "20", 10, Priority.URGENT)
        with contextlib.closing(forwarding.server.client()) as client:
            client.flushall()
        port, early = scp.port, {one.sop_instance for one in scp.stored}
    with forwarding.worker():
        time.sleep(1)  # the remote is gone
        with PynetdicomRemote(CONTEXTS, tls, answer=answer, port=port) as scp:
            forwarding.wait({"delivered": len(expected)}, 60)
            late = {one.sop_instance for one in scp.stored}
    assert early | late == expected


def test_each_batch_sends_an_aged_delivery_however_many_urgent_ones_wait(plain: Forwarding) -> None:
    """The remote takes longer for an instance than the pause between two looks for urgent deliveries."""
    stop, sent = threading.Event(), []

    def answer(command: dict[str, Any]) -> int:
        sent.append(command["AffectedSOPInstanceUID"])
        if len(sent) >= 3:
            stop.set()
        time.sleep(1.2 * URGENT_SECONDS)
        return 0

    with ScriptedPeer(lambda peer: (peer.accept(), peer.serve(answer))[1]) as peer:
        plain.add(peer.port)
        plain.routes = (URGENT_ROUTE,)
        bulk = record(plain, "8", 1, Priority.BULK)
        with plain.ledger.database.begin_write() as connection:
            connection.exec_driver_sql(f"UPDATE deliveries SET created_at = created_at - {2 * AGED_MS}")
        record(plain, "9", 2 * BATCH, Priority.URGENT)
        with open_worker(plain, stop) as worker:
            worker.drain_destination("pacs")
    assert bulk <= set(sent[:3])
