"""Traces of real nodes, received by an OTLP collector over HTTP; and a collector that is away."""

import time
from collections.abc import Callable

from tests.faults.caller import Caller, new_uid
from tests.faults.test_metrics import PLANTED, planted
from tests.support.collectors import collecting
from tests.support.instances import CT, EXPLICIT, Made
from tests.support.nodes import Node, destination, eventually
from tests.support.peers import PynetdicomRemote
from tests.support.ports import free_port


def send(node: Node, uid: str) -> None:
    with Caller.tls(node) as caller:
        caller.associate(calling="CT1")
        assert caller.store(Made(sop=uid), data=planted(uid)).status == 0
        caller.release()


def test_an_instance_is_one_trace_from_its_reception_to_its_delivery(make_node: Callable[..., Node]) -> None:
    with collecting() as collector, PynetdicomRemote([(CT, [EXPLICIT])]) as remote:
        node = make_node(
            traces=f'[traces]\nendpoint = "http://127.0.0.1:{collector.port}"',
            destinations=destination("pacs", remote.port, tls=False),
        ).start()
        began_ms, uid = time.time() * 1000, new_uid()
        send(node, uid)
        eventually(lambda: len(collector.spans) == 3, 30, "three spans")
        node.stop()
    spans = {span["name"]: span for span in collector.spans}
    first, persist, deliver = (spans[name] for name in ("instance", "persist", "deliver pacs"))
    assert {span["traceId"] for span in spans.values()} == {first["traceId"]}
    assert (len(first["traceId"]), len(first["spanId"])) == (32, 16)
    assert "parentSpanId" not in first
    assert persist["parentSpanId"] == deliver["parentSpanId"] == first["spanId"]
    assert [span["role"] for span in (first, persist, deliver)] == ["persist", "persist", "forward"]
    for span in spans.values():
        start, end = int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"])
        assert began_ms - 1000 <= start / 1e6 <= end / 1e6 <= time.time() * 1000
    assert first["values"]["dicom.sop_instance_uid"] == deliver["values"]["dicom.sop_instance_uid"] == uid
    assert first["values"]["dicom.calling_ae"] == "CT1"
    assert deliver["values"]["dicom_ingest.state"] == "delivered"
    assert deliver["values"]["dicom.status"] == "0000"
    assert set(collector.requests) == {("/v1/traces", "application/json")}
    for word in PLANTED:
        assert word.encode() not in b"".join(collector.bodies)


def test_a_collector_that_is_away_costs_its_spans_and_nothing_else(make_node: Callable[..., Node]) -> None:
    node = make_node(traces=f'[traces]\nendpoint = "http://127.0.0.1:{free_port()}"').start()
    uid = new_uid()
    send(node, uid)
    eventually(lambda: uid in node.stored(), 20, "stored")
    eventually(lambda: node.events("spans_dropped"), 20, "said once")
    began = time.monotonic()
    assert node.stop() == 0
    assert time.monotonic() - began < 10
