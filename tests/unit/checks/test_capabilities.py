"""What file systems lack is found before anything is promised, with the remedy; notes where it is as safe."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from ingest.checks import file_systems
from ingest.cli import main
from ingest.filesystem.calls import find_mount
from tests.faults.caller import Caller, new_uid
from tests.support.instances import Made
from tests.support.nodes import Node, eventually
from tests.support.peers import require_program
from tests.support.pki import Material
from tests.support.preloads import other_file_system
from tests.support.spools import config

ROOT = Path(__file__).parents[3]


def found(tmp_path: Path, **faults: Path) -> list[tuple[str, bool, str]]:
    """Key, whether it is a note, and cause with remedy, of what is found below `tmp_path`/var."""
    program = (
        "import sys; from pathlib import Path\n"
        "from tests.support.spools import config; from ingest.checks import file_systems\n"
        "for fault in file_systems.check_file_systems(config(Path(sys.argv[1]))):\n"
        "    print(fault.key, fault.is_note, fault.cause, fault.remedy, sep='\\t')"
    )
    data_dir = tmp_path / "var"
    data_dir.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", program, str(data_dir)],
        env=other_file_system(tmp_path, **faults),
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    lines = [line.split("\t", 2) for line in done.stdout.splitlines()]
    assert list(data_dir.iterdir()) == [], "nothing is left"
    return [(key, note == "True", text) for key, note, text in lines]


@pytest.fixture
def var(tmp_path: Path) -> Path:
    return tmp_path / "var"


def test_a_file_system_with_everything_has_no_faults(tmp_path: Path) -> None:
    assert list(file_systems.check_file_systems(config(tmp_path))) == []


def test_no_hard_links_is_a_note_that_names_the_file_system(tmp_path: Path, var: Path) -> None:
    [(key, note, text)] = found(tmp_path, no_link=var)
    assert (key, note) == ("store.root", True)
    assert "ENOTSUP" in text
    assert find_mount(tmp_path).kind in text
    assert "copied" in text


def test_neither_links_nor_exclusive_renames_is_a_fault_for_whoever_needs_them(
    tmp_path: Path, var: Path
) -> None:
    told = found(tmp_path, no_link=var, no_rename=var)
    assert [(key, note) for key, note, _ in told] == [("receive.spool_dir", False), ("store.root", True)]
    assert "RENAME_NOREPLACE" in told[0][2]


def test_no_fsync_of_folders_is_a_note_as_long_as_there_is_syncfs(tmp_path: Path, var: Path) -> None:
    [(_, note, text)] = found(tmp_path, no_sync=var)
    assert note
    assert "EINVAL" in text
    [(_, note, text)] = found(tmp_path, no_sync=var, no_syncfs=var)
    assert not note
    assert "page-cache" in text


def test_locks_that_exclude_nobody_are_a_fault(tmp_path: Path, var: Path) -> None:
    assert {
        (note, "do not exclude other processes" in text) for _, note, text in found(tmp_path, local=var)
    } == {(False, True)}


def test_no_unix_sockets_is_a_note() -> None:
    # pytest's folders are too long for a socket.
    with tempfile.TemporaryDirectory() as folder:
        [(key, note, text)] = found(Path(folder), no_socket=Path(folder) / "var")
    assert (key, note) == ("node.data_dir", True)
    assert "no Unix sockets (Operation not permitted (EPERM))" in text


def test_a_full_disk_is_no_lack_of_a_file_system(small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space"):
        (small_disk / "fill").write_bytes(bytes(8 << 20))
    assert [fault for fault in file_systems.check_file_systems(config(small_disk)) if not fault.is_note] == []


def test_a_mount_that_does_not_answer_keeps_no_node_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_systems, "_try_rename", lambda *_: time.sleep(60))
    [fault] = file_systems.check_file_systems_within(config(tmp_path), file_systems.ROLES, 0.2)
    assert fault.is_note
    assert "does not answer" in fault.cause


@pytest.fixture
def exfat(tmp_path: Path) -> Iterator[Path]:
    """A file system without hard links and RENAME_NOREPLACE: exFAT in user space, on a loop device."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("this machine has no FUSE")
    make, mount = (require_program(name) for name in ("mkfs.exfat", "mount.exfat-fuse"))
    image, folder = tmp_path / "image", tmp_path / "exfat"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run([make, str(image)], check=True, capture_output=True)
    attached = subprocess.run(["losetup", "--find", "--show", str(image)], capture_output=True, text=True)
    if attached.returncode:
        pytest.skip(f"this machine has no loop device: {attached.stderr.strip()}")
    device = attached.stdout.strip()
    try:
        made = subprocess.run([mount, device, str(folder)], capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"no FUSE file system could be mounted: {made.stderr.strip()}")
        yield folder
        subprocess.run(["umount", str(folder)], check=True)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_exfat_is_told_with_key_call_and_remedy(exfat: Path) -> None:
    path = exfat.parent / "ingest.toml"
    path.write_text(
        f'[node]\ndata_dir = "{exfat}/var"\n[receive]\nmin_free_bytes = 0\n'
        '[[listeners]]\nhost = "127.0.0.1"\nport = 0\ntls = false\n'
    )
    done = CliRunner().invoke(main, ["check", "-c", str(path), "--json"])
    told = json.loads(done.stdout)
    assert done.exit_code == 1
    items = {(item["key"], item["kind"]): item for item in told["items"]}
    fault = items["receive.spool_dir", "fault"]
    assert f"mounted on {exfat}: it has no hard links" in fault["cause"]
    assert "ext4" in fault["remedy"]
    assert "so each instance is copied" in items["store.root", "note"]["cause"]
    assert any("runtime folder" in item["cause"] for item in told["items"])
    assert [*exfat.iterdir()] == []


