"""Keys and passwords of a node are in nothing that it says or leaves, whatever becomes of it."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from cryptography.hazmat.primitives import serialization

from ingest.tls.keys import key_stores, pairs
from tests.faults.caller import connect
from tests.support.nodes import Node, destination, eventually
from tests.support.ports import free_port

PASSWORDS = {"key": "geheim-eins", "store": "geheim-zwei", "queue": "geheim-drei"}


def secrets(*keys: Path) -> set[bytes]:
    """The passwords, and of each key its numbers and the lines of its PEM."""
    found = {word.encode() for word in PASSWORDS.values()}
    for path in keys:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
        numbers = key.private_numbers()  # type: ignore[union-attr]
        found |= {each.to_bytes(128, order) for each in (numbers.p, numbers.q) for order in ("big", "little")}
        found |= {line for line in path.read_bytes().splitlines() if len(line) == 64}
    return found


@pytest.fixture
def node(make_node: Callable[..., Node], tmp_path: Path) -> Node:
    keys = tmp_path / "keys"
    for name in ("listener", "sender"):
        pairs.write_pair(pairs.issue_self_signed(name, names=["localhost"]), keys / name)
    for name in ("key", "store"):
        (keys / f"{name}.password").write_text(PASSWORDS[name])
    opened = serialization.load_pem_private_key((keys / "listener.key").read_bytes(), None)
    password = serialization.BestAvailableEncryption(PASSWORDS["key"].encode())
    formats = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    (keys / "locked.key").write_bytes(opened.private_bytes(*formats, password))
    key_stores.make_key_store(
        keys / "sender.p12", keys / "sender.crt", keys / "sender.key", password_file=keys / "store.password"
    )
    node = make_node()
    node.configure(
        tls=(
            f'[tls.node]\ncertificate = "{keys}/listener.crt"\nprivate_key = "{keys}/locked.key"\n'
            f'password_file = "{keys}/key.password"\ntrusted = ["{keys}/sender.crt"]\n'
            f'[tls.out]\npkcs12 = "{keys}/sender.p12"\npassword_file = "{keys}/store.password"\n'
            f'trusted = ["{keys}/listener.crt"]'
        ),
        queue=f'[queue]\nurl = "redis://:{PASSWORDS["queue"]}@127.0.0.1:{free_port()}/0"',
        destinations=destination("pacs", free_port()).replace('"node"', '"out"'),
    )
    return node


def test_no_key_and_no_password_is_in_what_a_node_says_or_leaves(node: Node, tmp_path: Path) -> None:
    words = secrets(*(tmp_path / "keys" / f"{name}.key" for name in ("listener", "sender")))
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    before = resource.getrlimit(resource.RLIMIT_CORE)
    if before[1] == resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_CORE, unlimited)
    try:
        node.start()
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)
    said = []
    for arguments in (["check", "--connect"], ["status"], ["status", "--json"], ["config", "show"]):
        said.append(run(node, *arguments))
        assert said[-1], arguments
    connect(node.tls_port).close()
    broken = tmp_path / "keys" / "key.password"
    broken.write_text("wrong")
    said.append(run(node, "reload"))
    assert "correct the password" in said[-1]
    for name in ("ingest-listen", "ingest-forward", "ingest-persist"):
        child = eventually(lambda name=name: node.children(name), what=name)[0]
        assert resource.prlimit(child.pid, resource.RLIMIT_CORE) == (1, 1)
        os.kill(child.pid, signal.SIGABRT)
        eventually(lambda pid=child.pid: not psutil.pid_exists(pid))
    eventually(lambda: len(node.events("child_died")) == 3)
    node.stop()
    files = [path for path in node.folder.rglob("*") if path.is_file() and path != node.config_path]
    assert node.folder / "log" in files
    for path in files:
        held = path.read_bytes()
        assert not [word for word in words if word in held], path
    assert not [word for word in words for text in said if word in text.encode()]


def run(node: Node, *arguments: str) -> str:
    command = [sys.executable, "-m", "ingest.cli", *arguments, "-c", str(node.config_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=node.folder)
    return done.stdout + done.stderr
