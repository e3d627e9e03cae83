"""The spool: slots that one process holds at a time, and entries that are there whole or not at all."""

import os
import re
import signal
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest.errors import SpoolError
from ingest.spool import slot
from ingest.spool.inventory import clear_dead_slots, list_unowned_slots
from ingest.spool.reference import Reference
from ingest.spool.slot import Slot
from ingest.spool.spool import LARGE_BYTES, Spool, read_spool_id
from tests.support.nodes import eventually
from tests.support.spools import collect_until, keep


def claim(root: Path, *, durable: bool = False) -> Spool:
    return Spool.claim(root, durable=durable)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def own(root: Path) -> Iterator[Spool]:
    """A spool in this process's hands."""
    held = claim(root)
    yield held
    held.close()


def open_files() -> set[str]:
    return {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)}


def _is_open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


# --- its id


def test_id_stays_the_same(root: Path) -> None:
    first = read_spool_id(root, create=True)
    assert first
    assert read_spool_id(root) == read_spool_id(root, create=True) == first
    assert [path.name for path in root.iterdir()] == ["id"]


def test_a_spool_that_nobody_made_has_no_id(root: Path) -> None:
    assert read_spool_id(root) is None
    assert not root.exists()


def test_processes_that_start_together_agree_on_the_id(root: Path) -> None:
    barrier = threading.Barrier(8)
    found: list[str | None] = []

    def start() -> None:
        barrier.wait()
        found.append(read_spool_id(root, create=True))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert [path.name for path in root.iterdir()] == ["id"]


