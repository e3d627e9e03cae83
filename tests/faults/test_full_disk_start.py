"""A node on a disk that is full or failing starts, refuses what comes, and frees the disk by forwarding."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ingest.acceptor.scoreboard import Scoreboard
from ingest.alarms import standing_alarms
from ingest.errors import BootError
from ingest.log import LogFile
from ingest.supervisor.disk_reserve import DiskReserve
from tests.faults.caller import Caller, new_uid, request
from tests.support.instances import CT, EXPLICIT, Made
from tests.support.nodes import Node, destination, eventually
from tests.support.peers import PynetdicomRemote
from tests.support.ports import free_port
from tests.support.preloads import other_file_system

# PS3.8 Table 9-21: rejected-transient; service-provider (presentation); local limit exceeded.
REFUSED = bytes.fromhex("03 00 00000004 00 02 03 02")
A_ASSOCIATE_AC = b"\x02"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system with a journal; root alone can make one."""
    folder, image = tmp_path / "disk", tmp_path / "image"
    folder.mkdir()
    image.touch()
    os.truncate(image, 100 << 20)
    made = subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], capture_output=True, text=True)
    if not made.returncode:
        made = subprocess.run(
            ["mount", "-o", "loop", str(image), str(folder)], capture_output=True, text=True
        )
    if made.returncode:
        reason = f"no file system could be mounted: {made.stderr.strip()}"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Take the last byte of a disk."""
    path = disk / "fill"
    with path.open("ab", buffering=0) as file:
        for size in (1 << 20, 4096, 512, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return path


def answer(node: Node) -> bytes:
    """What an association request is answered with."""
    with Caller.plain(node) as caller:
        return caller.ask(request())


def refused(node: Node) -> bool:
    """Whether every listener rejects associations as transient."""
    return all(answer(node) == REFUSED for _ in range(4))


def accepts(node: Node) -> bool:
    """Whether every listener accepts associations."""
    return all(answer(node)[:1] == A_ASSOCIATE_AC for _ in range(4))


def store(node: Node, count: int) -> list[str]:
    made = [Made(sop=new_uid()) for _ in range(count)]
    with Caller.plain(node) as caller:
        caller.associate()
        assert [caller.store(one).status for one in made] == [0] * count
        caller.release()
    return [one.sop for one in made]


def alarms(node: Node) -> list[str]:
    return [alarm.name for alarm in standing_alarms(node.data / "run")]


@pytest.fixture
def small_node(disk: Path, make_node: Callable[..., Node]) -> tuple[Node, int]:
    """A running node that has all on the small disk and 20 instances for a destination; and its port."""
    port, node = free_port(), make_node()
    node.data_folder = disk / "var"
    node.configure(
        node=f'[node]\nae_title = "INGEST"\ndata_dir = "{node.data_folder}"\ndrain_seconds = 5',
        destinations=destination("pacs", port, tls=False, retry_first_seconds=0.2, retry_max_seconds=1),
    )
    node.start()
    store(node, 20)
    eventually(lambda: len(node.stored()) == 20, 20, "all is stored")
    return node, port


@pytest.mark.parametrize("when", ["at a start", "while it runs"])
def test_full_disk_refuses_what_comes_and_forwards_what_is_there(
    small_node: tuple[Node, int], disk: Path, when: str
) -> None:
    node, port = small_node
    if when == "at a start":
        node.kill()
    filled = fill(disk)
    if when == "at a start":
        node.start()
    eventually(lambda: alarms(node) == ["disk_full"], 10, "the alarm")
    eventually(lambda: refused(node), 10, "it refuses")
    with PynetdicomRemote([(CT, [EXPLICIT])], port=port) as remote:
        eventually(lambda: len({one.sop_instance for one in remote.stored}) == 20, 30, "all is forwarded")
        eventually(lambda: node.deliveries() == {"delivered": 20}, 10, "and known to be")
    assert refused(node)
    filled.unlink()
    eventually(lambda: accepts(node), 20, "there is room")
    store(node, 1)
    assert alarms(node) == []
    assert (node.data / "run/reserve").exists()
    assert node.stop() == 0


def test_full_disk_without_a_reserve_keeps_no_node_from_starting(
    small_node: tuple[Node, int], disk: Path
) -> None:
    node, _ = small_node
    node.kill()
    (node.data / "run/reserve").unlink()  # as after an upgrade
    filled = fill(disk)
    node.start()
    eventually(lambda: refused(node), 10, "it refuses")
    filled.unlink()
    eventually(lambda: accepts(node), 20, "there is room")
    store(node, 1)
    assert node.stop() == 0


def test_node_starts_on_a_disk_that_fails_to_sync_and_takes_images_when_it_does_again(
    make_node: Callable[..., Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make_node()
    failing = tmp_path / "failing"
    failing.touch()
    monkeypatch.setenv("NO_DISK_WHILE", str(failing))
    for name, value in other_file_system(tmp_path, no_disk=node.data / "spool").items():
        monkeypatch.setenv(name, value)
    node.start()
    assert refused(node)
    assert alarms(node) == ["spool_unusable"]
    failing.unlink()
    eventually(lambda: accepts(node), 20, "the disk works again")
    [uid] = store(node, 1)
    eventually(lambda: uid in node.stored(), 20, "it is stored")
    assert alarms(node) == []
    assert node.stop() == 0


def test_spool_that_is_not_mounted_is_waited_for_and_not_made_anew(
    make_node: Callable[..., Node], second_file_system: Path
) -> None:
    node, spool = make_node(), second_file_system / "spool"
    node.configure(receive=f'[receive]\nprocesses = 1\nmin_free_bytes = 0\nspool_dir = "{spool}"')
    node.start()
    [uid] = store(node, 1)
    eventually(lambda: uid in node.stored(), 20, "it is stored")
    assert node.stop() == 0
    spool.rename(spool.with_name("away"))
    spool.mkdir()
    node.start()
    assert refused(node)
    assert alarms(node) == ["spool_unusable"]
    assert list(spool.iterdir()) == []
    spool.rmdir()
    spool.with_name("away").rename(spool)
    eventually(lambda: accepts(node), 20, "it is mounted")
    [uid] = store(node, 1)
    eventually(lambda: uid in node.stored(), 20, "it is stored")
    assert node.stop() == 0


def test_data_folder_that_was_never_used_on_a_full_disk_is_no_fault_of_the_configuration(
    disk: Path, make_node: Callable[..., Node]
) -> None:
    node = make_node()
    node.configure(node=f'[node]\nae_title = "INGEST"\ndata_dir = "{disk / "deep" / "var"}"')
    fill(disk)
    process = node.launch("serve")
    assert process.wait(30) == 1
    assert process.stdout
    process.stdout.close()
    assert "make room" in node.log


# --- its parts


def test_reserve_is_given_up_when_the_disk_is_full_and_made_again_with_room_twice_over(
    tmp_path: Path,
) -> None:
    free, path = [100 << 20], tmp_path / "reserve"

    def statvfs(_: object) -> os.statvfs_result:
        return os.statvfs_result((4096, 4096, 1 << 20, 0, free[0] // 4096, 0, 0, 0, 0, 255))

    reserve = DiskReserve(tmp_path, path, statvfs=statvfs)  # type: ignore[arg-type]
    told = []
    for now in (100, 20, 5, 3, 3, 19, 31, 33, 20):
        free[0] = now << 20
        reserve.update(at_once=True)
        told.append((path.exists(), reserve.is_given_up))
    kept, given_up = (True, False), (False, True)
    assert told == [kept, kept, kept, given_up, given_up, given_up, given_up, kept, kept]


def test_reserve_that_cannot_be_made_says_why(small_disk: Path) -> None:
    reserve = DiskReserve(small_disk, small_disk / "missing" / "reserve")
    reserve.update()
    assert "No such file" in reserve.reason


def test_scoreboard_needs_no_disk(small_disk: Path) -> None:
    fill(small_disk)
    board = Scoreboard.create(small_disk / "scoreboard")
    assert not board.is_receiving_paused
    child = os.fork()
    if child == 0:
        board.set_receiving_paused(paused=True)
        os._exit(0)
    os.waitpid(child, 0)
    assert board.is_receiving_paused


def test_log_file_on_a_full_disk_is_replaced_by_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    sink = LogFile()
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        sink.open(tmp_path / "log")
    assert sink.is_terminal == os.isatty(2)
    with pytest.raises(BootError, match=r"log\.file"):
        sink.open(tmp_path)
