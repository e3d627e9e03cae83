"""`ingest reload`: a node takes what is sound and says so; what is not changes nothing and is named."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from ingest.config.model import Config
from ingest.config.reader import load_config
from ingest.errors import IngestError
from ingest.supervisor import reload_client
from ingest.tls.keys import pairs
from tests.faults.caller import Caller
from tests.support.instances import Made
from tests.support.nodes import Node, destination, eventually
from tests.support.peers import CT, EXPLICIT, PynetdicomRemote, require_program
from tests.support.pki import Material
from tests.support.ports import free_port
from tests.support.revoking import revocation_list


def reload(node: Node) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "ingest.cli", "reload", "-c", str(node.config_path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def tls(node: Node, key: str, certificate: str = "node", *, section: str = "node", more: str = "") -> str:
    material = node.material
    return (
        f'[tls.{section}]\ncertificate = "{material.certificate(certificate)}"\n'
        f'private_key = "{material.key(key)}"\ntrusted = ["{material.trusted}"]\n{more}'
    )


def status(node: Node) -> list[str]:
    command = [sys.executable, "-m", "ingest.cli", "status", "--json", "-c", str(node.config_path)]
    # 1 is degraded: after a reload that was refused.
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    refused: list[str] = json.loads(done.stdout)["reload_refused"]
    return refused


def test_sound_configuration_is_taken_and_a_bad_pair_is_not(make_node: Callable[..., Node]) -> None:
    node = make_node().start()
    done = reload(node)
    assert (done.returncode, done.stdout) == (0, "reloaded: generation 2\n")
    node.configure(tls=tls(node, "peer"))
    done = reload(node)
    assert done.returncode == 2
    assert "does not belong to the private key" in done.stderr
    assert "reload_refused" in node.log
    [told] = status(node)
    assert "does not belong to the private key" in told
    node.configure(tls=tls(node, "node"))
    assert reload(node).stdout == "reloaded: generation 3\n"
    assert status(node) == []


def test_instances_that_arrive_after_a_reload_are_routed_by_the_new_rules(
    make_node: Callable[..., Node],
) -> None:
    def routes(to: str) -> str:
        remotes = "".join(
            f'[[destinations]]\nname = "{name}"\nae_title = "X"\nhost = "127.0.0.1"\nport = 9\ntls = false\n'
            for name in ("one", "two")
        )
        return f'{remotes}[[routes]]\nto = ["{to}"]'

    def store(uid: str) -> str:
        """Store an instance, and return the destination that it gets."""
        with Caller.plain(node) as caller:
            caller.associate()
            assert caller.store(Made(sop=uid)).status == 0
            caller.release()
        query = (
            "SELECT destination FROM deliveries JOIN instances ON instances.id = instance_id "
            "WHERE sop_instance_uid = ?"
        )
        [[found]] = eventually(lambda: node.query(query, uid), 30, "a delivery")
        return str(found)

    node = make_node(workers="[workers]\npersist = 1\nforward = 1", routes=routes("one")).start()
    assert store("1.9.0") == "one"
    for number, to in enumerate(["two", "one", "two"], 1):
        # The worker has persisted the last instance, and waits for the next one.
        node.configure(routes=routes(to))
        # Without the command, whose end takes as long as a worker waits.
        reload_client.request_reload(load_config(node.config_path))
        assert store(f"1.9.{number}") == to
    assert node.spooled() == []


def test_what_the_file_itself_says_wrong_is_named_before_the_node_is_asked(
    make_node: Callable[..., Node],
) -> None:
    node = make_node().start()
    node.configure(receive="[receive]\nproceses = 2")
    done = reload(node)
    assert done.returncode == 2
    assert "processes" in done.stderr
    assert not node.events("reload_refused")


def test_node_that_does_not_run_is_said_so(make_node: Callable[..., Node], tmp_path: Path) -> None:
    node = make_node()
    node.configure()
    done = reload(node)
    assert done.returncode == 1
    assert "`ingest serve` starts one" in done.stderr
    node.start()
    node.stop()
    assert reload(node).returncode == 1


NOW = datetime.now(UTC)


@pytest.fixture
def pair(material: Material) -> Callable[..., str]:
    """Makes a pair in the material's folder; returns its name."""

    def make(name: str, **options: object) -> str:
        made = pairs.issue_self_signed(name, names=["localhost"], key_type="ec", **options)  # type: ignore[arg-type]
        pairs.write_pair(made, material.folder / name, force=True)
        return name

    return make


