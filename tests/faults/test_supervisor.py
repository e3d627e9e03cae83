"""The supervisor: how a node starts and refuses to, outlives children, reloads, drains, and dies as one."""

import contextlib
import errno
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ingest.tls.keys import pairs
from tests.faults.caller import LOCAL_LIMIT, Caller, connect, new_uid
from tests.faults.watch import assert_sound, listeners
from tests.support.instances import Made
from tests.support.nodes import Node, cleaned, eventually
from tests.support.pki import Material
from tests.support.ports import free_port

ROOT = Path(__file__).parents[2]


def refused(node: Node, code: int) -> str:
    """Start a node that must not start; what it says on standard error."""
    process = node.launch("serve")
    out, _ = process.communicate(timeout=30)
    assert "ready" not in out
    assert process.returncode == code, node.log
    return node.log


def ended(processes: list[psutil.Process]) -> bool:
    return not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes)


def send_signal(node: Node, number: signal.Signals) -> None:
    assert node.process is not None
    node.process.send_signal(number)


def event(node: Node, name: str) -> dict[str, object]:
    found: dict[str, object] = eventually(lambda: node.events(name), 10, f"the event {name}")[-1]
    return found


def reload(node: Node) -> None:
    """SIGHUP, and until none but the listeners of the new generation are left."""
    before, count = listeners(node), len(node.events("reloaded"))
    send_signal(node, signal.SIGHUP)
    eventually(lambda: len(node.events("reloaded")) > count, 10, "reloaded")
    eventually(lambda: len(listeners(node) - before) == len(before), 10, "new listeners")


@contextlib.contextmanager
def associated(node: Node, **fields: str) -> Iterator[Caller]:
    with Caller.tls(node) as caller:
        caller.associate(**fields)
        yield caller


def works(node: Node) -> None:
    """Both ports take associations."""
    for connect_to in (Caller.tls, Caller.plain):
        with connect_to(node) as caller:
            caller.associate()
            assert caller.echo() == 0
            caller.release()


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory, material: Material) -> Iterator[Node]:
    """A node in a folder with spaces that no test of this file disturbs for long."""
    node = Node(tmp_path_factory.mktemp("nodes") / "a node, 1", material)
    node.configure(receive="[receive]\nprocesses = 3\nmin_free_bytes = 0")
    with cleaned(node):
        yield node.start()


# --- start


def test_a_node_is_ready_within_seconds_and_works_from_a_folder_with_spaces(
    make_node: Callable[..., Node], record_property: Callable[[str, object], None]
) -> None:
    node = make_node("a folder with spaces")
    begun = time.monotonic()
    node.start()
    record_property("ready_seconds", took := round(time.monotonic() - begun, 2))
    assert took < 10
    made = Made(sop=new_uid())
    with associated(node) as caller:
        assert caller.store(made).status == 0
        caller.release()
    eventually(lambda: made.sop in node.stored(), 10, "the instance is in store and ledger")
    assert node.stored()[made.sop].read_bytes().endswith(made.data_set)
    assert node.stop() == 0
    assert_sound(node)
    events = [json.loads(line) for line in node.log.splitlines()]
    noise = [event for event in events if event["level"] in {"warning", "error"}]
    # One of those that the tests trust has ended on purpose, and that is said.
    [said] = [event for event in noise if event["event"] == "certificate_ended"]
    assert said["subject"] == "CN=expired"
    assert noise == [said], "a start and a stop are no reason for concern"


