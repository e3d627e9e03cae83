"""Spans sent to a collector over https: which certificate it must have."""

from pathlib import Path

import pytest

from ingest.config.model import Config, NodeSettings, TraceSettings
from ingest.config.reader import load_config
from ingest.errors import ConfigError
from ingest.log import configure_logging
from ingest.workers.span_export import SpanExporter
from tests.support.collectors import collecting
from tests.support.ledgers import row
from tests.support.pki import Material
from tests.support.receivers import server_context


def send_one(folder: Path, port: int, material: Material, tls: str) -> str:
    """Send a span, and return the log."""
    log = folder / f"log-{tls or 'system'}"
    configure_logging("info", "json", log)
    known = material.tls("peer")
    sections = {
        "node": known,
        "other": known.model_copy(update={"trusted": (material.certificate("other"),)}),
    }
    settings = TraceSettings(endpoint=f"https://localhost:{port}", tls=tls)
    exporter = SpanExporter(
        Config(node=NodeSettings(data_dir=folder), tls=sections, traces=settings), "persist"
    )
    exporter.add_stored(row(1), 0.1)
    exporter.start()
    exporter.close()
    configure_logging("info", "console", None)
    return log.read_text() if log.exists() else ""


def test_collector_with_a_certificate_of_the_named_section_gets_spans_and_our_certificate(
    tmp_path: Path, material: Material
) -> None:
    with collecting(server_context(material, "node", wants_certificate=True)) as collector:
        assert send_one(tmp_path, collector.port, material, "node") == ""
        assert {span["name"] for span in collector.spans} == {"instance", "persist"}
        assert (("commonName", "peer"),) in collector.peers[0]["subject"]


@pytest.mark.parametrize("tls", ["", "other"])
def test_collector_that_is_not_trusted_gets_nothing(tmp_path: Path, material: Material, tls: str) -> None:
    with collecting(server_context(material, "node")) as collector:
        log = send_one(tmp_path, collector.port, material, tls)
        assert "spans_dropped" in log
        assert "CERTIFICATE_VERIFY_FAILED" in log
        assert collector.bodies == []


def test_unknown_section_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "ingest.toml"
    path.write_text('[traces]\nendpoint = "https://collector.example.org"\ntls = "collector"\n')
    with pytest.raises(ConfigError, match=r"traces\.tls: there is no \[tls\.collector\]"):
        load_config(path)
