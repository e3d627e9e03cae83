"""The services of config/container/compose.yaml work together, by their own commands and configurations."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.data import get_testdata_file

from tests.install.compose import Project
from tests.install.containerfile import Image
from tests.install.containers import Network
from tests.install.engine import Engine
from tests.install.image import ROOT
from tests.support.nodes import eventually
from tests.support.pages import read_blocks

POSTGRESQL_ENTRYPOINT = r"""
set -e
export PATH="$(echo /usr/lib/postgresql/*/bin):$PATH" PGDATA=/var/lib/postgresql/data
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  initdb --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" --auth-local=trust --encoding=UTF8 \
    $POSTGRES_INITDB_ARGS
  echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
  echo "CREATE DATABASE $POSTGRES_DB" | postgres --single postgres
fi
exec postgres -c listen_addresses='*'
"""
"""What the entry point of PostgreSQL's image does with these variables, in short."""


@pytest.fixture
def project(image: Image, tmp_path: Path) -> Iterator[Project]:
    """The services, not started yet, with files as a checkout has them and secrets made as the page says."""
    config = tmp_path / "config"
    shutil.copytree(ROOT / "config", config, ignore=shutil.ignore_patterns("pki", "secrets", "images"))
    subprocess.run([config / "container/make-secrets.sh"], check=True, capture_output=True)
    for name in ("CT_small.dcm", "MR_small.dcm"):
        shutil.copy(get_testdata_file(name), config / "container/images")
    # Programs of this machine for what is not ours. Users of their images have no name here.
    etc = tmp_path / "etc"
    etc.mkdir()
    users = "root:x:0:0::/:/bin/sh\nserver:x:999:999::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"
    (etc / "passwd").write_text(users)

    def find_image(name: str) -> Image:
        if name == "dicom-ingest":
            return image
        machine = Image(Path("/"))
        program = name.rpartition("/")[2].partition(":")[0]
        if program == "postgres":
            machine.entrypoint = ("/bin/sh", "-c", POSTGRESQL_ENTRYPOINT)
        elif program == "prometheus":
            machine.entrypoint = ("/usr/bin/prometheus",)
        else:
            assert program == "redis", name
        return machine

    with Network() as network:
        made = Project(config / "container/compose.yaml", tmp_path, network, find_image)
        made.users = etc / "passwd"
        yield made
        made.down()


def test_an_image_goes_from_a_sender_to_the_node_to_its_remote_and_prometheus_sees_it(
    project: Project, image: Image, tmp_path: Path
) -> None:
    # Given every service, started by the commands of the page
    start, send, *_ = read_blocks(ROOT / "docs/how-to/install-containers.md", "Run the whole set")
    engine = Engine(image, tmp_path, project.network, project)
    engine.follow(start.commands)
    node, remote = project.containers["node"], project.containers["remote"]

    # When the scanner of the file sends two images over mutual TLS
    assert "2 of 2 stored by INGEST at node:2762" in engine.follow(send.commands)

    # Then the node has them in PostgreSQL, and the remote in its store
    def list_deliveries() -> list[dict[str, object]]:
        shown = node.run("ingest", "deliveries", "--json")
        return [json.loads(line) for line in shown.stdout.splitlines()]

    eventually(
        lambda: [each["state"] for each in list_deliveries()] == ["delivered"] * 2, 60, "both are delivered"
    )
    kept = remote.run("ingest", "instances", "--json").stdout.splitlines()
    assert [json.loads(line)["calling_ae"] for line in kept] == ["INGEST"] * 2
    assert "ingest-listen" in set(node.list_processes().values())

    # And the configuration has no fault
    checked = node.run("ingest", "check", "--connect")
    assert checked.returncode == 0, checked.stdout + checked.stderr

    # And Prometheus reads the metrics with the token that setup made
    prometheus = project.containers["prometheus"]

    def ask_prometheus(path: str) -> dict[str, Any]:
        code = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:9090/api/v1/{path}').read().decode())"
        done = prometheus.run("/usr/bin/python3", "-c", code)
        return json.loads(done.stdout)["data"] if done.returncode == 0 else {}

    def count_instances() -> list[str]:
        found = ask_prometheus("query?query=sum(dicom_ingest_instances_total)")
        return [each["value"][1] for each in found.get("result", [])]

    eventually(
        lambda: count_instances() == ["2"],
        60,
        "Prometheus has seen both instances",
    )
    assert ask_prometheus("rules")["groups"]

    # And setup changes nothing when it runs again
    before = (project._volumes["node-pki"] / "node.crt").read_bytes()
    project.run("setup")
    assert (project._volumes["node-pki"] / "node.crt").read_bytes() == before

    # And each service ends within its grace period
    assert [project.stop(name) for name in ("node", "remote", "prometheus", "redis")] == [0, 0, 0, 0]
    assert project.stop("postgres") == 0
