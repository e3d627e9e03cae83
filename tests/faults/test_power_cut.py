"""A power cut, as near as software gets: the file system is shut down under the node without a flush."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.watch import receive
from tests.support.nodes import Node, eventually
from tests.support.peers import require_program
from tests.support.senders import Modality, kept_whole, nothing_half_there

MEBIBYTES = 512


class Disk:
    """An ext4 file system in a file, on a loop device."""

    def __init__(self, folder: Path) -> None:
        self.image = folder / "disk.img"
        self.mount_point = folder / "disk"
        self.mount_point.mkdir()
        with self.image.open("wb") as file:
            file.truncate(MEBIBYTES << 20)
        subprocess.run(["mkfs.ext4", "-q", str(self.image)], check=True)

    def mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", str(self.image), str(self.mount_point)], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", str(self.mount_point)], check=True)

    def replace_image(self) -> None:
        """Go on with a copy of the device.

        A process in another mount name space may hold the file system that was shut down, and mounting the
        same file again would give that one.
        """
        copy = self.image.with_suffix(".copy")
        subprocess.run(["cp", "--sparse=always", str(self.image), str(copy)], check=True)
        self.image = copy

    def cut(self) -> None:
        """Nothing that is not on the device now will ever be."""
        subprocess.run(["xfs_io", "-x", "-c", "shutdown", str(self.mount_point)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    for program in ("xfs_io", "mkfs.ext4", "mount"):
        require_program(program)
    if os.geteuid() != 0:
        pytest.skip("mounting a loop device needs root")
    made = Disk(tmp_path)
    made.mount()
    try:
        yield made
    finally:
        # Lazily: after a failure, processes of the node may be on their way out still.
        subprocess.run(["umount", "-l", str(made.mount_point)], check=False, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("small", [0, 65536])
@pytest.mark.parametrize("instances", [20, 400])
def test_what_was_acknowledged_before_a_power_cut_is_whole_after_it(
    instances: int, small: int, disk: Disk, make_node: Callable[..., Node], tmp_path: Path
) -> None:
    node = make_node()
    node.configure(node=f'[node]\nae_title = "INGEST"\ndata_dir = "{disk.mount_point / "var"}"')
    node.configure(receive=receive(segment_max_bytes=small))
    node.data_folder = disk.mount_point / "var"
    node.start()
    with Modality(node, tmp_path / "sender", size=30_000) as modality:
        modality.until(instances)
        disk.cut()
        node.kill()
        modality.stop()
    promised = dict(modality.acknowledged)
    assert len(promised) >= instances
    eventually(lambda: _unmounted(disk), 20, "no process uses the disk any more")
    disk.replace_image()
    disk.mount()
    node.start()
    eventually(lambda: kept_whole(node, promised), 30, "all promised is in store and ledger")
    eventually(lambda: node.spooled() == [], 20, "the spool is empty")
    nothing_half_there(node, modality)
    assert node.stop() == 0


@pytest.mark.slow
def test_after_a_power_cut_with_page_cache_durability_nothing_is_stored_that_was_not_sent(
    disk: Disk, make_node: Callable[..., Node], tmp_path: Path
) -> None:
    node = make_node()
    node.configure(node=f'[node]\nae_title = "INGEST"\ndata_dir = "{disk.mount_point / "var"}"')
    node.configure(receive=receive(segment_max_bytes=65536, durability="page-cache"))
    node.data_folder = disk.mount_point / "var"
    node.start()
    with Modality(node, tmp_path / "sender", size=30_000) as modality:
        modality.until(600)
        disk.cut()
        node.kill()
        modality.stop()
    promised = dict(modality.acknowledged)
    eventually(lambda: _unmounted(disk), 20, "no process uses the disk any more")
    disk.replace_image()
    disk.mount()
    node.start()
    eventually(lambda: node.spooled() == [], 20, "the spool is empty")
    stored = node.stored()
    # What is lost is what that durability says; what is there is whole, and nobody else's.
    assert kept_whole(node, {uid: data for uid, data in promised.items() if uid in stored})
    nothing_half_there(node, modality)
    assert node.stop() == 0


def _unmounted(disk: Disk) -> bool:
    try:
        disk.unmount()
    except subprocess.CalledProcessError:
        return False
    return True
