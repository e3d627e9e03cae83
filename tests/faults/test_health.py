"""Liveness, readiness and messages to the service manager, of real nodes and a real NOTIFY_SOCKET."""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ingest.status.health import check_liveness, check_readiness
from tests.faults.caller import Caller
from tests.support.nodes import Node, eventually

ROOT = Path(__file__).parents[2]


def ask(node: Node, flag: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "ingest.cli", "check", flag, "-c", str(node.config_path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def test_readiness_begins_with_the_listeners_and_ends_at_once_with_term(
    make_node: Callable[..., Node],
) -> None:
    node = make_node()
    run_dir = node.data / "run"
    assert not check_liveness(run_dir).is_ok
    assert ask(node, "--ready").stdout.startswith("not ready: no node runs on")
    node.start()
    assert node.process is not None
    health = check_readiness(run_dir)
    assert (health.is_ok, health.reasons) == (True, ())
    assert health.to_json()["roles"]["listen"] == {"running": 2, "wanted": 2}
    assert health.to_json(with_detail=False) == {"ok": True}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    asked = ask(node, "--ready")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (asked.stdout, asked.returncode) == ("ready\n", 0)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.6, (
        "0.25 s on a quiet machine"
    )
    with Caller.tls(node) as caller:
        caller.associate()
        began = time.monotonic()
        node.process.terminate()
        eventually(lambda: not check_readiness(run_dir).is_ok, 5, "not ready")
        assert time.monotonic() - began < 2.0
        assert check_readiness(run_dir).reasons == ("the node is ending",)
        assert check_liveness(run_dir).is_ok, "it drains"
        asked = ask(node, "--ready")
        assert (asked.stdout, asked.returncode) == ("not ready: the node is ending\n", 1)
        asked = ask(node, "--live")
        assert (asked.stdout, asked.returncode) == ("live\n", 0)
        caller.release()
    node.stop()
    asked = ask(node, "--live")
    assert asked.stdout.startswith("not live: no node runs on")
    assert asked.returncode == 1


def test_a_node_whose_supervisor_or_listeners_hang_is_not_ready(make_node: Callable[..., Node]) -> None:
    node = make_node().start()
    assert node.process is not None
    run_dir = node.data / "run"
    stopped = [child.pid for child in node.children("ingest-listen")]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        eventually(lambda: not check_readiness(run_dir).is_ok, 15, "not ready")
        assert "no listener accepts" in check_readiness(run_dir).reasons[0]
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    eventually(lambda: check_readiness(run_dir).is_ok, 15, "ready again")
    node.kill()
    eventually(lambda: not check_liveness(run_dir).is_ok, 10, "dead")


def test_a_node_that_refuses_everything_is_not_ready(make_node: Callable[..., Node]) -> None:
    node = make_node(receive=f"[receive]\nprocesses = 1\nmin_free_bytes = {1 << 60}").start()
    eventually(lambda: not check_readiness(node.data / "run").is_ok, 10, "not ready")
    assert "refuse everything" in check_readiness(node.data / "run").reasons[0]


class Manager:
    """The socket of a service manager."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._socket.settimeout(10)
        self.heard: list[str] = []

    def wait_for(self, line: str) -> list[str]:
        """Return the lines of the first new message with a line that begins so."""
        while True:
            lines = self._socket.recv(4096).decode().split("\n")
            self.heard += lines
            if any(each.startswith(line) for each in lines):
                return lines

    def hear_until_silence(self) -> None:
        while True:
            self.wait_for("WATCHDOG=1")

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Manager]:
    name = f"dicom-ingest-test-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}" if request.param == "abstract" else str(tmp_path / "n"))
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    with contextlib.closing(
        Manager(f"\0{name}" if request.param == "abstract" else str(tmp_path / "n"))
    ) as made:
        yield made


def test_the_service_manager_hears_of_start_reload_life_and_end(
    manager: Manager, make_node: Callable[..., Node]
) -> None:
    node = make_node().start()
    assert node.process is not None
    ready = manager.wait_for("READY=1")
    assert ready[1].startswith("STATUS=configuration 1; processes: ")
    assert "2 listen" in ready[1]
    for _ in range(3):
        manager.wait_for("WATCHDOG=1")
    assert all(b"NOTIFY_SOCKET" not in environment(child.pid) for child in node.children("valkey"))
    node.process.send_signal(signal.SIGHUP)
    _, since, _ = manager.wait_for("RELOADING=1")
    assert 0 < int(since.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    assert manager.wait_for("READY=1")[1].startswith("STATUS=configuration 2; ")
    node.configure(node="[node]\nunknown_key = 1")
    node.process.send_signal(signal.SIGHUP)
    manager.wait_for("RELOADING=1")
    assert manager.wait_for("READY=1")[1].startswith("STATUS=configuration 2; "), "a refused reload ends too"
    node.process.terminate()
    _, _, extension = manager.wait_for("STOPPING=1")
    drain_seconds = 10
    assert int(extension.removeprefix("EXTEND_TIMEOUT_USEC=")) > drain_seconds * 1e6, "no drain is cut off"
    node.stop()


def test_a_supervisor_that_hangs_sends_no_sign_of_life(
    manager: Manager, make_node: Callable[..., Node]
) -> None:
    node = make_node().start()
    assert node.process is not None
    manager.wait_for("WATCHDOG=1")
    node.process.send_signal(signal.SIGSTOP)
    manager._socket.settimeout(1.2)
    with pytest.raises(TimeoutError):
        manager.hear_until_silence()
    node.process.send_signal(signal.SIGCONT)
    manager._socket.settimeout(10)
    manager.wait_for("WATCHDOG=1")


def environment(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()
