"""The file store: link or copy, never over a file, nothing outside, everything durable before it counts."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.errors import StoreAwayError, StoreError
from ingest.workers.store import staging
from ingest.workers.store.filesystem import FileStore, SourceFile
from tests.support.instances import Made

KEY = "1.2.3/1.2.3.1/1.2.3.4.dcm"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileStore]:
    opened = FileStore(tmp_path / "store")
    opened.prepare()
    yield opened
    opened.close()


@pytest.fixture
def elsewhere(second_file_system: Path) -> Path:
    return second_file_system


@contextlib.contextmanager
def source(path: Path, content: bytes) -> Iterator[SourceFile]:
    path.write_bytes(content)
    fd = os.open(path, os.O_RDONLY)
    try:
        yield SourceFile.of(str(path), fd, synced=False)
    finally:
        os.close(fd)


def leftovers(store: FileStore) -> list[Path]:
    return list((store.root / ".incoming").glob("*/*"))


def test_file_on_the_same_file_system_is_linked_and_not_copied(store: FileStore, tmp_path: Path) -> None:
    with source(tmp_path / "a", b"content") as a, store.open_batch() as batch:
        assert store.put(batch, a, KEY)
        store.sync(batch)
    assert (store.root / KEY).stat().st_ino == a.inode
    assert store.read_size(KEY) == 7


def test_file_of_another_file_system_is_copied(store: FileStore, elsewhere: Path) -> None:
    content = os.urandom(3_000_000)
    with source(elsewhere / "a", content) as a, store.open_batch() as batch:
        assert store.put(batch, a, KEY)
        store.sync(batch)
    assert (store.root / KEY).read_bytes() == content
    assert leftovers(store) == []


def test_large_copy_goes_in_bounded_steps_and_reports_each(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "COPY_CHUNK", 1000)
    monkeypatch.setattr(staging, "SYNC_EVERY", 3000)
    steps: list[int] = []
    store = FileStore(tmp_path / "store", progress=lambda: steps.append(1))
    store.prepare()
    with source(elsewhere / "a", b"x" * 10_500) as a, store.open_batch() as batch:
        store.put(batch, a, KEY)
    store.close()
    assert len(steps) == 11
    assert store.read_size(KEY) == 10_500


@pytest.mark.parametrize("link", [True, False])
def test_key_that_is_taken_is_never_overwritten(
    store: FileStore, tmp_path: Path, elsewhere: Path, link: bool
) -> None:
    with source(tmp_path / "a", b"first") as a, store.open_batch() as batch:
        store.put(batch, a, KEY)
    folder = tmp_path if link else elsewhere
    with source(folder / "b", b"second") as b, store.open_batch() as batch:
        assert not store.put(batch, b, KEY)
    assert (store.root / KEY).read_bytes() == b"first"
    assert leftovers(store) == []


@pytest.mark.parametrize("link", [True, False])
def test_replacing_is_one_step_for_readers(
    store: FileStore, tmp_path: Path, elsewhere: Path, link: bool
) -> None:
    with source(tmp_path / "a", b"first") as a, store.open_batch() as batch:
        store.put(batch, a, KEY)
    reader = store.open_file(KEY)
    folder = tmp_path if link else elsewhere
    with source(folder / "b", b"second") as b, store.open_batch() as batch:
        store.acquire_removal_lock(batch)
        store.replace(batch, b, KEY)
        store.sync(batch)
    assert (store.root / KEY).read_bytes() == b"second"
    assert os.read(reader, 99) == b"first"
    os.close(reader)
    assert leftovers(store) == []


def test_replacing_a_file_by_itself_leaves_no_second_name(store: FileStore, tmp_path: Path) -> None:
    with source(tmp_path / "a", b"first") as a, store.open_batch() as batch:
        store.put(batch, a, KEY)
        store.replace(batch, a, KEY)
    assert leftovers(store) == []
    assert (store.root / KEY).read_bytes() == b"first"


def test_only_one_worker_replaces_at_a_time(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.workers.store.filesystem.LOCK_SECONDS", 0.05)
    with store.open_batch() as one, store.open_batch() as other:
        store.acquire_removal_lock(one)
        store.acquire_removal_lock(one)
        with pytest.raises(StoreAwayError, match="another worker"):
            store.acquire_removal_lock(other)
    with store.open_batch() as after:
        store.acquire_removal_lock(after)


def test_digest_is_of_the_data_set_and_not_of_the_file_meta(store: FileStore, tmp_path: Path) -> None:
    made = (Made(calling="ONE"), Made(calling="ANOTHER"))
    for number, one in enumerate(made):
        with source(tmp_path / f"{number}", one.file) as file, store.open_batch() as batch:
            store.put(batch, file, f"{number}.dcm")
    assert store.compute_digest("0.dcm") == store.compute_digest("1.dcm")
    assert store.read_size("0.dcm") != store.read_size("1.dcm")


@pytest.mark.parametrize(
    "key", ["../x", "/etc/x", "a/../../x", "", "a//b", "a/./b", ".incoming/0/1", "a\0b"], ids=ascii
)
def test_key_that_leads_out_is_refused(store: FileStore, tmp_path: Path, key: str) -> None:
    with source(tmp_path / "a", b"content") as a, store.open_batch() as batch:
        for ask in (store.put, store.replace):
            with pytest.raises(StoreError):
                ask(batch, a, key)
    with pytest.raises(StoreError):
        store.open_file(key)


def test_symbolic_links_in_the_store_are_not_followed(store: FileStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (store.root / "1.2.3").symlink_to(outside)
    (store.root / "file").symlink_to(outside / "victim")
    with source(tmp_path / "a", b"content") as a, store.open_batch() as batch:
        with pytest.raises(StoreError) as raised:
            store.put(batch, a, KEY)
        assert not isinstance(raised.value, StoreAwayError)
        assert not store.put(batch, a, "file")
    with pytest.raises(StoreError):
        store.open_file("file")
    assert list(outside.iterdir()) == []


def test_name_that_is_too_long_blames_the_name_and_not_the_disk(store: FileStore, tmp_path: Path) -> None:
    with (
        source(tmp_path / "a", b"content") as a,
        store.open_batch() as batch,
        pytest.raises(StoreError) as raised,
    ):
        store.put(batch, a, "x" * 300)
    assert not isinstance(raised.value, StoreAwayError)


def test_full_disk_is_away_and_leaves_nothing(
    store: FileStore, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "sendfile", full)
    no_space = pytest.raises(StoreAwayError, match="No space")
    with source(elsewhere / "a", b"content") as a, store.open_batch() as batch, no_space:
        store.put(batch, a, KEY)
    assert not (store.root / KEY).exists()
    assert leftovers(store) == []


def test_store_that_is_not_mounted_is_not_made_anew(store: FileStore) -> None:
    shutil.rmtree(store.root)
    with pytest.raises(StoreAwayError), store.open_batch():
        pass
    assert not store.root.exists()


def test_source_that_another_worker_finished_meanwhile_is_seen_as_taken(
    store: FileStore, tmp_path: Path
) -> None:
    with source(tmp_path / "a", b"content") as a, store.open_batch() as batch:
        store.put(batch, a, KEY)
        (tmp_path / "a").unlink()
        assert not store.put(batch, a, KEY)


def synced_folders(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Folders below the store that are synced from now on, in order; "." is its root."""
    synced: list[str] = []
    real = os.fsync

    def spy(fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        if os.path.isdir(path):
            synced.append(os.path.relpath(path, store.root))
        real(fd)

    monkeypatch.setattr(os, "fsync", spy)
    return synced


def test_every_new_name_up_to_the_root_is_synced_once_a_batch(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = synced_folders(store, monkeypatch)
    with source(tmp_path / "a", b"content") as a:
        with store.open_batch() as batch:
            for number in range(5):
                store.put(batch, a, f"1/2/{number}.dcm")
            assert synced == []
            store.sync(batch)
        assert sorted(synced) == [".", "1", "1/2"]
        synced.clear()
        with store.open_batch() as batch:
            store.put(batch, a, "1/2/9.dcm")
            store.put(batch, a, "1/3/9.dcm")
            store.sync(batch)
    assert sorted(synced) == ["1", "1/2", "1/3"]


def test_folder_that_a_dead_worker_made_is_synced_all_the_same(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (store.root / "1/2").mkdir(parents=True)
    with source(tmp_path / "a", b"content") as a:
        with store.open_batch() as batch:
            store.put(batch, a, "1/2/3.dcm")
        synced = synced_folders(store, monkeypatch)
        with store.open_batch() as batch:
            assert not store.put(batch, a, "1/2/3.dcm")
            store.sync(batch)
    assert sorted(synced) == [".", "1", "1/2"]


def test_page_cache_durability_waits_for_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    store = FileStore(tmp_path / "store", durable=False)
    store.prepare()
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda _: pytest.fail("synced"))
    for number, folder in enumerate((tmp_path, elsewhere)):
        with source(folder / "a", b"content") as a, store.open_batch() as batch:
            store.put(batch, a, f"{number}.dcm")
            store.sync(batch)
    store.close()


def test_what_a_dead_worker_was_copying_is_cleared_and_a_living_ones_is_not(tmp_path: Path) -> None:
    root = tmp_path / "store"
    dead = os.fork()
    if dead == 0:
        try:
            store = FileStore(root)
            store.prepare()
            os.close(store._staging.create_file("left", os.O_RDWR))
        finally:
            os._exit(0)
    os.waitpid(dead, 0)
    assert len(list((root / ".incoming").glob("*/left"))) == 1
    living = FileStore(root)
    living.prepare()
    os.close(living._staging.create_file("in use", os.O_RDWR))
    third = FileStore(root)
    third.prepare()
    assert [path.name for path in leftovers(third)] == ["in use"]
    assert len(list((root / ".incoming").glob("*/"))) == 2
    living.close()
    third.close()
    assert [path.name for path in (root / ".incoming").iterdir()] == ["id"]


def test_reader_needs_no_place_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"content")
    reader = FileStore(tmp_path)
    assert reader.read_size("a.dcm") == 7
    with pytest.raises(StoreAwayError, match="mount it"):
        reader.open_file("b.dcm")
    assert not (tmp_path / ".incoming").exists()
    (tmp_path / ".incoming").mkdir()
    with pytest.raises(FileNotFoundError):
        reader.open_file("b.dcm")
