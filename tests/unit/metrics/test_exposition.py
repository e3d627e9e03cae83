"""A scrape never hangs: what cannot be read in time is left out and counted, and nothing else is missing."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from ingest.config.model import Config, Destination, NodeSettings, PeerSettings
from ingest.ledger import Ledger
from ingest.status.exposition import NodeCollector, render_metrics
from ingest.status.gathered_metrics import DISK_FREE, LEDGER_BYTES, PARTS, GatheredSample, Part
from ingest.status.part_reader import PartReaders

CONFIG = Config()


def read_value(text: bytes, name: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    return None


def fine(_: Config) -> Iterator[GatheredSample]:
    yield GatheredSample(LEDGER_BYTES, 7)


def broken(_: Config) -> Iterator[GatheredSample]:
    yield GatheredSample(DISK_FREE, 7, ("spool",))
    raise RuntimeError("a defect")


def test_a_part_that_hangs_or_fails_is_left_out_and_counted(tmp_path: Path) -> None:
    released, begun = threading.Event(), []

    def hang(_: Config) -> Iterator[GatheredSample]:
        begun.append(1)
        released.wait(60)
        yield GatheredSample(DISK_FREE, 1, ("data",))

    parts = (Part("disks", 0, hang), Part("ledger", 0, fine), Part("queue", 0, broken))
    config = Config(node=NodeSettings(data_dir=tmp_path))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(NodeCollector(config, parts, deadline_seconds=0.2))
    began = time.monotonic()
    for count in (1, 2):
        text = generate_latest(registry)
        assert read_value(text, "dicom_ingest_ledger_bytes") == 7
        assert b"dicom_ingest_disk_free_bytes" not in text, "half a part is worse than none"
        for part, errors in (("disks", count), ("queue", count), ("ledger", 0)):
            assert read_value(text, "dicom_ingest_scrape_errors_total", part=part) == errors
    assert time.monotonic() - began < 5
    assert begun == [1], "a thread that hangs is not joined by others"
    released.set()


def test_what_took_long_to_read_is_used_again_for_longer() -> None:
    reads = []

    def slow(_: Config) -> Iterator[GatheredSample]:
        reads.append(time.monotonic())
        time.sleep(0.2)
        yield GatheredSample(LEDGER_BYTES, 1)

    readers = PartReaders(CONFIG, (Part("ledger", 0.0, slow),))
    for _ in range(3):
        assert readers.read_parts() == [GatheredSample(LEDGER_BYTES, 1)]
    assert len(reads) == 1


def test_a_node_that_never_ran_has_metrics_too(tmp_path: Path) -> None:
    text = render_metrics(Config(node=NodeSettings(data_dir=tmp_path)))
    assert read_value(text, "dicom_ingest_up") == 0
    assert read_value(text, "dicom_ingest_ready") == 0
    assert read_value(text, "dicom_ingest_spool_entries") == 0
    assert read_value(text, "dicom_ingest_scrape_errors_total", part="queue") == 1
    assert not (tmp_path / "run").exists(), "to look changes nothing"


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_the_ledger_part_reads_both_databases(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    settings = {"node": {"data_dir": str(tmp_path)}}
    if database == "postgresql":
        settings["ledger"] = {"url": request.getfixturevalue("postgresql_url")}
    config = Config(
        **settings,
        peers=(PeerSettings(ae_title="CT1"),),
        destinations=(Destination(name="pacs", ae_title="PACS", host="localhost"),),
    )
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        if database == "postgresql":
            with ledger.database.begin_write() as connection:
                connection.exec_driver_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        ledger.migrate()
    readers = PartReaders(config, [part for part in PARTS if part.name == "ledger"], deadline_seconds=30.0)
    found = {(sample.family.name, sample.labels): sample.value for sample in readers.read_parts()}
    assert found["ledger_bytes", ()] > 10_000
    assert found["deliveries", ("pacs", "waiting")] == 0
    assert found["circuit_state", ("pacs", "closed")] == 1
    assert found["circuit_state", ("pacs", "open")] == 0
    assert found["destination_paused", ("pacs",)] == 0
