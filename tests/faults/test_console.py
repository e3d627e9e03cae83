"""A console that dies, hangs, cannot bind or is stopped touches nothing of the node; and https."""

import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from ingest.clock import monotonic_ms
from ingest.supervisor.children import ChildProcess
from ingest.supervisor.console_watch import (
    AWAY_SECONDS,
    BOOT_SECONDS,
    HUNG_SECONDS,
    RETIRED_SECONDS,
    ConsoleWatch,
)
from tests.faults.caller import Caller
from tests.support.consoles import PASSWORD, ConsoleProcess, add_users_in, post_login, send_hostile_study
from tests.support.nodes import Node, eventually
from tests.support.ports import free_port


def answers(port: int, path: str = "/live") -> int:
    """Status of an answer; 0 without one."""
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"http://localhost:{port}{path}", trust_env=False, timeout=5).status_code
    return 0


def find_alarms(node: Node) -> dict[str, str]:
    folder = node.data / "run" / "alarms"
    return {path.name: path.read_text() for path in folder.glob("*")} if folder.exists() else {}


def test_killed_console_comes_back_and_reception_does_not_notice(make_node: Callable[..., Node]) -> None:
    port = free_port()
    node = make_node(console=f"[console]\nport = {port}").start()
    eventually(lambda: answers(port) == 200, 30)
    [first] = [child.pid for child in node.children("ingest-console")]
    assert os.getpriority(os.PRIO_PROCESS, first) == 10
    assert Path(f"/proc/{first}/oom_score_adj").read_text().strip() == "900"
    listeners = {child.pid for child in node.children("ingest-listen")}
    os.kill(first, signal.SIGKILL)
    uids = send_hostile_study(node, "1.2.826.0.1.3680043.9.7", 3)
    eventually(lambda: answers(port) == 200, 30, "the console is back")
    eventually(lambda: len(list(node.store.rglob("*.dcm"))) == len(uids), 20, "instances in the store")
    assert {child.pid for child in node.children("ingest-listen")} == listeners
    assert find_alarms(node) == {}
    assert node.stop() == 0


def test_console_that_stands_still_delays_neither_reception_nor_the_end(
    make_node: Callable[..., Node],
) -> None:
    port = free_port()
    node = make_node(console=f"[console]\nport = {port}").start()
    eventually(lambda: answers(port) == 200, 30)
    [console] = [child.pid for child in node.children("ingest-console")]
    os.kill(console, signal.SIGSTOP)
    uids = send_hostile_study(node, "1.2.826.0.1.3680043.9.8", 3)
    eventually(lambda: len(list(node.store.rglob("*.dcm"))) == len(uids), 20, "instances in the store")
    assert Path(f"/proc/{console}/stat").read_text().split()[2] == "T"
    assert node.stop() == 0