def test_a_port_in_use_ends_the_start_with_1_and_is_named(make_node: Callable[..., Node]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        node = make_node(listeners=f'[[listeners]]\nhost = "127.0.0.1"\nport = {port}\ntls = false')
        said = refused(node, 1)
    assert f"127.0.0.1:{port}" in said
    assert "Traceback" not in said


def test_a_broken_configuration_ends_the_start_with_2_and_names_every_fault(
    make_node: Callable[..., Node],
) -> None:
    node = make_node(receive='[receive]\nproceses = 2\nmax_pdu_length = "long"')
    said = refused(node, 2)
    assert "proceses" in said
    assert "max_pdu_length" in said
    assert "Traceback" not in said


def test_a_spool_that_cannot_be_used_ends_the_start_with_3_and_leaves_nothing_running(
    make_node: Callable[..., Node],
) -> None:
    node = make_node(receive='[receive]\nprocesses = 2\nmin_free_bytes = 0\nspool_dir = "spool"')
    (node.folder / "spool").mkdir()
    (node.folder / "spool" / "L0").write_text("no folder")
    said = refused(node, 3)
    assert "spool_dir" in said
    assert "Traceback" not in said
    assert not [
        one for one in psutil.process_iter(["cmdline"]) if str(node.folder) in str(one.info["cmdline"])
    ]


def test_a_second_node_on_the_same_data_is_refused_and_the_first_one_works_on(
    steady: Node, make_node: Callable[..., Node]
) -> None:
    assert steady.process is not None
    second = make_node(node=f'[node]\ndata_dir = "{steady.data}"')
    said = refused(second, 3)
    assert f"process {steady.process.pid} runs a node" in said
    assert steady.process.poll() is None
    works(steady)


def test_nobody_listening_to_standard_output_is_no_reason_to_stop(make_node: Callable[..., Node]) -> None:
    node = make_node()
    process = node.launch("serve")
    assert process.stdout is not None
    process.stdout.close()
    try:
        eventually(lambda: node.events("ready"), 20)
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def test_the_supervisor_has_one_thread_and_its_children_have_names(steady: Node) -> None:
    assert steady.process is not None
    # Threads would not live on in a child, but their locks would.
    assert psutil.Process(steady.process.pid).num_threads() == 1
    names = sorted(child.name() for child in steady.children())
    assert names == ["ingest-listen"] * 3 + ["ingest-persist", "valkey-server"]


# --- children


def test_a_killed_listener_is_replaced_and_the_others_do_not_notice(make_node: Callable[..., Node]) -> None:
    node = make_node().start()
    before = listeners(node)
    with contextlib.ExitStack() as stack:
        callers = [stack.enter_context(associated(node)) for _ in range(4)]
        victim = node.kill_child("ingest-listen")
        eventually(lambda: len(listeners(node) - before) == 1, 10, "a new listener")
        eventually(lambda: "accepting" in states(node) and len(states(node)) == 2, 10)
        alive = sum(caller.sock.fileno() >= 0 and _lives(caller) for caller in callers)
        assert alive == 2, "those of the other listener"
    works(node)
    died = event(node, "child_died")
    assert (died["child"], died["child_pid"], died["code"]) == ("listen", victim, -signal.SIGKILL)
    assert node.stop() == 0


def _lives(caller: Caller) -> bool:
    try:
        return caller.echo() == 0
    except (AssertionError, OSError):
        return False


def test_a_stopped_listener_does_not_hold_the_others_back(make_node: Callable[..., Node]) -> None:
    node = make_node().start()
    stopped = node.children("ingest-listen")[0]
    stopped.suspend()
    try:
        for _ in range(5):
            begun = time.monotonic()
            with associated(node) as caller:
                assert caller.echo() == 0
                caller.release()
            assert time.monotonic() - begun < 2
    finally:
        stopped.resume()
    assert node.stop() == 0


def test_associations_spread_over_the_listeners(steady: Node) -> None:
    eventually(lambda: active(steady) == [0, 0, 0], 40, "those of other tests have ended")
    with contextlib.ExitStack() as stack:
        for number in range(1, 11):
            stack.enter_context(associated(steady))
            counts = active(steady)
            assert sum(counts) == number
            # On a busy machine one listener may be late for its turn.
            assert max(counts) - min(counts) <= 2, counts


def status(node: Node) -> dict[str, list[dict[str, object]]]:
    result = subprocess.run(
        [sys.executable, "-m", "ingest.cli", "status", "--json", "-c", str(node.config_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=ROOT,
    )
    found: dict[str, list[dict[str, object]]] = json.loads(result.stdout)
    return found


def states(node: Node) -> list[str]:
    from ingest.config.reader import load_config
    from ingest.status.report import gather_status

    return [str(row["state"]) for row in gather_status(load_config(node.config_path))["listeners"]]


def active(node: Node) -> list[int]:
    from ingest.acceptor.scoreboard import Scoreboard

    board = Scoreboard.open_reader(node.data / "run" / "scoreboard")
    assert board is not None
    return [row.active for row in board.list_listeners()]


def test_status_tells_of_a_running_node(steady: Node) -> None:
    made = Made(sop=new_uid())
    with associated(steady) as caller:
        assert caller.store(made).status == 0
        eventually(lambda: made.sop in steady.stored(), 10)
        eventually(lambda: not steady.spooled(), 10)
        found = status(steady)
        caller.release()
    rows = found["listeners"]
    assert {row["pid"] for row in rows} == listeners(steady)
    assert {row["state"] for row in rows} == {"accepting"}
    assert sum(int(str(row["active"])) for row in rows) >= 1
    assert sum(int(str(row["instances"])) for row in rows) >= 1
    assert all(0 <= int(str(row["heartbeat_age_ms"])) < 2500 for row in rows)
    plain: dict[str, dict[str, object]] = found  # type: ignore[assignment]
    assert plain["spool"] == {"path": str(steady.spool), "waiting": 0, "bytes": 0, "oldest_seconds": None}
    assert plain["queue"]["reachable"] is True
    assert plain["ledger"]["instances"] == {"stored": 1}
    assert any(row["file"] == str(steady.material.certificate("node")) for row in found["certificates"])


def test_an_account_that_may_only_read_sees_that_the_node_runs(steady: Node) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    run_dir = steady.data / "run"
    code = (
        "import os, sys; from pathlib import Path; from ingest.filesystem.node_lock import is_node_running\n"
        "os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(65534)\n"
        "print(is_node_running(Path(sys.argv[1])))"
    )
    # A group that may read, as operations.md has it for monitoring; the folders above are the test's own.
    for path in (run_dir / "node.lock", run_dir, *run_dir.parents):
        if path == Path("/tmp") or path == Path("/"):
            break
        os.chmod(path, path.stat().st_mode | 0o005 | (0 if path.is_file() else 0o001))
    command = [sys.executable, "-c", code, str(run_dir), "65534"]
    found = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert found.stdout.strip() == "True", found.stderr


# --- SIGTERM


def test_sigterm_lets_running_associations_end_and_takes_no_new_ones(make_node: Callable[..., Node]) -> None:
    node = make_node().start()
    made = Made(sop=new_uid())
    with associated(node) as running:
        send_signal(node, signal.SIGTERM)
        eventually(lambda: node.events("draining"), 10)
        with Caller.tls(node) as late:
            assert late.rejected() == LOCAL_LIMIT
        assert running.store(made).status == 0
        running.release()
    assert node.stop() == 0, "a third SIGTERM would be too late anyway"
    assert made.sop in node.stored() or node.spooled(), "kept, or in the spool for the next start"
    assert_sound(node)


def test_an_association_that_does_not_end_is_aborted_at_the_deadline(make_node: Callable[..., Node]) -> None:
    node = make_node(node='[node]\nae_title = "INGEST"\ndata_dir = "var"\ndrain_seconds = 1').start()
    with associated(node) as running:
        begun = time.monotonic()
        send_signal(node, signal.SIGTERM)
        running.expect_abort(0, source=0)
        assert node.process is not None
        assert node.process.wait(20) == 0
        assert 1 <= time.monotonic() - begun < 10


def test_a_second_sigterm_stops_at_once(make_node: Callable[..., Node]) -> None:
    node = make_node(node='[node]\nae_title = "INGEST"\ndata_dir = "var"\ndrain_seconds = 600').start()
    children = node.children()
    with associated(node):
        send_signal(node, signal.SIGTERM)
        eventually(lambda: node.events("draining"), 10)
        begun = time.monotonic()
        assert node.stop(10) == 0
        assert time.monotonic() - begun < 5
    assert ended(children)


@pytest.mark.parametrize("moment", ["at once", "with its children"])
def test_sigterm_while_a_node_starts_is_not_lost(moment: str, make_node: Callable[..., Node]) -> None:
    node = make_node(node='[node]\ndata_dir = "var"\ndrain_seconds = 600')
    process = node.launch("serve")
    try:
        lock = node.data / "run" / "node.lock"
        if moment == "at once":
            eventually(lambda: lock.exists() and lock.stat().st_size, 10)
        else:
            eventually(lambda: len(psutil.Process(process.pid).children()) >= 3, 10)
        process.terminate()
        # Before it catches signals, SIGTERM ends it as any process.
        assert process.wait(20) in {0, -signal.SIGTERM}
    finally:
        process.kill()
        process.communicate()


# --- SIGHUP


def test_a_broken_configuration_is_refused_at_a_reload_and_the_old_one_stays(steady: Node) -> None:
    sound = steady.config_path.read_text()
    before = listeners(steady)
    try:
        for broken, named in (
            (sound.replace("processes", "proceses"), "proceses"),
            (sound.replace("[node]", "[node"), "ingest.toml"),
            (sound.replace('data_dir = "var"', 'data_dir = "elsewhere"'), "node.data_dir"),
            (sound.replace("[log]", '[log]\nfile = "none/such/log"'), "log"),
            (sound.replace(str(steady.material.key("node")), str(steady.material.key("peer"))), "key"),
        ):
            assert broken != sound
            count = len(steady.events("reload_refused"))
            steady.config_path.write_text(broken)
            send_signal(steady, signal.SIGHUP)
            eventually(lambda count=count: len(steady.events("reload_refused")) > count, 10, named)
            assert named in str(steady.events("reload_refused")[-1]["faults"])
        steady.config_path.unlink()
        count = len(steady.events("reload_refused"))
        send_signal(steady, signal.SIGHUP)
        eventually(lambda: len(steady.events("reload_refused")) > count, 10)
    finally:
        steady.config_path.write_text(sound)
    assert listeners(steady) == before
    works(steady)


def test_a_reload_is_for_new_associations_and_leaves_the_running_ones_alone(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    node = make_node(
        node='[node]\nae_title = "OLD"\ndata_dir = "var"', receive=_receive("check_called_ae = true")
    ).start()
    old = listeners(node)
    pair = pairs.issue_self_signed("renewed", names=["localhost"], key_type="ec")
    pairs.write_pair(pair, tmp_path / "renewed")
    renewed = ssl.PEM_cert_to_DER_cert(pair.certificate_pem.decode())
    with associated(node, called="OLD") as running:
        assert peer_certificate(node) != renewed
        node.configure(
            node='[node]\nae_title = "NEW"\ndata_dir = "var"',
            tls=f'[tls.node]\ncertificate = "{tmp_path}/renewed.crt"\n'
            f'private_key = "{tmp_path}/renewed.key"\ntrusted = ["{node.material.trusted}"]',
        )
        reload(node)
        eventually(lambda: peer_certificate(node) == renewed, 10, "the new certificate")
        with Caller(_trusting(node, tmp_path / "renewed.crt")) as late:
            late.associate(called="NEW")
            assert late.echo() == 0
        made = Made(sop=new_uid())
        assert running.store(made).status == 0
        running.release()
    eventually(lambda: made.sop in node.stored(), 10)
    eventually(lambda: not old & listeners(node), 40, "the old listeners have ended")
    assert len(listeners(node)) == 2
    assert node.stop() == 0
    assert_sound(node)


def _receive(*lines: str) -> str:
    return "\n".join(["[receive]", "processes = 2", "min_free_bytes = 0", "artim_seconds = 1", *lines])


def peer_certificate(node: Node) -> bytes:
    """The certificate that the node shows now, DER."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with connect(node.tls_port) as sock, context.wrap_socket(sock) as tls:
        return tls.getpeercert(binary_form=True) or b""


def _trusting(node: Node, certificate: Path) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certificate)
    context.load_cert_chain(node.material.certificate("peer"), node.material.key("peer"))
    return context.wrap_socket(connect(node.tls_port), server_hostname="localhost")


def test_reloads_in_quick_succession_end_with_the_last_configuration(make_node: Callable[..., Node]) -> None:
    node = make_node(receive=_receive()).start()
    for _ in range(3):
        send_signal(node, signal.SIGHUP)
    node.configure(receive=_receive().replace("processes = 2", "processes = 1"))
    reload_to(node, 1)
    works(node)
    assert node.stop() == 0
    assert_sound(node)


def reload_to(node: Node, processes: int) -> None:
    before = listeners(node)
    send_signal(node, signal.SIGHUP)
    eventually(lambda: len(listeners(node)) == processes and not before & listeners(node), 20)


def test_a_reload_opens_new_ports_and_closes_those_that_are_gone(make_node: Callable[..., Node]) -> None:
    node = make_node(receive=_receive()).start()
    gone = node.plain_port
    node.plain_port = free_port()
    node.configure()
    reload(node)
    works(node)
    with socket.socket() as refused_there:
        assert refused_there.connect_ex(("127.0.0.1", gone)) == errno.ECONNREFUSED
    assert node.stop() == 0


# --- SIGUSR1


def test_usr1_opens_the_log_again_in_every_process_and_ends_none(make_node: Callable[..., Node]) -> None:
    node = make_node(log='[log]\nformat = "json"\nlevel = "debug"\nfile = "node.log"').start()
    log, rotated = node.folder / "node.log", node.folder / "node.log.1"
    eventually(lambda: len(node.children()) == 4, 10)
    before = {child.pid for child in node.children()}
    log.rename(rotated)
    send_signal(node, signal.SIGUSR1)
    eventually(log.exists, 10)
    for _ in range(6):
        with associated(node) as caller:
            caller.release()
    made = Made(sop=new_uid())
    with associated(node) as caller:
        assert caller.store(made).status == 0
    eventually(lambda: made.sop in node.stored(), 10)
    assert {child.pid for child in node.children()} == before

    def writers() -> set[int]:
        return {json.loads(line)["pid"] for line in log.read_text().splitlines()}

    eventually(lambda: writers() & listeners(node), 10)
    for child in node.children():
        if child.name().startswith("ingest"):
            held = {file.path for file in child.open_files()}
            assert str(rotated) not in held, child
            assert str(log) in held, child
    assert node.stop() == 0


# --- kill -9


def test_a_killed_supervisor_takes_all_its_processes_along_and_the_next_start_works(
    make_node: Callable[..., Node], record_property: Callable[[str, object], None]
) -> None:
    node = make_node().start()
    ports = node.tls_port, node.plain_port
    children = eventually(lambda: len(node.children()) == 4 and node.children(), 10)
    with associated(node) as caller:
        begun = time.monotonic()
        node.kill()
        eventually(lambda: ended(children), 10, "no process is left")
        record_property("gone_seconds", round(time.monotonic() - begun, 2))
        caller.expect_closed()
    # Nothing of it is left to take its rows off the scoreboard.
    eventually(lambda: states(node) == ["silent"] * 2, 10)
    node.start()
    assert (node.tls_port, node.plain_port) == ports
    works(node)
    assert node.stop() == 0


def test_a_restart_does_not_wait_for_what_the_killed_node_left(make_node: Callable[..., Node]) -> None:
    node = make_node().start()
    for _ in range(2):
        assert node.process is not None
        os.kill(node.process.pid, signal.SIGKILL)
        killed, node.process = node.process, None
        node.start()  # while the children of the other one may still be ending
        killed.wait()
        assert killed.stdout is not None
        killed.stdout.close()
        works(node)
    assert node.stop() == 0
