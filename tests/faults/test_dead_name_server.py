"""A name server that never answers: no worker waits for it beyond its deadline, and nobody else at all."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.forwarding import Forwarding
from tests.support.instances import EXPLICIT
from tests.support.nodes import eventually
from tests.support.peers import CT, PynetdicomRemote
from tests.support.servers import Valkey

CONNECT_SECONDS = 2.0
INGEST = (sys.executable, "-m", "ingest.cli")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("preload") / "dead_name_server.so"
    source = Path(__file__).with_name("dead_name_server.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", made, source, "-ldl"], check=True)
    return made


@pytest.fixture
def dead_name_server(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For processes that are started from now on."""
    monkeypatch.setenv("LD_PRELOAD", str(library))


@pytest.fixture
def forwarding(tmp_path: Path, redis_server: Valkey) -> Iterator[Forwarding]:
    made = Forwarding(tmp_path / "node", redis_server)
    yield made
    made.ledger.close()


@pytest.mark.usefixtures("dead_name_server")
def test_dead_name_server_delays_no_sound_destination_and_no_end(forwarding: Forwarding) -> None:
    names = ("slow", "slower")
    with PynetdicomRemote([(CT, [EXPLICIT])]) as scp:
        for name in names:
            forwarding.add(11112, name, host=f"{name}.example", connect_seconds=CONNECT_SECONDS)
        forwarding.add(scp.port, "sound")
        forwarding.many(20, to=(*names, "sound"))
        longest = 0.0
        with forwarding.worker() as first, forwarding.worker() as second:
            for name in (*names, "sound"):
                forwarding.wake(name)
            forwarding.wait({"delivered": 20}, destination="sound")
            for _ in range(8):
                before = len(scp.stored)
                forwarding.many(1, to=(*names, "sound"))
                started = time.monotonic()
                forwarding.wake("sound")
                eventually(lambda before=before: len(scp.stored) > before, 30, "the next instance")
                longest = max(longest, time.monotonic() - started)
                time.sleep(0.5)
            forwarding.wait({"delivered": 28}, destination="sound")
            for name in names:
                # No instance is to blame: they wait.
                assert set(forwarding.states(name)) <= {"waiting", "sending"}
                eventually(
                    lambda name=name: forwarding.ledger.circuits.read_circuit(name).failures,
                    20,
                    "the circuit",
                )
                assert "no name server has answered" in str(
                    forwarding.ledger.circuits.read_circuit(name).last_error
                )
            started = time.monotonic()
            assert (first.terminate(), second.terminate()) == (0, 0)
            # Lookups are stuck for a minute; a worker that waits for a job takes a second.
            assert time.monotonic() - started < 10
    # Each worker has waited for a dead name before, or does so once.
    assert longest < CONNECT_SECONDS + 1


CONFIG = """
[node]
data_dir = "var"
[queue]
url = "redis://queue.example:6379/0"
[ledger]
url = "postgresql+psycopg://ingest@ledger.example/ingest"
[[destinations]]
name = "pacs"
ae_title = "PACS"
host = "pacs.example"
tls = false
connect_seconds = 2
[[routes]]
to = ["pacs"]
"""


LISTENING = """
[node]
data_dir = "var"
[[listeners]]
host = "us.example"
port = 0
tls = false
"""


@pytest.mark.usefixtures("dead_name_server")
def test_every_name_of_a_configuration_has_a_deadline(tmp_path: Path) -> None:
    (tmp_path / "ingest.toml").write_text(CONFIG)
    (tmp_path / "listening.toml").write_text(LISTENING)

    def launch(*arguments: object) -> "subprocess.Popen[str]":
        command = [*INGEST, *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    check = launch("check", "--connect", "-c", tmp_path / "ingest.toml")
    echo = launch("echo", "pacs.example", 104)
    serve = launch("serve", "-c", tmp_path / "listening.toml")
    # A lookup takes a minute.
    said, answered, served = (each.communicate(timeout=50)[0] for each in (check, echo, serve))
    assert (check.returncode, echo.returncode, serve.returncode) == (1, 1, 1)
    for key in ("queue.url", "ledger.url", "destinations[0].host"):
        line = next(line for line in said.splitlines() if key in line)
        assert "no name server has answered" in line
    assert "no name server has answered" in answered
    assert "us.example" in served
