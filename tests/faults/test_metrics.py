"""The metrics of a real node: what its processes count, and what is read when somebody asks."""

import contextlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from ingest.config.reader import load_config
from ingest.status.exposition import NodeCollector
from tests.faults.caller import Caller, connect, new_uid, with_titles
from tests.support.instances import CT, EXPLICIT, Made, element
from tests.support.nodes import Node, destination, eventually
from tests.support.peers import PynetdicomRemote
from tests.support.ports import free_port

ROOT = Path(__file__).parents[2]
PLANTED = ("PLANTED^NAME", "PLANTED-ID", "PLANTED-ACCESSION")

Metrics = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape_text(node: Node) -> str:
    return subprocess.run(
        [sys.executable, "-m", "ingest.cli", "metrics", "-c", str(node.config_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout


def scrape(node: Node) -> Metrics:
    """Read the metrics in this process: a command would take a second."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(NodeCollector(load_config(node.config_path)))
    return parse(generate_latest(registry).decode())


def parse(text: str) -> Metrics:
    families = text_string_to_metric_families(text)
    return {
        (sample.name.removeprefix("dicom_ingest_"), tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def value(found: Metrics, name: str, **labels: str) -> float:
    return found.get((name, tuple(sorted(labels.items()))), 0.0)


def planted(sop: str) -> bytes:
    """A data set with a name, an ID and an accession number."""
    made = Made(sop=sop).data_set
    at = made.index(bytes.fromhex("20000d00"))
    return (
        made[:at]
        + element(0x0008, 0x0050, "SH", PLANTED[2].encode())
        + element(0x0010, 0x0010, "PN", PLANTED[0].encode())
        + element(0x0010, 0x0020, "LO", PLANTED[1].encode())
        + made[at:]
    )


def test_a_node_counts_what_it_receives_refuses_and_forwards(make_node: Callable[..., Node]) -> None:
    with PynetdicomRemote([(CT, [EXPLICIT])]) as remote:
        node = make_node(
            peers='[[peers]]\nae_title = "CT1"\n[[peers]]\nae_title = "*"\nsop_classes = ["*"]',
            destinations=destination("pacs", remote.port, tls=False),
        ).start()
        with Caller.tls(node) as caller:
            caller.associate(calling="CT1")
            uids = [new_uid() for _ in range(3)]
            for uid in uids:
                assert caller.store(Made(sop=uid), data=planted(uid)).status == 0
            assert caller.store(Made(sop=new_uid()), data=planted("1.2.999")).status == 0xA900
            caller.release()
        with Caller.plain(node) as caller:
            caller.associate(calling="STRANGER")
            caller.release()
        with Caller.plain(node) as caller:
            caller.ask(with_titles(b" " * 16, b"INGEST"))
        connect(node.tls_port).close()
        with contextlib.closing(connect(node.tls_port)) as sock:
            sock.sendall(b"\1\0\0\0\0\0")
            sock.recv(100)
        eventually(lambda: len(remote.stored) == 3)
        found = eventually(
            lambda: (
                (now := scrape(node))
                and value(now, "delivery_results_total", destination="pacs", result="delivered") == 3
                and value(now, "process_cpu_seconds_total", role="persist") > 0
                and now
            )
        )
        text = scrape_text(node)
        assert parse(text).keys() >= found.keys(), "the command prints the same"
        node.stop()
    assert value(found, "instances_total", calling_ae="CT1") == 3
    assert value(found, "received_bytes_total", calling_ae="CT1") == sum(len(planted(uid)) for uid in uids)
    assert value(found, "instances_total", calling_ae="other") == 0
    assert value(found, "instances_refused_total", status="mismatch") == 1
    assert value(found, "associations_total", calling_ae="CT1") == 1
    assert value(found, "associations_total", calling_ae="other") == 1
    assert value(found, "rejections_total", reason="calling_ae") == 1
    assert value(found, "tls_failures_total", cause="not_tls") == 1
    assert value(found, "tls_handshakes_total") == 1
    assert value(found, "receive_seconds_count") == 4
    assert value(found, "commit_seconds_count") == 3
    assert 0 < value(found, "commit_seconds_sum") < 3
    assert value(found, "persisted_total", outcome="stored") == 3
    assert value(found, "persisted_total", outcome="quarantined") == 1
    assert value(found, "queue_seconds_count") == 3
    assert value(found, "delivery_seconds_count", destination="pacs") == 3
    assert value(found, "send_seconds_bucket", destination="pacs", le="+Inf") == 3
    assert value(found, "delivered_bytes_total", destination="pacs") > 0
    assert value(found, "deliveries", destination="pacs", state="delivered") == 3
    assert value(found, "circuit_state", destination="pacs", state="closed") == 1
    assert value(found, "ledger_instances", state="stored") == 3
    assert value(found, "spool_entries") == 0
    assert value(found, "processes", role="listen") == value(found, "processes_wanted", role="listen") == 2
    assert value(found, "process_resident_memory_bytes", role="queue") > 1 << 20
    assert value(found, "ledger_bytes") > 0
    assert value(found, "disk_free_bytes", use="spool") > 0
    assert value(found, "ready") == value(found, "up") == 1
    ends = [
        amount
        for (name, labels), amount in found.items()
        if name == "certificate_expiry_seconds" and ("role", "own") in labels
    ]
    assert ends
    assert all(amount > 0 for amount in ends)
    assert not [name for name, _ in found if name == "scrape_errors_total" and found[name, _]]
    for word in (*PLANTED, "STRANGER", *uids):
        assert word not in text


def test_deaths_lose_nothing_a_reload_adds_names_and_a_restart_begins_anew(
    make_node: Callable[..., Node],
) -> None:
    node = make_node(peers='[[peers]]\nae_title = "CT1"\n[[peers]]\nae_title = "*"').start()

    def store(calling: str) -> None:
        with Caller.tls(node) as caller:
            caller.associate(calling=calling)
            assert caller.store(Made(sop=new_uid())).status == 0
            caller.release()

    def wait_for(name: str, wanted: float, **labels: str) -> None:
        eventually(lambda: value(scrape(node), name, **labels) == wanted, 60, f"{name}{labels} {wanted}")

    store("CT1")
    store("MR1")
    wait_for("persisted_total", 2, outcome="stored")
    for role in ("listen", "persist"):
        node.kill_child(f"ingest-{role}")
        wait_for("process_deaths_total", 1, role=role)
    eventually(lambda: value(scrape(node), "processes", role="listen") == 2)
    wait_for("instances_total", 1, calling_ae="CT1")
    wait_for("persisted_total", 2, outcome="stored")
    wait_for("instances_total", 1, calling_ae="other")
    node.configure(
        peers="".join(f'[[peers]]\nae_title = "{title}"\n' for title in ("MR1", "CT1", "*")),
        destinations=destination("late", free_port(), tls=False),
    )
    node.launch("reload").communicate(timeout=30)
    store("MR1")
    wait_for("instances_total", 1, calling_ae="MR1")
    found = scrape(node)
    assert value(found, "instances_total", calling_ae="CT1") == 1
    assert value(found, "reloads_total", result="done") == 1
    assert value(found, "configuration_generation") == 2

    def is_late_tried() -> bool:
        # The persist worker of the old configuration may still take one instance after the reload.
        store("MR1")
        names = {"destination": "late", "result": "unreachable"}
        return value(scrape(node), "destination_associations_total", **names) > 0

    eventually(is_late_tried, 60)
    node.stop()
    node.start()
    found = scrape(node)
    assert ("instances_total", (("calling_ae", "MR1"),)) in found
    counters = [name for name in found if name[0].endswith("_total") and "process" not in name[0]]
    assert {found[name] for name in counters if name[0] != "scrape_errors_total"} <= {0.0, 1.0}
    assert value(found, "instances_total", calling_ae="CT1") == 0


def test_a_queue_that_hangs_delays_no_scrape(make_node: Callable[..., Node]) -> None:
    node = make_node().start()
    server = node.children("valkey-server")[0]
    server.suspend()
    try:
        found = scrape(node)
    finally:
        server.resume()
    assert value(found, "scrape_errors_total", part="queue") == 1
    assert ("queue_entries", ()) not in found
    assert value(found, "ready") == 1
    assert value(found, "spool_entries") == 0
    eventually(lambda: ("queue_entries", ()) in scrape(node))