def test_certificate_that_has_ended_or_has_not_begun_is_not_taken(
    make_node: Callable[..., Node], pair: Callable[..., str]
) -> None:
    node = make_node().start()
    early = pair("early", start=NOW + timedelta(days=1))
    for name, said in (("expired", "ended on"), (early, "is not valid before")):
        node.configure(tls=tls(node, name, name))
        done = reload(node)
        assert done.returncode == 2
        assert f"tls.node.certificate: {node.material.certificate(name)}" in done.stderr
        assert said in done.stderr
    [_, refused] = node.events("reload_refused")
    assert (refused["level"], "is not valid before" in str(refused["faults"])) == ("error", True)
    with Caller.tls(node) as caller:  # who trusts the one in force
        caller.associate()
        assert caller.echo() == 0


def test_certificate_that_is_in_force_and_has_ended_keeps_nothing_else_from_being_taken(
    make_node: Callable[..., Node], pair: Callable[..., str]
) -> None:
    node = make_node()
    node.configure(tls=tls(node, "expired", "expired"))
    node.start()
    node.configure(receive="[receive]\nprocesses = 1\nmin_free_bytes = 0")
    assert reload(node).stdout == "reloaded: generation 2\n"
    older = pair("older", start=NOW - timedelta(days=20), days=5)
    node.configure(tls=tls(node, older, older))
    assert "ended on" in reload(node).stderr


