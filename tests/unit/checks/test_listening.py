"""`ingest check` and the addresses that a node listens on: real sockets, real users, a running node."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ingest.checks.listening import check_listening
from ingest.config.model import Config
from tests.support.nodes import Node
from tests.support.ports import free_port
from tests.support.users import NOBODY, as_nobody, shared_folder, with_reachable_python

PLAIN = '[[listeners]]\nhost = "{host}"\nport = {port}\ntls = false\n'


def config(folder: Path, port: int, host: str = "127.0.0.1", **more: object) -> Config:
    listener = {"host": host, "port": port, "tls": False}
    return Config.model_validate({"node": {"data_dir": str(folder)}, "listeners": [listener], **more})


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def test_port_in_use_names_the_process_that_has_it(tmp_path: Path, taken: int) -> None:
    for host in ("127.0.0.1", "0.0.0.0", "::"):
        [fault] = check_listening(config(tmp_path, taken, host))
        assert (fault.key, fault.is_note) == ("listeners[0].port", False)
        assert f"process {os.getpid()} (" in fault.cause
        assert "another port" in fault.remedy


def test_port_of_the_console_in_use_is_a_fault_of_the_console(tmp_path: Path, taken: int) -> None:
    [fault] = check_listening(config(tmp_path, 0, console={"host": "localhost", "port": taken}))
    assert (fault.key, fault.is_note) == ("console.port", False)


def test_free_addresses_are_no_fault_and_stay_free(tmp_path: Path) -> None:
    port = free_port()
    assert [*check_listening(config(tmp_path, port, console={"port": free_port()}))] == []
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_address_of_another_machine_is_a_fault_of_the_host(tmp_path: Path) -> None:
    [fault] = check_listening(config(tmp_path, free_port(), "192.0.2.1"))  # RFC 5737: nobody has it
    assert (fault.key, fault.is_note) == ("listeners[0].host", False)
    assert "0.0.0.0" in fault.remedy


def test_no_listener_is_a_fault_unless_other_hosts_could_listen(tmp_path: Path) -> None:
    none = {"node": {"data_dir": str(tmp_path)}}
    [fault] = check_listening(Config.model_validate(none))
    assert (fault.key, fault.is_note) == ("listeners", False)
    [warning] = check_listening(Config.model_validate({**none, "queue": {"url": "redis://queue:6379"}}))
    assert (warning.key, warning.kind) == ("listeners", "warning")


# --- the command


def check(path: Path, *options: str, wrap: tuple[str, ...] = ()) -> tuple[int, dict]:
    command = [*wrap, sys.executable, "-m", "ingest.cli", "check", "-c", str(path), "--json", *options]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "HOME": "/"},
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def found(result: dict) -> set[tuple[str, str]]:
    return {(item["key"], item["kind"]) for item in result["items"]}


@pytest.fixture
def site() -> Iterator[Path]:
    """A folder that every user can enter, with a plain listener on port 104."""
    with shared_folder() as folder:
        (folder / "ingest.toml").write_text(
            '[node]\ndata_dir = "var"\n' + PLAIN.format(host="127.0.0.1", port=104)
        )
        (folder / "var").mkdir()
        os.chown(folder / "var", NOBODY, NOBODY)
        yield folder


def test_port_below_1024_needs_a_capability_and_the_remedy_names_it(site: Path) -> None:
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 104:
        pytest.skip("every user may bind port 104 here")
    code, result = check(site / "ingest.toml", wrap=as_nobody())
    assert (code, found(result)) == (1, {("listeners[0].port", "fault")})
    assert "AmbientCapabilities=CAP_NET_BIND_SERVICE" in result["items"][0]["remedy"]
    code, result = check(site / "ingest.toml", wrap=as_nobody("net_bind_service"))
    assert (code, found(result)) == (0, set())
    # Root can check for that user. The unit may give the capability, so this is only a warning.
    code, result = check(site / "ingest.toml", "--user", "nobody", wrap=with_reachable_python())
    assert (code, found(result)) == (0, {("listeners[0].port", "warning")})
    strict = check(site / "ingest.toml", "--user", "nobody", "--strict", wrap=with_reachable_python())
    assert strict[0] == 1


def test_what_another_user_has_left_is_a_fault_that_names_it(site: Path) -> None:
    (site / "ingest.toml").write_text('[node]\ndata_dir = "var"\n' + PLAIN.format(host="127.0.0.1", port=0))
    assert check(site / "ingest.toml", wrap=as_nobody())[0] == 0
    left = site / "var" / "spool"
    left.mkdir(mode=0o700)  # as root has started the node once
    (site / "var" / "ledger.db").touch(0o640)
    code, result = check(site / "ingest.toml", wrap=as_nobody())
    assert code == 1
    assert {("node.data_dir", "fault"), ("receive.spool_dir", "fault")} <= found(result)
    causes = {item["key"]: item for item in result["items"]}
    assert str(left) in causes["receive.spool_dir"]["cause"]
    assert str(site / "var" / "ledger.db") in causes["node.data_dir"]["cause"]
    assert "chown -R nobody" in causes["node.data_dir"]["remedy"]
    # Root can read everything, and says so.
    code, result = check(site / "ingest.toml")
    assert (code, found(result)) == (0, {("node.data_dir", "note")})
    assert "--user nobody" in result["items"][0]["remedy"]


def test_folder_on_the_way_that_may_not_be_entered_is_named(site: Path) -> None:
    closed = site / "closed"
    closed.mkdir(mode=0o700)
    (closed / "node.crt").write_text("")
    (site / "ingest.toml").write_text(
        '[node]\ndata_dir = "closed/var"\n' + PLAIN.format(host="127.0.0.1", port=0)
    )
    code, result = check(site / "ingest.toml", wrap=as_nobody())
    assert (code, found(result)) == (1, {("node.data_dir", "fault")})
    assert f"may not enter {closed}" in result["items"][0]["cause"]
    with (site / "ingest.toml").open("a") as file:
        file.write('[tls.node]\ncertificate = "closed/node.crt"\npeer_certificate = "none"\n')
    code, result = check(site / "ingest.toml", wrap=as_nobody())
    assert code == 2
    assert f"may not enter {closed}" in result["items"][0]["cause"]


# --- a running node


def test_running_node_has_its_own_ports_and_no_others(make_node: Callable[..., Node], taken: int) -> None:
    node = make_node(console=f'[console]\nhost = "127.0.0.1"\nport = {free_port()}').start()
    pid = node.process.pid
    code, result = check(node.config_path)
    assert [item for item in result["items"] if item["key"].startswith(("listeners", "console"))] == []
    assert (code, result["node_pid"]) == (0, pid)
    node.configure(listeners=PLAIN.format(host="127.0.0.1", port=taken))
    code, result = check(node.config_path)
    assert code == 1
    assert ("listeners[0].port", "fault") in found(result)
    assert f"process {os.getpid()} (" in result["items"][0]["cause"]


def test_node_of_another_data_folder_is_another_program(make_node: Callable[..., Node]) -> None:
    node = make_node().start()
    node.configure(node='[node]\nae_title = "OTHER"\ndata_dir = "other"')
    code, result = check(node.config_path)
    assert code == 1
    assert {("listeners[0].port", "fault"), ("listeners[1].port", "fault")} <= found(result)
    assert f"process {node.process.pid} (" in result["items"][0]["cause"]