# --- nodes


@pytest.fixture
def other_node(tmp_path: Path, material: Material) -> Iterator[Node]:
    """A node in a short folder, for which a test makes the file system lack calls."""
    with tempfile.TemporaryDirectory() as folder:
        node = Node(Path(folder) / "n", material)
        node.configure()
        yield node
        if node.process is not None and node.process.poll() is None:
            node.kill()


@pytest.mark.parametrize("lacks", [["no_link"], ["no_sync"], ["no_socket", "no_chmod"]], ids="-".join)
def test_node_stores_what_it_acknowledges_where_a_fall_back_is_as_safe(
    other_node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacks: list[str]
) -> None:
    for name, value in other_file_system(tmp_path, **dict.fromkeys(lacks, other_node.data)).items():
        monkeypatch.setenv(name, value)
    other_node.data.mkdir(parents=True)
    other_node.start()
    made = Made(sop=new_uid())
    with Caller.plain(other_node) as caller:
        caller.associate()
        assert caller.store(made).status == 0
        caller.release()
    stored = eventually(lambda: other_node.stored().get(made.sop), 20, "it is stored")
    assert stored.read_bytes().endswith(made.data_set)
    eventually(lambda: not other_node.spooled(), 10, "the spool lets go of it")
    notices = other_node.events("notice")
    assert other_node.events("store_away") == []
    assert any("it works as it is" in event["remedy"] or "runtime" in event["cause"] for event in notices)
    assert other_node.stop() == 0


def test_node_does_not_start_where_it_could_never_store(
    other_node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = other_node.data / "store"
    for name, value in other_file_system(tmp_path, no_link=store, no_rename=store).items():
        monkeypatch.setenv(name, value)
    store.mkdir(parents=True)
    process = other_node.launch("serve")
    assert process.wait(30) == 3
    assert process.stdout
    process.stdout.close()
    assert "store.root" in other_node.log
    assert "RENAME_NOREPLACE" in other_node.log
    assert find_mount(store).kind in other_node.log


def test_segments_ask_for_the_locks_that_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    assert list(file_systems.check_file_systems(config(tmp_path))) == []
    [fault] = file_systems.check_file_systems(config(tmp_path, receive={"segment_max_bytes": 65536}))
    assert (fault.key, fault.is_note) == ("receive.spool_dir", False)
    assert "segment_max_bytes = 0" in fault.remedy
