"""Group commit on disks that fail: what failed is gone and said to be, and takes nothing else along."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commits import Bench, bench, descriptors, unsynced


def test_a_file_that_cannot_be_synced_is_removed_and_said_while_the_others_pass(durable: Bench) -> None:
    entries = [durable.begin() for _ in range(5)]
    for entry in (entries[1], entries[2]):
        unsynced(entry)
    names = [durable.commit(entry) for entry in entries]
    durable.start(1)
    durable.wait(5)
    failed = [durable.answers[name] for name in (names[1], names[2])]
    assert [error.errno if error else 0 for error in failed] == [errno.EINVAL] * 2
    assert [durable.answers[names[at]] for at in (0, 3, 4)] == [None] * 3
    assert durable.ready() == {f"{names[at]}.dcm" for at in (0, 3, 4)}
    assert durable.partial() == set()


def test_a_file_that_cannot_have_its_name_is_removed_and_said(either: Bench) -> None:
    bad, good = either.begin(), either.begin()
    (either.folder / "ready" / bad.ready_name).mkdir()
    names = [either.commit(bad), either.commit(good)]
    either.wait(2)
    assert isinstance(either.answers[names[0]], IsADirectoryError)
    assert either.answers[names[1]] is None
    assert either.partial() == set()
    assert (either.folder / "ready" / good.ready_name).is_file()


def test_a_file_that_somebody_removed_is_said(either: Bench) -> None:
    entry = either.begin()
    (either.folder / "partial" / entry.name).unlink()
    name = either.commit(entry)
    either.wait(1)
    assert isinstance(either.answers[name], FileNotFoundError)
    assert either.ready() == set()


def test_when_the_folder_cannot_be_synced_none_is_promised_and_none_is_lost(tmp_path: Path) -> None:
    # Names can be put into a folder that was opened with O_PATH, but it cannot be synced.
    with bench(tmp_path, durable=True, ready_flags=os.O_PATH) as made:
        names = [made.commit(made.begin()) for _ in range(3)]
        made.start(1)
        made.wait(3)
    assert [error.errno if error else 0 for error in made.answers.values()] == [errno.EBADF] * 3
    assert made.ready() == {f"{name}.dcm" for name in names}  # whole; the sweep hands them off


def test_the_first_fault_of_an_entry_is_the_one_that_is_said(tmp_path: Path) -> None:
    with bench(tmp_path, durable=True, ready_flags=os.O_PATH) as made:
        bad, good = made.begin(), made.begin()
        unsynced(bad)
        names = [made.commit(bad), made.commit(good)]
        made.start(1)
        made.wait(2)
    errors = [made.answers[name] for name in names]
    assert [error.errno if error else 0 for error in errors] == [errno.EINVAL, errno.EBADF]


def test_without_a_name_the_folder_is_not_asked(tmp_path: Path) -> None:
    with bench(tmp_path, durable=True, ready_flags=os.O_PATH) as made:
        entry = made.begin()
        (made.folder / "ready" / entry.ready_name).mkdir()
        name = made.commit(entry)
        made.start(1)
        made.wait(1)
    assert isinstance(made.answers[name], IsADirectoryError)


def fill(fd: int) -> None:
    while True:
        os.write(fd, bytes(1 << 16))


def test_a_disk_without_room_or_that_cannot_be_written_is_said(small_disk: Path) -> None:
    with bench(small_disk, durable=True) as made:
        made.start()
        entry = made.begin()
        with pytest.raises(OSError, match="No space"):
            fill(entry.fd)
        made.committer.discard(entry)
        os.close(entry.fd)
        kept = made.begin()
        name = made.commit(kept)
        made.wait(1)
        assert made.answers == {name: None}
        caught = made.begin()
        fd = caught.fd
        os.close(os.dup2(os.open("/dev/null", os.O_RDONLY), fd))  # so that it does not keep the mount busy
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        with pytest.raises(OSError, match="Read-only"):
            made.begin()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with little room; root alone can make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)], capture_output=True, text=True
    )
    if made.returncode:
        reason = f"no file system could be mounted: {made.stderr.strip()}"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_descriptors_are_closed_whatever_happens(either: Bench) -> None:
    either.commit(either.begin())
    either.wait(1)
    before = descriptors()
    for _ in range(10):
        entries = [either.begin() for _ in range(4)]
        (either.folder / "ready" / entries[1].ready_name).mkdir()
        unsynced(entries[2])
        (either.folder / "partial" / entries[3].name).unlink()
        for entry in entries:
            either.commit(entry)
    either.wait(41)
    assert descriptors() == before
