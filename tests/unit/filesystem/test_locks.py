"""Locks that hold between descriptors and processes, and names that no other process has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ingest.errors import BootError
from ingest.filesystem.locks import Owner, read_kernel_token, try_lock
from ingest.workers.worker_slot import claim_worker_slot
from tests.support.nodes import eventually


def opened(path: Path) -> int:
    return os.open(path, os.O_CREAT | os.O_RDWR)


def test_lock_excludes_another_descriptor_and_ends_with_its_own(tmp_path: Path) -> None:
    one, other, reader = (opened(tmp_path / "lock") for _ in range(3))
    assert try_lock(one)
    assert not try_lock(other)
    os.close(reader)  # of the same file: it would end a lock of F_SETLK
    assert not try_lock(other)
    os.close(one)
    assert try_lock(other)
    os.close(other)


def test_shared_locks_exclude_only_the_exclusive_one(tmp_path: Path) -> None:
    one, other, writer = (opened(tmp_path / "lock") for _ in range(3))
    assert try_lock(one, shared=True)
    assert try_lock(other, shared=True)
    assert not try_lock(writer)
    os.close(one)
    os.close(other)
    assert try_lock(writer)
    os.close(writer)


def test_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    program = "import os, sys, time; from ingest.filesystem.locks import try_lock\n" + (
        "try_lock(os.open(sys.argv[1], os.O_CREAT | os.O_RDWR)); print('locked', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "lock")], stdout=subprocess.PIPE)
    assert holder.stdout
    assert holder.stdout.readline() == b"locked\n"
    fd = opened(tmp_path / "lock")
    assert not try_lock(fd)
    holder.kill()
    holder.wait()
    holder.stdout.close()
    eventually(lambda: try_lock(fd), 5, "the lock is free")
    os.close(fd)


def test_owner_is_told_from_every_other_and_found_again_in_its_name() -> None:
    one, other = Owner.current(), Owner.current()
    assert str(one) != str(other)
    assert Owner.parse(str(one)) == one
    assert one.is_visible
    assert not one.is_dead
    for text in ("", "0", "lock", f"{one}.lock", str(one).replace("-", "_")):
        assert Owner.parse(text) is None


def test_owner_that_has_ended_is_dead_and_one_that_began_at_another_time_too() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    me = Owner.current()
    ended = Owner(me.kernel, me.namespace, child, 0, me.chance)
    eventually(lambda: ended.is_dead, 5, "a zombie is dead")
    os.waitpid(child, 0)
    assert ended.is_dead
    assert Owner(me.kernel, me.namespace, me.pid, me.started + 1, me.chance).is_dead


def test_owner_on_another_host_or_in_another_container_is_never_called_dead() -> None:
    me = Owner.current()
    assert not Owner("0" * 12, me.namespace, 2**22 + 1, 0, me.chance).is_dead
    assert not Owner(me.kernel, me.namespace + 1, 2**22 + 1, 0, me.chance).is_dead


# --- places of workers


def test_place_has_the_same_name_again_and_another_beside_a_living_one(tmp_path: Path) -> None:
    with claim_worker_slot(tmp_path, "persist") as first, claim_worker_slot(tmp_path, "persist") as second:
        assert first != second
    with claim_worker_slot(tmp_path, "persist") as again:
        assert again == first


def test_hosts_with_one_name_have_places_with_other_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "localhost")
    with (
        claim_worker_slot(tmp_path / "a", "persist") as here,
        claim_worker_slot(tmp_path / "b", "persist") as elsewhere,
    ):
        assert here != elsewhere
    read_kernel_token.cache_clear()
    monkeypatch.setattr("ingest.workers.worker_slot.read_kernel_token", lambda: "0" * 12)
    with claim_worker_slot(tmp_path / "a", "persist") as on_another_host:
        assert on_another_host != here


def test_place_on_a_full_disk_is_one_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "open", full)
    with claim_worker_slot(tmp_path, "persist") as first, claim_worker_slot(tmp_path, "persist") as second:
        assert first != second


def test_place_in_a_folder_that_is_none_is_a_fault_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(BootError, match="data_dir"), claim_worker_slot(tmp_path / "run", "persist"):
        pass