def test_port_in_use_is_an_alarm_and_ends_with_it(make_node: Callable[..., Node]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        node = make_node(console=f"[console]\nport = {port}").start()
        send_hostile_study(node, "1.2.826.0.1.3680043.9.8", 1)
        alarm = eventually(lambda: find_alarms(node).get("console_away"), 40, "the alarm")
        assert f"127.0.0.1:{port} cannot be bound" in alarm
        send_hostile_study(node, "1.2.826.0.1.3680043.9.9", 1)
    eventually(lambda: answers(port) == 200, 60, "the console serves")
    eventually(lambda: not find_alarms(node), 10, "the alarm has ended")
    assert node.stop() == 0


def test_console_answers_that_the_node_is_not_ready_until_the_last_association_has_ended(
    make_node: Callable[..., Node],
) -> None:
    port = free_port()
    node = make_node(console=f"[console]\nport = {port}").start()
    assert node.process is not None
    eventually(lambda: answers(port, "/ready") == 200, 30)
    with Caller.tls(node) as caller:
        caller.associate()
        began = time.monotonic()
        node.process.terminate()
        eventually(lambda: answers(port, "/ready") == 503, 5, "not ready")
        assert time.monotonic() - began < 3
        assert answers(port, "/live") == 200
        caller.release()
    assert node._wait(20) == 0
    ended = [event["child"] for event in node.events("child_ended")]
    assert ended[-1] == "console"


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that hangs."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait(10)


@pytest.mark.parametrize(
    ("has_beaten", "is_retired", "patience"),
    [(True, False, HUNG_SECONDS), (False, False, BOOT_SECONDS), (True, True, RETIRED_SECONDS)],
)
def test_console_that_hangs_is_killed_after_its_time(
    tmp_path: Path,
    sleeper: "subprocess.Popen[bytes]",
    has_beaten: bool,
    is_retired: bool,
    patience: float,
) -> None:
    watch, began = ConsoleWatch(tmp_path), time.monotonic() - 1
    child = ChildProcess(sleeper.pid, "console", 1, began)
    if has_beaten:
        watch.link.beat()
    if is_retired:
        child.is_stopping, child.retired_at = True, began
    at = monotonic_ms() / 1000
    watch.watch([child], at + patience - 2, is_wanted=True)
    assert sleeper.poll() is None
    watch.watch([child], at + patience + 2, is_wanted=True)
    assert sleeper.wait(10) == -signal.SIGKILL


def test_console_that_does_not_serve_is_an_alarm_after_some_seconds(tmp_path: Path) -> None:
    watch, now = ConsoleWatch(tmp_path), time.monotonic()
    alarm = tmp_path / "alarms" / "console_away"
    watch.watch([], now + AWAY_SECONDS - 2, is_wanted=True)
    assert not alarm.exists()
    watch.watch([], now + AWAY_SECONDS + 2, is_wanted=True)
    assert alarm.exists()
    watch.link.beat()
    watch.watch([], time.monotonic(), is_wanted=True)
    assert not alarm.exists()


def test_public_console_without_users_and_tls_does_not_start_the_node(make_node: Callable[..., Node]) -> None:
    node = make_node(console=f'[console]\nhost = "0.0.0.0"\nport = {free_port()}\npublic_url = "https://n"')
    for command in ("check", "serve"):
        process = node.launch(command)
        assert process.wait(30) == 2
        assert process.stdout is not None
        process.stdout.close()
    assert node.log.count("console.tls") == 2
    assert "ingest console user add" in node.log


def read_serial(port: int) -> int:
    """Serial number of the certificate that the console presents."""
    from cryptography import x509

    found = ssl.get_server_certificate(("127.0.0.1", port), timeout=10)
    return x509.load_pem_x509_certificate(found.encode()).serial_number


def install_pair(node: Node, name: str) -> None:
    for ending in ("crt", "key"):
        content = (node.material.folder / f"{name}.{ending}").read_bytes()
        (node.folder / f"web.{ending}").write_bytes(content)


def test_https_has_secure_cookies_and_takes_over_a_new_certificate_with_a_reload(
    make_node: Callable[..., Node],
) -> None:
    port = free_port()
    node = make_node()
    install_pair(node, "node")
    add_users_in(node.data / "console")
    node.configure(
        web=f'[tls.web]\ncertificate = "{node.folder}/web.crt"\nprivate_key = "{node.folder}/web.key"\n'
        'peer_certificate = "none"',
        console=f'[console]\nhost = "0.0.0.0"\nport = {port}\ntls = "web"\n'
        f'public_url = "https://localhost:{port}"',
    )
    node.start()
    assert node.process is not None
    eventually(lambda: "console_ready" in node.log, 30)
    ca = node.material.certificate("node")
    web = ConsoleProcess(node.folder, f"https://localhost:{port}", node.process, ca)
    with web.clients:
        client = web.browse()
        login = post_login(client, "admin", PASSWORD)
        cookies = [each for each in login.headers.get_list("set-cookie") if "Max-Age" not in each]
        assert [re.match(r"__Host-ingest-session-\d+=", each) is not None for each in cookies] == [True]
        assert {"Secure", "HttpOnly", "SameSite=strict", "Path=/"} <= set(cookies[0].split("; "))
        assert login.headers["strict-transport-security"]
        assert client.get("/api/v1/status").status_code == 200
        assert client.get("/metrics").status_code == 200
        assert web.browse(headers={}).get("/metrics").status_code == 401
        assert web.browse(headers={}).get("/ready").json() == {"ok": True}
        before = read_serial(port)
        install_pair(node, "remote")
        os.kill(node.process.pid, signal.SIGHUP)

        def has_new_certificate() -> bool:
            with contextlib.suppress(OSError):
                return read_serial(port) != before
            return False

        eventually(has_new_certificate, 40, "the new certificate")
        assert len(node.events("reloaded")) == 1
