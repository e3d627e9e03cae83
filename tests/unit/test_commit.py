"""Group commit: durable before it is said, and what failed is gone and said to be."""

import asyncio
import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ingest.spool.commit import GROUP, THREADS, Commit, Committer
from tests.nodes import eventually


@dataclass
class Bench:
    """Two folders, a committer between them, and what it said."""

    folder: Path
    committer: Committer
    answers: dict[str, OSError | None] = field(default_factory=dict)

    def submit(self, name: str, done: Callable[[OSError | None], None] | None = None) -> int:
        path = self.folder / "partial" / name
        fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        os.write(fd, name.encode())
        self.committer.submit(
            Commit(fd, name, f"{name}.dcm", done or (lambda error: self.answers.__setitem__(name, error)))
        )
        return fd

    def wait(self, count: int) -> None:
        eventually(lambda: len(self.answers) >= count, 10, f"{count} answers, {len(self.answers)} came")

    def ready(self) -> set[str]:
        return set(os.listdir(self.folder / "ready"))

    def partial(self) -> set[str]:
        return set(os.listdir(self.folder / "partial"))


@contextlib.contextmanager
def bench(folder: Path, *, durable: bool) -> Iterator[Bench]:
    for name in ("partial", "ready"):
        (folder / name).mkdir()
    partial, ready = (os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC) for name in ("partial", "ready"))
    committer = Committer(partial, ready, durable=durable, post=lambda call: call())
    try:
        yield Bench(folder, committer)
    finally:
        committer.close()
        os.close(partial)
        os.close(ready)


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path, durable=True) as made:
        yield made


