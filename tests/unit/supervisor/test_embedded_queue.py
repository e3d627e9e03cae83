"""The embedded Valkey: any folder, any survivor, and nothing of somebody else's."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis

from ingest.errors import BootError
from ingest.queue.client import connect, find_socket_path, list_socket_paths
from ingest.supervisor.embedded_queue import EmbeddedQueue
from tests.support.nodes import eventually
from tests.support.preloads import other_file_system
from tests.support.servers import wait_for_pong
from tests.support.spools import config

DEEP = "x" * 100 + "/" + "y" * 100
"""A folder whose path is too long for a socket in it."""


@pytest.fixture
def make_queue() -> Iterator[Callable[[Path], EmbeddedQueue]]:
    """Makes queues that are ended after the test."""
    made: list[EmbeddedQueue] = []

    def make(data_dir: Path) -> EmbeddedQueue:
        made.append(EmbeddedQueue(data_dir))
        return made[-1]

    yield make
    for queue in made:
        queue.kill()
        with contextlib.suppress(OSError):
            queue.socket.unlink()
            queue.socket.parent.rmdir()


def started(queue: EmbeddedQueue) -> EmbeddedQueue:
    queue.start()
    assert wait_for_pong(queue, 10), (queue.folder / "valkey.log").read_text()
    return queue


def client(data_dir: Path) -> "contextlib.closing[redis.Redis]":
    return contextlib.closing(connect(config(data_dir)))


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "with a space",
        'quo"te',
        "back\\slash",
        "Bilder-Prüfung",
        DEEP,
        "#1 'a'",
    ],
)
def test_it_runs_in_any_folder(
    name: str, tmp_path: Path, make_queue: Callable[[Path], EmbeddedQueue]
) -> None:
    queue = started(make_queue(tmp_path / name))
    with client(tmp_path / name) as connection:
        connection.set("key", "value")
        assert connection.config_get("dir")["dir"] == str(tmp_path / name / "queue")
    queue.stop()
    assert queue.process is None
    assert not queue.socket.exists()


def test_client_info_can_be_read_where_a_short_folder_has_a_space(
    make_queue: Callable[[Path], EmbeddedQueue],
) -> None:
    # Not pytest's folder: it is too long for a socket in it, so that another place is taken anyway.
    with tempfile.TemporaryDirectory(prefix="a b ") as folder:
        queue = started(make_queue(Path(folder)))
        with client(Path(folder)) as connection:
            assert connection.client_info(), "RQ asks for it"
        queue.stop()


def test_what_it_held_is_there_after_a_restart(
    tmp_path: Path, make_queue: Callable[[Path], EmbeddedQueue]
) -> None:
    queue = started(make_queue(tmp_path))
    with client(tmp_path) as connection:
        connection.xadd("stream", {"a": "b"})
    queue.stop()
    started(queue)
    with client(tmp_path) as connection:
        assert connection.xlen("stream") == 1


@pytest.mark.parametrize("name", ["d", DEEP])
def test_its_socket_is_open_to_its_user_alone(
    name: str, tmp_path: Path, make_queue: Callable[[Path], EmbeddedQueue]
) -> None:
    queue = started(make_queue(tmp_path / name))
    assert queue.socket.stat().st_mode & 0o077 == 0
    for folder in (*queue._list_own_folders(), queue.folder):
        assert folder.stat().st_mode & 0o077 == 0
    assert psutil.Process(queue.process.pid if queue.process else 0).net_connections("tcp") == []


def test_socket_paths_are_short_and_differ_by_folder(tmp_path: Path) -> None:
    deep = tmp_path / ("a" * 200) / ("b" * 200)
    assert len(os.fsencode(find_socket_path(deep))) <= 107
    assert find_socket_path(tmp_path / "a") != find_socket_path(tmp_path / "b")
    assert find_socket_path(tmp_path / "a") == find_socket_path(tmp_path / "b" / ".." / "a")


def test_a_temporary_folder_of_any_name_is_found_by_the_clients(
    tmp_path: Path, make_queue: Callable[[Path], EmbeddedQueue], monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest's folders are too long for a socket.
    with tempfile.TemporaryDirectory(suffix="# %41?") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        queue = started(make_queue(tmp_path / DEEP))
        with client(tmp_path / DEEP) as connection:
            assert connection.ping()
        queue.stop()


def test_two_nodes_have_two_queues(tmp_path: Path, make_queue: Callable[[Path], EmbeddedQueue]) -> None:
    started(make_queue(tmp_path / "a"))
    started(make_queue(tmp_path / "b"))
    with client(tmp_path / "a") as first, client(tmp_path / "b") as second:
        first.set("key", "value")
        assert second.get("key") is None


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        queue = EmbeddedQueue(tmp_path)
        queue.start()
        ready = wait_for_pong(queue, 10)
        os.write(writer, str(queue.process.pid if ready and queue.process else 0).encode())
        signal.pause()
    server = psutil.Process(int(os.read(reader, 32)))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(reader)
    os.close(writer)
    eventually(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE, 10)


def test_a_survivor_is_ended_and_replaced(
    tmp_path: Path, make_queue: Callable[[Path], EmbeddedQueue]
) -> None:
    survivor = started(make_queue(tmp_path))
    assert survivor.process is not None
    with client(tmp_path) as connection:
        connection.set("key", "value")
    # The owner is killed, and the next one knows of nothing.
    successor = started(make_queue(tmp_path))
    assert successor.process is not None
    assert survivor.process.poll() is not None
    assert successor.process.pid != survivor.process.pid
    with client(tmp_path) as connection:
        assert connection.get("key") == b"value"


def test_a_survivor_that_does_not_hear_is_killed(
    tmp_path: Path, make_queue: Callable[[Path], EmbeddedQueue], monkeypatch: pytest.MonkeyPatch
) -> None:
    survivor = started(make_queue(tmp_path))
    assert survivor.process is not None
    os.kill(survivor.process.pid, signal.SIGSTOP)
    monkeypatch.setattr("ingest.supervisor.embedded_queue.SHUTDOWN_SECONDS", 0.3)
    started(make_queue(tmp_path))
    assert survivor.process.poll() == -signal.SIGKILL


def test_a_process_that_only_has_the_pid_of_an_old_server_lives_on(
    tmp_path: Path, make_queue: Callable[[Path], EmbeddedQueue]
) -> None:
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        (tmp_path / "queue").mkdir()
        (tmp_path / "queue" / "valkey.pid").write_text(f"{bystander.pid}\n")
        started(make_queue(tmp_path))
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_stale_socket_is_replaced(tmp_path: Path, make_queue: Callable[[Path], EmbeddedQueue]) -> None:
    queue = started(make_queue(tmp_path))
    queue.kill()
    assert queue.socket.exists()
    assert not wait_for_pong(queue, 0.1)
    started(queue)


@pytest.mark.parametrize("kind", ["open to others", "a link", "a file"])
def test_a_folder_that_may_be_somebody_elses_is_refused(
    kind: str, tmp_path: Path, make_queue: Callable[[Path], EmbeddedQueue]
) -> None:
    queue = make_queue(tmp_path / DEEP)
    place = queue.socket.parent
    place.parent.mkdir(mode=0o700, exist_ok=True)
    (tmp_path / "theirs").mkdir(mode=0o700)
    try:
        if kind == "a link":
            place.symlink_to(tmp_path / "theirs")
        elif kind == "a file":
            place.touch()
        else:
            place.mkdir()
            place.chmod(0o777)
        with pytest.raises(BootError, match="embedded queue cannot use"):
            queue.start()
        assert queue.process is None
    finally:
        if place.is_dir() and not place.is_symlink():
            place.rmdir()
        else:
            place.unlink()


def test_a_data_folder_that_cannot_be_used_is_one_error_of_ours(
    tmp_path: Path, make_queue: Callable[[Path], EmbeddedQueue]
) -> None:
    (tmp_path / "queue").write_text("no folder")
    with pytest.raises(BootError, match="embedded queue cannot use"):
        make_queue(tmp_path).start()


def preloaded(data_dir: Path, tmp_path: Path, **faults: Path) -> None:
    """Start a queue in a process for which a folder lacks calls, and use it from here."""
    program = (
        "import sys, time; from pathlib import Path; "
        "from ingest.supervisor.embedded_queue import EmbeddedQueue\n"
        "from tests.support.servers import wait_for_pong\n"
        "queue = EmbeddedQueue(Path(sys.argv[1])); queue.start()\n"
        "print(wait_for_pong(queue, 10), flush=True)\n"
        "sys.stdin.read(); queue.stop()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(data_dir)],
        env=other_file_system(tmp_path, **faults),
        cwd=Path(__file__).parents[3],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout
        told = iter(process.stdout.readline, b"")
        assert any(line == b"True\n" for line in told), "the log comes first"
        with client(data_dir) as connection:
            assert connection.ping()
            assert connection.config_get("dir")["dir"] == str(data_dir / "queue")
    finally:
        process.communicate(timeout=20)
    assert process.returncode == 0


def test_it_listens_elsewhere_where_its_folder_has_no_sockets_and_clients_find_it(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder).resolve()
        before = connect(config(data_dir))
        with pytest.raises(redis.ConnectionError), contextlib.closing(before):
            before.ping()
        preloaded(data_dir, tmp_path, no_socket=data_dir)
        assert list(data_dir.rglob("*.sock")) == []


def test_client_that_was_made_before_the_server_finds_its_socket(
    tmp_path: Path, make_queue: Callable[[Path], EmbeddedQueue], monkeypatch: pytest.MonkeyPatch
) -> None:
    with client(tmp_path) as connection:
        with pytest.raises(redis.ConnectionError):
            connection.ping()
        places = list_socket_paths(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr("ingest.supervisor.embedded_queue.list_socket_paths", lambda _: places[-1:])
            started(make_queue(tmp_path))
            assert connection.ping()


def test_it_keeps_nothing_on_a_disk_that_is_full(
    small_disk: Path, make_queue: Callable[[Path], EmbeddedQueue]
) -> None:
    (small_disk / "queue").mkdir()
    with contextlib.suppress(OSError):
        (small_disk / "fill").write_bytes(bytes(8 << 20))
    queue = make_queue(small_disk)
    queue.start()
    assert wait_for_pong(queue, 10)
    with client(small_disk) as connection:
        connection.set("key", "value")
        assert connection.config_get("appendonly")["appendonly"] == "no"
        (small_disk / "fill").unlink()
        queue.set_persistence(wanted=True)
        eventually(lambda: list((queue.folder / "appendonlydir").glob("*.base.rdb")), 10, "its log")
        connection.set("key", "another")
    queue.stop()


def test_files_that_it_cannot_read_are_set_aside(
    tmp_path: Path, make_queue: Callable[[Path], EmbeddedQueue]
) -> None:
    queue = started(make_queue(tmp_path))
    with client(tmp_path) as connection:
        connection.set("key", "value")
    queue.stop()
    for broken in range(2):
        for path in (queue.folder / "appendonlydir").glob("*.incr.aof"):
            path.write_bytes(b"\0" * 4096)
        queue.start()
        assert not wait_for_pong(queue, 10), "what a power cut leaves is not read"
        queue.set_files_aside()
        started(queue)
        with client(tmp_path) as connection:
            assert connection.get("key") is None
            connection.set("key", str(broken))
        queue.stop()
    assert len(list(queue.folder.glob("unreadable*"))) == 1, "only the last one is kept"


def test_a_server_that_ended_is_not_waited_for(
    tmp_path: Path, make_queue: Callable[[Path], EmbeddedQueue]
) -> None:
    queue = started(make_queue(tmp_path))
    assert queue.process is not None
    queue.process.kill()
    assert not wait_for_pong(queue, 30)


def test_to_stop_what_was_never_started_is_no_error(tmp_path: Path) -> None:
    EmbeddedQueue(tmp_path).stop()
    EmbeddedQueue(tmp_path).kill()