def test_trust_of_which_nothing_is_valid_any_more_is_not_taken(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    node = make_node().start()
    expired = node.material.certificate("expired").read_text()
    node.configure(tls=tls(node, "node").replace(str(node.material.trusted), str(tmp_path / "ended.crt")))
    (tmp_path / "ended.crt").write_text(expired)
    done = reload(node)
    assert (done.returncode, "tls.node.trusted: the certificate in it ended on" in done.stderr) == (2, True)
    (tmp_path / "ended.crt").write_text(expired + node.material.certificate("peer").read_text())
    assert reload(node).returncode == 0


def test_old_list_is_not_taken_where_it_would_keep_all_out_whom_its_issuer_vouches_for(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    issuer = pairs.issue_authority("issuer", key_type="ec")
    lists = tmp_path / "lists"
    lists.mkdir()
    old, fresh = (
        revocation_list(issuer, next_update=NOW + timedelta(days=days)).public_bytes(Encoding.PEM)
        for days in (-1, 1)
    )
    (lists / "site").write_bytes(fresh)
    node = make_node()
    node.configure(tls=tls(node, "node", more=f'crl = ["{lists}"]'))
    node.start()
    (lists / "site").write_bytes(old)
    done = reload(node)
    assert (done.returncode, "the CRL of CN=issuer ended on" in done.stderr) == (2, True)
    (lists / "site").write_bytes(fresh + old)
    assert reload(node).returncode == 0
    (lists / "site").write_bytes(old)
    node.configure(tls=tls(node, "node", more=f'crl = ["{lists}"]\ncrl_expired = "allow"'))
    assert reload(node).returncode == 0


def test_what_destinations_need_is_looked_at_before_anything_changes(
    make_node: Callable[..., Node], material: Material
) -> None:
    node = make_node()
    node.configure(
        tls=tls(node, "node") + tls(node, "node", section="out"),
        destinations=destination("pacs", 1).replace('"node"', '"out"'),
    )
    node.start()
    node.configure(tls=tls(node, "node") + tls(node, "peer", section="out"))
    done = reload(node)
    assert (done.returncode, "does not belong to the private key" in done.stderr) == (2, True)
    assert not node.events("reloaded")
    assert len({child.pid for child in node.children("ingest-forward")}) == 1


def test_files_that_are_replaced_while_they_are_read_are_read_once(
    make_node: Callable[..., Node], material: Material, tmp_path: Path
) -> None:
    """Else a certificate could be looked at, and another one be taken."""
    strace = require_program("strace")
    issuer, lists = pairs.issue_authority("issuer", key_type="ec"), tmp_path / "lists"
    lists.mkdir()
    (lists / "site").write_bytes(revocation_list(issuer).public_bytes(Encoding.PEM))
    node = make_node()
    more = f'crl = ["{lists}"]'
    node.configure(tls=tls(node, "node", more=more), destinations=destination("pacs", 1))
    node.start()
    assert node.process is not None
    trace = tmp_path / "trace"
    command = [strace, "-qq", "-e", "trace=openat", "-o", str(trace), "-p", str(node.process.pid)]
    with subprocess.Popen(command) as tracer:
        status = Path(f"/proc/{node.process.pid}/status")
        eventually(lambda: f"TracerPid:\t{tracer.pid}\n" in status.read_text(), 10, "it is traced")
        assert reload(node).returncode == 0
        tracer.terminate()
    opened = trace.read_text()
    files = [material.certificate("node"), material.key("node"), material.trusted, lists / "site"]
    assert {path: opened.count(f'"{path}"') for path in files} == dict.fromkeys(files, 1)


def test_defect_in_reading_costs_no_node_what_runs(make_node: Callable[..., Node]) -> None:
    program = (
        "from ingest.supervisor import reload; from ingest.cli import main\n"
        "def read_next_generation(*_):\n    raise ValueError('a name that cannot be read')\n"
        "reload.read_next_generation = read_next_generation\nmain()"
    )
    node = make_node()
    node.program = ("-c", program)
    node.start()
    with Caller.tls(node) as caller:
        caller.associate()
        done = reload(node)
        assert (done.returncode, "a name that cannot be read" in done.stderr) == (2, True)
        assert caller.echo() == 0
    [event] = node.events("reload_refused")
    assert "Traceback" in event["exception"]


def test_answer_to_an_earlier_signal_is_not_taken_for_ones_own(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match="has not answered"):  # the note below is of before it was asked
        _ask_with_a_note_of_before(tmp_path)


def _ask_with_a_note_of_before(folder: Path) -> None:
    config = Config.model_validate({"node": {"data_dir": str(folder)}})
    config.run_dir.mkdir()
    before = time.monotonic_ns()
    script = (
        "import fcntl, os, signal, sys, time\n"
        "lock = open(sys.argv[1], 'w'); fcntl.lockf(lock, fcntl.LOCK_EX)\n"
        "signal.signal(signal.SIGHUP, lambda *_: answer())\n"
        "def answer():\n"
        "    from pathlib import Path; from ingest.supervisor import reload_client\n"
        "    reload_client.write_outcome(Path(sys.argv[2]), 7, began_ns=int(sys.argv[3]))\n"
        "lock.write(str(os.getpid())); lock.flush(); print('up', flush=True)\n"
        "time.sleep(60)"
    )
    command = [sys.executable, "-c", script, config.run_dir / "node.lock", config.run_dir, str(before)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        try:
            reload_client.request_reload(config, seconds=2.0)
        finally:
            holder.kill()


def test_worker_that_is_started_again_calls_with_what_was_read_at_the_last_reload(
    make_node: Callable[..., Node], material: Material
) -> None:
    for kind in ("crt", "key"):
        shutil.copy(material.folder / f"node.{kind}", material.folder / f"copy.{kind}")
    with PynetdicomRemote([(CT, [EXPLICIT])], tls=material.tls("remote")) as remote:
        node = make_node()
        node.configure(tls=tls(node, "copy", "copy"), destinations=destination("remote", remote.port))
        node.start()
        material.key("copy").write_text("half a key")  # of somebody who is about to reload
        node.kill_child("ingest-forward")
        with Caller.tls(node) as caller:
            caller.associate()
            assert caller.store(Made()).status == 0
        eventually(lambda: len(remote.stored) == 1, 30, "the instance has come")
    assert not node.events("node_cannot_start")


def test_destination_that_a_reload_mends_is_asked_at_once(make_node: Callable[..., Node]) -> None:
    wrong = destination("pacs", free_port(), tls=False, retry_first_seconds=250, retry_max_seconds=300)
    node = make_node(destinations=wrong).start()
    with Caller.plain(node) as caller:
        caller.associate()
        assert caller.store(Made()).status == 0
    query = "SELECT probe_at FROM circuits WHERE probe_at > 0"
    eventually(lambda: node.query(query), 20, "it is left alone")
    with PynetdicomRemote([(CT, [EXPLICIT])]) as remote:
        node.configure(destinations=destination("pacs", remote.port, tls=False))
        assert reload(node).returncode == 0
        eventually(lambda: node.deliveries() == {"delivered": 1}, 20, "it is delivered")
