"""Debian's Prometheus scrapes a running node, with our rules, and answers what our dashboard asks."""

import contextlib
import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.caller import Caller, new_uid
from tests.support.instances import Made
from tests.support.nodes import Node, destination, eventually
from tests.support.peers import require_program
from tests.support.ports import free_port
from tests.unit.metrics.test_monitoring_files import CONFIG, DASHBOARD, dashboard_expressions

pytestmark = pytest.mark.interop


class Prometheus:
    """A running server with our rules."""

    def __init__(self, folder: Path, target: int) -> None:
        self.port = free_port()
        rules = CONFIG / "prometheus/dicom-ingest.rules.yml"
        (folder / "prometheus.yml").write_text(
            "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
            f"rule_files: ['{rules}']\n"
            "scrape_configs:\n- job_name: dicom-ingest\n  static_configs:\n"
            f"  - targets: ['127.0.0.1:{target}']\n"
        )
        self.process = subprocess.Popen(
            [
                require_program("prometheus"),
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{self.port}",
                "--log.level=error",
            ]
        )

    def ask(self, path: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with (
            contextlib.suppress(ConnectionError, urllib.error.URLError),
            urllib.request.urlopen(url, timeout=10) as answer,
        ):
            return json.load(answer)["data"]
        return None

    def value(self, expression: str) -> float | None:
        found = self.ask("query", query=expression)
        return float(found["result"][0]["value"][1]) if found and found["result"] else None

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(10)


def test_prometheus_scrapes_the_console_and_answers_rules_and_dashboard(
    tmp_path: Path, make_node: Callable[..., Node]
) -> None:
    port = free_port()
    node = make_node(
        console=f"[console]\nport = {port}", destinations=destination("pacs", free_port(), tls=False)
    ).start()
    prometheus = Prometheus(tmp_path, port)
    try:
        with Caller.tls(node) as caller:
            caller.associate()
            for _ in range(3):
                assert caller.store(Made(sop=new_uid())).status == 0
            caller.release()
        eventually(lambda: prometheus.value("sum(dicom_ingest_instances_total)") == 3, 30, "three instances")
        eventually(lambda: prometheus.value("dicom_ingest_ready") == 1, 20, "ready")
        eventually(lambda: prometheus.value("sum(dicom_ingest_persist_seconds_count)") == 3, 20, "persisted")
        targets = prometheus.ask("targets")["activeTargets"]
        assert [(each["health"], each["lastError"]) for each in targets] == [("up", "")]
        for expression in dashboard_expressions(json.loads(DASHBOARD.read_text())):
            for old, new in (("$__rate_interval", "1m"), ("$instance", ".*"), ("$destination", ".*")):
                expression = expression.replace(old, new)
            if not expression.startswith("label_values"):
                assert prometheus.ask("query", query=expression) is not None, expression
        groups = eventually(lambda: prometheus.ask("rules"))["groups"]
        eventually(
            lambda: {rule["health"] for rule in prometheus.ask("rules")["groups"][0]["rules"]} == {"ok"}
        )
        assert len(groups[0]["rules"]) > 15
        eventually(lambda: node.query("SELECT 1 FROM samples"), 30, "the monitor of this node keeps samples")
    finally:
        prometheus.stop()
