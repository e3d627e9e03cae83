"""The library with real nodes, and the programs of docs/examples."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import ingest
from tests.support.instances import Made
from tests.support.nodes import eventually
from tests.support.pki import Material

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture(scope="module")
def shared() -> Iterator[ingest.Node]:
    """One node for the tests that only send to it."""
    with ingest.Node({"node": {"ae_title": "STORE"}}) as node:
        yield node


def write_instances(folder: Path, *numbers: int, study: str = "1.2.3") -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.dcm" for number in numbers]
    for number, path in zip(numbers, paths, strict=True):
        path.write_bytes(Made(sop=f"{study}.{number}", study=study, series=f"{study}.0").file)
    return paths


def run_example(name: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_node_receives_what_is_sent_and_leaves_nothing_behind(tmp_path: Path) -> None:
    files = write_instances(tmp_path / "study", 1, 2)
    (tmp_path / "study" / "notes.txt").write_text("no image")
    with ingest.Node() as node:
        report = ingest.send(tmp_path / "study", node)
        stored = node.wait_for_instances(2)
        folder, pids = (
            node.log_path.parent,
            [child.pid for child in psutil.Process().children(recursive=True)],
        )
        assert pids
        assert [one.path.read_bytes()[-4:] for one in stored if one.path] == [b"\1\2\3\4"] * 2
        assert stored[0].path is not None
        assert stored[0].path.is_relative_to(node.store)
    assert [result.path for result in report.stored] == files
    assert [result.status for result in report.results] == [0, 0]
    assert report.skipped == (tmp_path / "study" / "notes.txt",)
    assert report.failed == ()
    assert not folder.exists()
    assert not [pid for pid in pids if psutil.pid_exists(pid) and _is_node(pid)]


def _is_node(pid: int) -> bool:
    try:
        return psutil.Process(pid).name().startswith("ingest-")
    except psutil.NoSuchProcess:
        return False


def test_killed_node_starts_again_with_what_it_has_acknowledged(tmp_path: Path) -> None:
    with ingest.Node(folder=tmp_path) as node:
        assert ingest.send(write_instances(tmp_path / "study", 1, 2, 3), node).failed == ()
        node.kill()
        assert not node.is_running
        node.start()
        assert len(node.wait_for_instances(3)) == 3
        assert node.stop() == 0
    assert (tmp_path / "var" / "store").is_dir(), "a folder of the caller stays"


@pytest.mark.parametrize(("name", "section"), [("node", 5), ("receive", ["x"]), ("peers", 5), ("more", True)])
def test_section_that_is_no_table_is_a_fault_of_the_configuration(name: str, section: object) -> None:
    with pytest.raises(ingest.ConfigError, match=name), ingest.Node({name: section}):
        pass


def test_node_that_has_died_by_itself_starts_again(tmp_path: Path) -> None:
    before = set(psutil.Process().children())
    with ingest.Node(folder=tmp_path) as node:
        [supervisor] = set(psutil.Process().children()) - before
        supervisor.kill()
        eventually(lambda: not node.is_running, 10, "the node has died")
        node.start()
        assert node.is_running
        assert ingest.send(write_instances(tmp_path / "study", 1), node).failed == ()


def test_node_of_a_configuration_with_tls_forwards_to_another_node(
    tmp_path: Path, material: Material
) -> None:
    keys = {
        "certificate": str(material.certificate("node")),
        "private_key": str(material.key("node")),
        "trusted": [str(material.trusted)],
    }
    with ingest.Node({"node": {"ae_title": "ARCHIVE"}}) as archive:
        path = tmp_path / "node.toml"
        path.write_text(
            '[node]\ndata_dir = "data"\n[[listeners]]\nhost = "127.0.0.1"\nport = 0\n'
            f'[tls.node]\ncertificate = "{keys["certificate"]}"\nprivate_key = "{keys["private_key"]}"\n'
            f'trusted = ["{material.trusted}"]\n[receive]\nprocesses = 1\n'
            f'[[destinations]]\nname = "archive"\nae_title = "ARCHIVE"\nhost = "127.0.0.1"\n'
            f'port = {archive.port}\ntls = false\n[[routes]]\nto = ["archive"]\n'
        )
        with ingest.Node(path) as node:
            assert [address.is_tls for address in node.addresses] == [True]
            with pytest.raises(ingest.NodeError, match="TLS"):
                _ = node.remote
            tls = ingest.TLS(
                certificate=material.certificate("peer"),
                private_key=material.key("peer"),
                trusted=(material.trusted,),
            )
            remote = ingest.Remote("localhost", node.port, "INGEST", "CT1", tls)
            assert ingest.send(write_instances(tmp_path / "study", 1), remote).failed == ()
            [delivered] = node.wait_for_deliveries(1, seconds=20)
            assert delivered.deliveries == {"archive": ingest.DeliveryState.DELIVERED}
            [arrived] = archive.wait_for_instances(1)
            assert arrived.sop_instance_uid == delivered.sop_instance_uid
            config = node.config
        # A configuration as an object makes the same node again.
        copied = config.model_copy(update={"destinations": (), "routes": ()})
        with ingest.Node(copied) as node, node.open_ledger() as ledger:
            assert [one.sop_instance_uid for one in ledger.instances()] == [delivered.sop_instance_uid]


def test_faulty_configuration_and_taken_port_are_errors_that_say_why() -> None:
    with pytest.raises(ingest.ConfigError, match="ae_titel"), ingest.Node({"node": {"ae_titel": "X"}}):
        pass
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listener = {"host": "127.0.0.1", "port": taken.getsockname()[1], "tls": False}
        with pytest.raises(ingest.NodeError, match="ended with 1"), ingest.Node({"listeners": [listener]}):
            pass
    with pytest.raises(ingest.NodeError, match="not started"):
        _ = ingest.Node().config


def test_node_ends_with_the_program_that_started_it(tmp_path: Path) -> None:
    program = (
        f"import ingest, time; node = ingest.Node(folder={str(tmp_path)!r}); node.start(); "
        "print(node._process.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
    eventually(lambda: not psutil.pid_exists(pid), 20, "the node has ended")


def test_node_may_be_started_in_another_thread(tmp_path: Path) -> None:
    node = ingest.Node()
    starter = threading.Thread(target=node.start)
    starter.start()
    starter.join(30)
    with node:
        assert ingest.send(write_instances(tmp_path / "study", 1), node).failed == ()


def test_results_of_files_and_failures_of_the_remote_are_told_apart(
    tmp_path: Path, shared: ingest.Node
) -> None:
    files = [*write_instances(tmp_path / "study", 7), tmp_path / "missing.dcm"]
    report = ingest.send(files, shared)
    assert [result.path for result in report.failed] == [tmp_path / "missing.dcm"]
    assert "cannot be opened" in report.failed[0].error
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(ingest.AssociationError) as failure:
        ingest.send(files, ingest.Remote("127.0.0.1", port))
    assert failure.value.cause is ingest.Cause.REFUSED


def test_waiting_for_too_many_instances_times_out(shared: ingest.Node) -> None:
    with pytest.raises(TimeoutError, match="of 99 instances were recorded within 0 s"):
        shared.wait_for_instances(99, seconds=0.1)


def test_example_sends_a_folder_and_the_nightly_report_names_what_is_left(tmp_path: Path) -> None:
    write_instances(tmp_path / "study", 1, 2, study="1.2.840.1")
    (tmp_path / "study" / "damaged.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 8)
    with ingest.Node({"node": {"ae_title": "NODE"}}) as archive:
        nobody = {"name": "nobody", "ae_title": "N", "host": "127.0.0.1", "port": 1, "tls": False}
        here = {"name": "here", "ae_title": "NODE", "host": "127.0.0.1", "port": archive.port, "tls": False}
        with ingest.Node({"destinations": [nobody, here], "routes": [{"to": ["nobody"]}]}) as node:
            config = node.log_path.parent / "node.toml"
            sent = run_example("send_folder.py", config, "here", tmp_path / "study")
            assert "2 of 2 stored" in sent.stdout, sent.stderr
            refused = run_example("send_folder.py", config, "nobody", tmp_path / "study")
            assert refused.returncode == 2
            assert "nothing was sent" in refused.stdout
            ingest.send(tmp_path / "study", node)
            node.wait_for_instances(2)
            report = run_example("nightly_report.py", config)
            assert report.returncode == 1, report.stderr
            assert "2 instances were received" in report.stdout
            assert "nobody: 2 deliveries wait" in report.stdout
            assert "nobody lacks images of study 1.2.840.1" in report.stdout
        assert len(archive.wait_for_instances(2)) == 2
        assert (
            "everything was delivered"
            in run_example("nightly_report.py", archive.log_path.parent / "node.toml").stdout
        )


def test_example_previews_routes(tmp_path: Path) -> None:
    [image] = write_instances(tmp_path / "study", 1)
    destinations = "".join(
        f'[[destinations]]\nname = "{name}"\nae_title = "X"\nhost = "{name}"\ntls = false\n' for name in "ab"
    )
    (tmp_path / "old.toml").write_text(destinations + '[[routes]]\nto = ["a"]\n')
    (tmp_path / "new.toml").write_text(
        destinations + '[[routes]]\nname = "ct"\nwhen = { Modality = "CT" }\nto = ["a"]\n'
        '[[routes]]\nname = "rest"\nto = ["b"]\ndefault = true\n'
    )
    done = run_example("preview_routes.py", tmp_path / "old.toml", tmp_path / "new.toml", image)
    assert done.stdout.splitlines() == ["1.dcm: a -> b", "  ct: Modality is missing", "  rest: matches"]


def test_example_for_pytest_passes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "-p", "no:cacheprovider", "test_export.py"],
        cwd=EXAMPLES,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "2 passed" in done.stdout, done.stdout
