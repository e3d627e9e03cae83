"""`ingest reload`: a node takes what is sound and says so; what is not changes nothing and is named."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.nodes import Node


def reload(node: Node) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "ingest.cli", "reload", "-c", str(node.config_path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def tls(node: Node, key: str) -> str:
    material = node.material
    return (
        f'[tls.node]\ncertificate = "{material.certificate("node")}"\n'
        f'private_key = "{material.key(key)}"\ntrusted = ["{material.trusted}"]'
    )


def test_sound_configuration_is_taken_and_a_bad_pair_is_not(make_node: Callable[..., Node]) -> None:
    node = make_node().start()
    done = reload(node)
    assert (done.returncode, done.stdout) == (0, "reloaded: generation 2\n")
    node.configure(tls=tls(node, "peer"))
    done = reload(node)
    assert done.returncode == 2
    assert "does not belong to the private key" in done.stderr
    assert "reload_refused" in node.log
    node.configure(tls=tls(node, "node"))
    assert reload(node).stdout == "reloaded: generation 3\n"


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