@pytest.fixture
def cached(tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path, durable=False) as made:
        yield made


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Every call that makes something durable or gives it its name, with the name of its file."""
    seen: list[tuple[str, str]] = []
    fdatasync, fsync, rename = os.fdatasync, os.fsync, os.rename

    def name(fd: int) -> str:
        return Path(os.readlink(f"/proc/self/fd/{fd}")).name

    def note_fdatasync(fd: int) -> None:
        fdatasync(fd)
        seen.append(("fdatasync", name(fd)))

    def note_fsync(fd: int) -> None:
        fsync(fd)
        seen.append(("fsync", name(fd)))

    def note_rename(source: str, target: str, **folders: int) -> None:
        rename(source, target, **folders)
        seen.append(("rename", source))

    monkeypatch.setattr(os, "fdatasync", note_fdatasync)
    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", note_rename)
    return seen


def failing(function: Callable[..., None], *, when: Callable[..., bool]) -> Callable[..., None]:
    def call(*arguments: object, **more: object) -> None:
        if when(*arguments, **more):
            raise OSError(errno.EIO, "Input/output error")
        function(*arguments, **more)

    return call


def test_bytes_then_name_then_folder_are_durable_before_it_is_said(
    durable: Bench, calls: list[tuple[str, str]]
) -> None:
    durable.submit("a", lambda error: calls.append(("done", str(error))))
    eventually(lambda: len(calls) == 4, 5)
    assert calls == [("fdatasync", "a"), ("rename", "a"), ("fsync", "ready"), ("done", "None")]
    assert durable.ready() == {"a.dcm"}
    assert durable.partial() == set()


def test_while_one_is_synced_the_others_gather_to_groups(
    durable: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, fsync = threading.Event(), os.fsync
    folder_syncs: list[int] = []

    def hold(fd: int) -> None:
        assert release.wait(10)
        folder_syncs.append(fd)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", hold)
    for number in range(THREADS):
        durable.submit(f"first{number}")
    eventually(lambda: len(durable.ready()) == THREADS, 5, "each thread is held in the folder's fsync")
    for number in range(THREADS * GROUP):
        durable.submit(f"then{number}")
    assert durable.answers == {}
    release.set()
    durable.wait(THREADS + THREADS * GROUP)
    assert set(durable.answers.values()) == {None}
    assert len(folder_syncs) < len(durable.answers) / 4


def test_every_submission_is_answered_once_whatever_the_threads_do(durable: Bench) -> None:
    answers: list[str] = []
    submitters = [
        threading.Thread(
            target=lambda start=start: [
                durable.submit(f"{start}-{n}", lambda _, name=f"{start}-{n}": answers.append(name))
                for n in range(50)
            ]
        )
        for start in range(4)
    ]
    for thread in submitters:
        thread.start()
    for thread in submitters:
        thread.join()
    eventually(lambda: len(answers) == 200, 20, "all are answered")
    assert len(set(answers)) == 200
    assert len(durable.ready()) == 200


def test_a_file_that_cannot_be_synced_is_removed_and_said_while_the_others_pass(
    durable: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_bad(fd: int) -> bool:
        return os.readlink(f"/proc/self/fd/{fd}").endswith("/bad")

    monkeypatch.setattr(os, "fdatasync", failing(os.fdatasync, when=is_bad))
    for name in ("a", "bad", "b"):
        durable.submit(name)
    durable.wait(3)
    assert durable.answers["a"] is durable.answers["b"] is None
    assert isinstance(durable.answers["bad"], OSError)
    assert durable.ready() == {"a.dcm", "b.dcm"}
    assert durable.partial() == set()


@pytest.mark.parametrize("kind", ["durable", "cached"])
def test_a_file_that_cannot_have_its_name_is_removed_and_said(
    kind: str, request: pytest.FixtureRequest
) -> None:
    made: Bench = request.getfixturevalue(kind)
    (made.folder / "ready" / "bad.dcm").mkdir()
    made.submit("bad")
    made.wait(1)
    assert isinstance(made.answers["bad"], IsADirectoryError)
    assert made.partial() == set()


def test_when_the_folder_cannot_be_synced_none_is_promised_and_none_is_lost(
    durable: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing(os.fsync, when=lambda fd: stat.S_ISDIR(os.fstat(fd).st_mode)))
    for name in ("a", "b"):
        durable.submit(name)
    durable.wait(2)
    assert all(isinstance(error, OSError) for error in durable.answers.values())
    assert durable.ready() == {"a.dcm", "b.dcm"}  # whole; the sweep hands them off


def test_descriptors_are_closed_whatever_happens(durable: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    durable.submit("warm")
    durable.wait(1)
    before = len(os.listdir("/proc/self/fd"))
    (durable.folder / "ready" / "unnamed.dcm").mkdir()
    monkeypatch.setattr(
        os,
        "fdatasync",
        failing(os.fdatasync, when=lambda fd: os.readlink(f"/proc/self/fd/{fd}").endswith("/unsynced")),
    )
    for name in ("good", "unnamed", "unsynced"):
        durable.submit(name)
    durable.wait(4)
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_answer_that_fails_does_not_take_those_of_its_group_along(
    durable: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, fsync = threading.Event(), os.fsync

    def hold(fd: int) -> None:
        assert release.wait(10)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", hold)
    for number in range(THREADS):
        durable.submit(f"first{number}")
    eventually(lambda: len(durable.ready()) == THREADS, 5)

    def fail(_: OSError | None) -> None:
        raise RuntimeError("the association is gone")

    durable.submit("broken", fail)
    for number in range(20):
        durable.submit(f"then{number}")
    release.set()
    durable.wait(THREADS + 20)


def test_page_cache_syncs_nothing_and_answers_at_once(cached: Bench, calls: list[tuple[str, str]]) -> None:
    cached.submit("a")
    assert cached.answers == {"a": None}
    assert calls == [("rename", "a")]


def test_answers_come_on_the_thread_that_the_owner_chose(tmp_path: Path) -> None:
    for name in ("partial", "ready"):
        (tmp_path / name).mkdir()
    folders = [os.open(tmp_path / name, os.O_RDONLY | os.O_CLOEXEC) for name in ("partial", "ready")]

    async def commit_one() -> int:
        loop = asyncio.get_running_loop()
        committer = Committer(*folders, durable=True, post=loop.call_soon_threadsafe)
        answered: asyncio.Future[int] = loop.create_future()
        fd = os.open(tmp_path / "partial" / "a", os.O_CREAT | os.O_RDWR, 0o600)
        committer.submit(Commit(fd, "a", "a.dcm", lambda _: answered.set_result(threading.get_ident())))
        try:
            return await asyncio.wait_for(answered, 10)
        finally:
            await loop.run_in_executor(None, committer.close)

    try:
        assert asyncio.run(commit_one()) == threading.get_ident()
    finally:
        for fd in folders:
            os.close(fd)


def test_an_owner_that_is_gone_does_not_keep_close_waiting(tmp_path: Path) -> None:
    for name in ("partial", "ready"):
        (tmp_path / name).mkdir()
    folders = [os.open(tmp_path / name, os.O_RDONLY | os.O_CLOEXEC) for name in ("partial", "ready")]
    posted = threading.Event()

    def closed_loop(_: Callable[[], object]) -> None:
        posted.set()
        raise RuntimeError("Event loop is closed")

    threading.excepthook, hook = (lambda _: None), threading.excepthook
    try:
        committer = Committer(*folders, durable=True, post=closed_loop)
        fd = os.open(tmp_path / "partial" / "a", os.O_CREAT | os.O_RDWR, 0o600)
        committer.submit(Commit(fd, "a", "a.dcm", lambda _: None))
        assert posted.wait(10)
        committer.close()
    finally:
        threading.excepthook = hook
        for fd in folders:
            os.close(fd)
    assert (tmp_path / "ready" / "a.dcm").exists()
