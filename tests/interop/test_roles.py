"""The roles in processes of their own around a real redis-server, both carriers, and two file systems."""

import contextlib
import os
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from ingest.requestor.send_files import send_files
from ingest.requestor.transport import Remote
from ingest.tls.contexts import build_client_context
from tests.interop.files import assert_read_by_others, by_uid, data_set, write_made
from tests.support.nodes import Node, cleaned, destination, eventually
from tests.support.peers import require_program, storescp
from tests.support.pki import Material
from tests.support.ports import free_port

COUNT = 60


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """A redis-server of Debian's on a port of its own, without persistence."""
    program, port = require_program("redis-server"), free_port()
    folder = tmp_path / "redis"
    folder.mkdir()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    process = subprocess.Popen(
        [*command, "--save", "", "--appendonly", "no"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        with contextlib.closing(redis.Redis(port=port, socket_timeout=5)) as client:
            eventually(lambda: answers(client), 10, "redis-server answers")
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait()


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def send(node: Node, material: Material, files: list[Path]) -> None:
    remote = Remote("localhost", node.tls_port, "INGEST", "TESTS", build_client_context(material.tls("peer")))
    summary = send_files(remote, files, 4)
    assert len(summary.stored_files) == len(files), summary.failed_files


def assert_same(found: dict[str, Path], files: list[Path]) -> None:
    """What was found is what was sent, and others can read it."""
    expected = by_uid(files)
    assert found.keys() == expected.keys()
    assert all(data_set(path) == data_set(expected[uid]) for uid, path in found.items())
    assert_read_by_others(found.values())


def role(node: Node, *command: str) -> Node:
    """One role of a node."""
    node.command = command
    return node


def rows(ledger: Path, sql: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True, timeout=10)) as connection:
        try:
            return connection.execute(sql).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" not in str(error):
                raise
            return []  # the file is there before its tables are


def names_of(node: Node) -> set[str]:
    return {child.name() for child in node.children()}


@pytest.mark.parametrize("carrier", ["spool", "redis"])
def test_roles_in_processes_of_their_own_store_and_forward_together(
    make_node: Callable[..., Node], material: Material, tmp_path: Path, redis_url: str, carrier: str
) -> None:
    """With the `redis` carrier the persist role is as on a host that does not see the spool."""
    files = write_made(tmp_path / "made", COUNT, size=60_000)
    # Longer than one piece of what Redis is given at a time.
    files += write_made(tmp_path / "made", 1, size=2_500_000, first=COUNT)
    ledger, store = tmp_path / "ledger.db", tmp_path / "store"
    shared = {
        "queue": f'[queue]\nurl = "{redis_url}"\ncarrier = "{carrier}"',
        "store": f'[store]\nroot = "{store}"',
        "ledger": f'[ledger]\nurl = "sqlite:///{ledger}"',
    }
    with storescp(tmp_path / "arrived", material.tls("remote")) as port:
        shared["destinations"] = destination("remote", port, associations=2)
        listen = role(make_node("listen", **shared), "listen").start()
        spool = listen.spool if carrier == "spool" else tmp_path / "not there"
        shared["receive"] = f'[receive]\nspool_dir = "{spool}"'
        persist = role(make_node("persist", **shared), "work", "persist").start()
        forward = role(make_node("forward", **shared), "work", "forward").start()

        send(listen, material, files)

        states = "SELECT state, count(*) FROM deliveries GROUP BY state"
        eventually(lambda: rows(ledger, states) == [("delivered", len(files))], 30, "all delivered")
        stored = rows(ledger, "SELECT sop_instance_uid, store_key FROM instances WHERE state = 'stored'")
        assert_same({uid: store / key for uid, key in stored}, files)
        assert_same(by_uid((tmp_path / "arrived").iterdir()), files)
        eventually(lambda: not listen.spooled(), 10, "an empty spool")
        with contextlib.closing(redis.Redis.from_url(redis_url)) as client:
            eventually(lambda: not list(client.scan_iter("ingest:data:*")), 5, "no data set left in Redis")
        assert names_of(listen) == {"ingest-listen"}
        assert names_of(persist) == {"ingest-persist"}
        assert names_of(forward) == {"ingest-forward"}
        assert [node.stop() for node in (listen, persist, forward)] == [0, 0, 0]


def test_roles_may_share_one_configuration_and_one_folder(
    make_node: Callable[..., Node], material: Material, tmp_path: Path, redis_url: str
) -> None:
    files = write_made(tmp_path / "made", COUNT)
    with storescp(tmp_path / "arrived", material.tls("remote")) as port:
        listen = make_node(queue=f'[queue]\nurl = "{redis_url}"', destinations=destination("remote", port))
        others = []
        for command in (("work", "forward"), ("work", "persist")):
            other = role(Node(listen.folder, material, listen.sections), *command)
            others.append(other)
        with cleaned(others[0]), cleaned(others[1]):
            for node in (role(listen, "listen"), *others):
                node.start()

            send(listen, material, files)

            eventually(lambda: listen.deliveries() == {"delivered": COUNT}, 30, "all delivered")
            assert_same(listen.stored(), files)
            assert [node.stop() for node in (listen, *others)] == [0, 0, 0]
    assert_same(by_uid((tmp_path / "arrived").iterdir()), files)


def test_spool_and_store_may_be_on_two_file_systems(
    make_node: Callable[..., Node], material: Material, tmp_path: Path
) -> None:
    if not os.access("/dev/shm", os.W_OK) or os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("/dev/shm is no file system of its own")
    files = write_made(tmp_path / "made", COUNT, size=60_000)
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as spool,
        storescp(tmp_path / "arrived", material.tls("remote")) as port,
    ):
        receive = f'[receive]\nprocesses = 2\nmin_free_bytes = 0\nspool_dir = "{spool}"'
        node = make_node(receive=receive, destinations=destination("remote", port)).start()

        send(node, material, files)

        eventually(lambda: node.deliveries() == {"delivered": COUNT}, 30, "all delivered")
        assert_same(node.stored(), files)
        assert {path.stat().st_dev for path in node.stored().values()} == {tmp_path.stat().st_dev}
        eventually(lambda: not list(Path(spool).glob("L*/ready/*")), 10, "an empty spool")
        assert node.stop() == 0
    assert_same(by_uid((tmp_path / "arrived").iterdir()), files)