def test_the_id_is_durable_before_it_has_its_name(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, link = os.fsync, os.link

    def note_fsync(fd: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        fsync(fd)

    def note_link(source: str, target: str, **how: Any) -> None:
        done.append("name")
        link(source, target, **how)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "link", note_link)
    read_spool_id(root, create=True)
    assert done == ["file", "name", "folder"]


def test_a_file_in_the_place_of_the_spool_is_one_error_of_ours(root: Path) -> None:
    root.write_text("no folder")
    with pytest.raises(SpoolError, match="cannot be used"):
        read_spool_id(root, create=True)
    with pytest.raises(SpoolError, match="cannot be used"):
        claim(root)


def test_a_file_in_the_place_of_a_slot_is_one_error_of_ours(root: Path) -> None:
    read_spool_id(root, create=True)
    (root / "L0").write_text("no folder")
    with pytest.raises(SpoolError, match="cannot be used"):
        claim(root)


# --- slots


def test_each_process_takes_the_first_free_slot(root: Path) -> None:
    first, second = claim(root), claim(root)
    assert (first.slot.name, second.slot.name) == ("L0", "L1")
    assert first.id == second.id
    first.close()
    third = claim(root)
    assert third.slot.name == "L0"
    third.close()
    second.close()


def test_slot_of_a_living_owner_on_another_host_is_left_alone_though_its_lock_does_not_come_so_far(
    own: Spool, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = root / "L0/partial/begun"
    partial.write_bytes(b"half")
    monkeypatch.setattr("ingest.spool.slot.try_lock", lambda _: True)
    monkeypatch.setattr("ingest.filesystem.locks.read_kernel_token", lambda: "0" * 12)
    other = claim(root)
    assert other.slot.name == "L1"
    assert clear_dead_slots(root) == 0
    assert partial.exists()
    assert list_unowned_slots(root) == ["L0", "L1"]  # what waits there may be handed off twice
    other.close()
    monkeypatch.setattr(slot, "LEASE_SECONDS", -1.0)
    assert clear_dead_slots(root) == 1
    heir = claim(root)
    assert heir.slot.name == "L0"
    heir.close()


def test_owner_of_a_slot_says_again_and_again_that_it_lives(
    own: Spool, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock_file = root / "L0/lock"
    os.utime(lock_file, (0, 0))
    own.find_refusal_reason(0, 0, 0)
    assert lock_file.stat().st_mtime == 0
    monkeypatch.setattr(slot, "RENEW_SECONDS", 0.0)
    own.find_refusal_reason(0, 0, 0)
    assert lock_file.stat().st_mtime > 0


def test_slot_that_was_given_back_is_free_for_every_host_at_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(root).close()
    monkeypatch.setattr("ingest.filesystem.locks.read_kernel_token", lambda: "0" * 12)
    other = claim(root)
    assert other.slot.name == "L0"
    other.close()


def test_two_owners_of_one_slot_never_give_an_entry_the_same_name(root: Path) -> None:
    first = claim(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ingest.spool.slot.try_lock", lambda _: True)
        second = claim(root)
    names = [held.begin().name.partition("-")[2] for held in (first, second) for _ in range(3)]
    assert len(set(names)) == 6
    first.close()
    second.close()


def test_a_held_slot_cannot_be_locked_again_even_by_its_own_process(own: Spool, root: Path) -> None:
    assert Slot.try_lock(root, own.slot.name) is None


def test_a_new_owner_clears_what_was_being_received_and_keeps_what_was_promised(root: Path) -> None:
    first = claim(root)
    promised = keep(first)
    partial = first.begin()
    os.close(partial.fd)
    first.close()
    second = claim(root)
    assert list((root / "L0" / "partial").iterdir()) == []
    assert (root / promised).exists()
    second.close()


def test_the_lock_ends_with_its_process_however_that_ends(root: Path) -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        claim(root)
        os.write(writer, b"held")
        signal.pause()
    try:
        assert os.read(reader, 4) == b"held"
        assert Slot.try_lock(root, "L0") is None
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
        os.close(writer)
    slot = Slot.try_lock(root, "L0")
    assert slot is not None
    slot.release()


def test_new_folders_are_durable_up_to_the_mount_point(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(slot, "sync_folder", synced.append)
    deep = root / "a" / "b"
    claim(deep, durable=True).close()
    assert {deep / "L0", deep, root / "a", root, root.parent} <= set(synced)


def test_a_folder_above_that_may_not_be_read_does_not_stop_the_node(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = slot.sync_folder

    def refuse(path: Path) -> None:
        if path == root.parent:
            raise PermissionError(13, "Permission denied", str(path))
        sync(path)

    monkeypatch.setattr(slot, "sync_folder", refuse)
    claim(root, durable=True).close()


# --- entries


def test_an_entry_is_ready_under_its_final_name_once_committed(own: Spool, root: Path) -> None:
    where = keep(own, b"an instance")
    assert (root / where).read_bytes() == b"an instance"
    assert list((root / "L0" / "partial").iterdir()) == []
    assert Reference("spool", own.id, where).path == where
    assert where.startswith("L0/ready/")
    assert where.endswith(".dcm")


def test_an_entry_is_not_ready_before_it_is_committed(own: Spool, root: Path) -> None:
    entry = own.begin()
    assert list((root / "L0" / "ready").iterdir()) == []
    assert [path.name for path in (root / "L0" / "partial").iterdir()] == [entry.name]
    own.discard(entry)


def test_the_status_of_a_refused_instance_is_in_its_name(own: Spool) -> None:
    assert keep(own, status=0xA900).endswith(".A900.dcm")
    assert keep(own, status=0xC000).endswith(".C000.dcm")
    assert keep(own).count(".") == 1


def test_names_sort_by_arrival_and_never_come_twice(own: Spool) -> None:
    places = [keep(own) for _ in range(300)]
    assert places == sorted(places)
    assert len(set(places)) == len(places)


def test_a_discarded_entry_leaves_neither_file_nor_descriptor(own: Spool, root: Path) -> None:
    before = open_files()
    own.discard(own.begin())
    assert list((root / "L0" / "partial").iterdir()) == []
    assert open_files() == before


def test_a_discarded_entry_whose_file_is_gone_already_is_no_error(own: Spool, root: Path) -> None:
    entry = own.begin()
    (root / "L0" / "partial" / entry.name).unlink()
    own.discard(entry)


@pytest.mark.parametrize("durable", [False, True])
def test_commits_and_discards_leave_no_descriptor(root: Path, *, durable: bool) -> None:
    held = claim(root, durable=durable)
    keep(held)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(40):
        keep(held)
        if number % 4 == 0:
            held.discard(held.begin())
    assert len(os.listdir("/proc/self/fd")) == before
    held.close()


def test_close_gives_back_all_descriptors(root: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    held = claim(root, durable=True)
    keep(held)
    held.close()
    del held  # with the committer, which may be asked to `collect` until then
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_entry_that_cannot_be_made_is_an_oserror(own: Spool, root: Path) -> None:
    (root / "L0" / "partial").rmdir()
    with pytest.raises(OSError, match="No such file"):
        own.begin()


def test_a_large_discarded_entry_is_closed_beside(own: Spool, root: Path) -> None:
    before = open_files()
    entry = own.begin()
    os.truncate(entry.fd, LARGE_BYTES + 1)
    own.discard(entry)
    assert list((root / "L0" / "partial").iterdir()) == []
    eventually(lambda: open_files() == before, 5, "closed")


def test_what_a_commit_came_to_is_told_with_its_place(root: Path) -> None:
    held = claim(root, durable=True)
    bad = held.begin()
    (root / "L0" / "ready" / bad.ready_name).mkdir()
    answers: list[tuple[str, OSError | None]] = []
    held.commit(bad, lambda where, error: answers.append((where, error)))
    collect_until(held.committer, answers, 1)
    held.close()
    ((where, error),) = answers
    assert where == f"L0/ready/{bad.ready_name}"
    assert isinstance(error, IsADirectoryError)


def test_close_finishes_what_is_being_committed_and_leaves_it_to_be_collected(root: Path) -> None:
    held = claim(root, durable=True)
    answers: list[tuple[str, OSError | None]] = []
    for _ in range(100):
        held.commit(held.begin(), lambda where, error: answers.append((where, error)))
    held.close()
    assert len(list((root / "L0" / "ready").iterdir())) == 100
    assert answers == []
    assert held.committer.collect() == []
    assert {error for _, error in answers} == {None}
    assert {root / where for where, _ in answers} == set((root / "L0" / "ready").iterdir())


# --- room


@pytest.mark.parametrize(
    ("min_free", "most", "used", "why"),
    [
        (0, 0, 1 << 60, "^$"),
        (1, 1000, 999, "^$"),
        (1 << 62, 0, 0, r"bytes free, \[receive\] min_free_bytes is"),
        (0, 1000, 1000, r"1000 bytes wait in the spool, \[receive\] spool_max_bytes is 1000"),
    ],
)
def test_a_spool_says_why_it_takes_nothing_more(
    own: Spool, min_free: int, most: int, used: int, why: str
) -> None:
    assert re.search(why, own.find_refusal_reason(min_free, most, used))


def test_a_disk_that_cannot_be_asked_counts_as_full(own: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fstatvfs", fail)
    assert "Input/output error" in own.find_refusal_reason(0, 0, 0)


def test_an_entry_is_readable_by_its_owner_and_not_by_everybody(own: Spool, root: Path) -> None:
    entry = own.begin()
    assert os.fstat(entry.fd).st_mode & 0o007 == 0
    assert (root / "L0").stat().st_mode & 0o007 == 0
    own.discard(entry)
