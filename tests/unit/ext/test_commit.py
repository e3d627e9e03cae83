"""Group commit: durable before it is said, and what failed is gone and said to be."""

import errno
import gc
import os
import re
import select
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest

from ingest.ext.group_commit import Committer
from tests.support.commits import Bench, descriptors
from tests.support.spools import collect_until

GROUP, THREADS = 64, 4
ROOT = Path(__file__).parents[3]


def readable(committer: Committer) -> bool:
    return bool(select.select([committer.wakeup], [], [], 0)[0])


# --- entries


def test_an_entry_is_an_empty_file_in_the_partial_folder(either: Bench) -> None:
    entry = either.committer.begin()
    assert either.partial() == {entry.name}
    assert os.path.samestat(os.fstat(entry.fd), (either.folder / "partial" / entry.name).stat())
    assert os.fstat(entry.fd).st_size == 0
    assert not os.get_inheritable(entry.fd)
    os.write(entry.fd, b"x")
    assert os.pread(entry.fd, 1, 0) == b"x"  # readable, too: the header is looked at
    either.committer.discard(entry)
    assert either.partial() == set()
    os.close(entry.fd)  # stays open


def test_names_sort_by_time_and_never_come_twice(either: Bench) -> None:
    names = []
    for _ in range(500):
        entry = either.committer.begin()
        names.append(entry.name)
        either.committer.discard(entry)
        os.close(entry.fd)
    assert names == sorted(names)
    assert len(set(names)) == 500
    assert all(re.fullmatch(r"[0-9a-f]{16}-[0-9a-f]+", name) for name in names)


def test_an_entry_that_cannot_be_made_is_an_oserror(either: Bench) -> None:
    (either.folder / "partial").rmdir()
    before = descriptors()
    with pytest.raises(FileNotFoundError):
        either.committer.begin()
    assert descriptors() == before


def test_without_descriptors_to_be_had_it_is_an_oserror(cached: Bench) -> None:
    limit = subprocess.run(
        [sys.executable, "-c", TOO_MANY, str(cached.folder)], cwd=ROOT, capture_output=True, text=True
    )
    assert limit.stdout == f"{errno.EMFILE}\n", limit.stderr


TOO_MANY = """
import os, resource, sys
from ingest.ext.group_commit import Committer
partial, ready = (os.open(f"{sys.argv[1]}/{name}", os.O_RDONLY) for name in ("partial", "ready"))
committer = Committer(partial, ready, durable=True)
resource.setrlimit(resource.RLIMIT_NOFILE, (committer.wakeup + 1, committer.wakeup + 1))
try:
    committer.begin()
except OSError as error:
    print(error.errno)
try:
    Committer(partial, ready, durable=True)
except OSError as error:
    assert error.errno == 24
else:
    print("a second one")
"""


def test_the_status_of_a_refused_instance_is_in_its_name(either: Bench) -> None:
    expected = set()
    for status, suffix in ((0, ".dcm"), (0xA900, ".A900.dcm"), (0xC000, ".C000.dcm"), (0x0117, ".0117.dcm")):
        entry = either.begin()
        name = either.commit(entry, status)
        either.wait(len(expected) + 1)
        assert entry.ready_name == f"{name}{suffix}"
        expected.add(entry.ready_name)
    assert either.ready() == expected
    assert either.partial() == set()


def test_what_was_written_is_what_is_ready(either: Bench) -> None:
    data = os.urandom(300_000)
    entry = either.begin(data)
    either.commit(entry)
    either.wait(1)
    assert (either.folder / "ready" / entry.ready_name).read_bytes() == data


# --- when it is said


def test_nothing_is_said_before_collect(durable: Bench) -> None:
    for _ in range(3):
        durable.commit(durable.begin())
    assert not readable(durable.committer)
    assert durable.committer.collect() == []
    assert durable.answers == {}
    durable.start()
    assert select.select([durable.committer.wakeup], [], [], 20)[0]
    assert durable.answers == {}
    durable.wait(3)
    assert set(durable.answers.values()) == {None}
    assert not readable(durable.committer)


def test_answers_come_on_the_thread_that_collects(durable: Bench) -> None:
    durable.start()
    threads: list[int] = []
    durable.commit(durable.begin(), done=lambda _: threads.append(threading.get_ident()))
    collect_until(durable.committer, threads, 1)
    assert threads == [threading.get_ident()]


def test_page_cache_answers_at_once_and_wakes_nobody(cached: Bench) -> None:
    name = cached.commit(cached.begin())
    assert cached.answers == {name: None}
    assert not readable(cached.committer)


def test_a_raising_answer_of_the_page_cache_is_its_callers(cached: Bench) -> None:
    def fail(_: OSError | None) -> None:
        raise RuntimeError("the association is gone")

    with pytest.raises(RuntimeError):
        cached.commit(cached.begin(), done=fail)
    assert len(cached.ready()) == 1


def test_every_submission_is_answered_once_whatever_the_threads_do(durable: Bench) -> None:
    durable.start()
    names: list[str] = []
    answered: list[str] = []

    def submit() -> None:
        for _ in range(50):
            entry = durable.begin()
            name = entry.name
            names.append(name)
            durable.commit(entry, done=lambda _, name=name: answered.append(name))

    submitters = [threading.Thread(target=submit) for _ in range(4)]
    for thread in submitters:
        thread.start()
    for thread in submitters:
        thread.join()
    collect_until(durable.committer, answered, 200)
    assert sorted(answered) == sorted(names)
    assert durable.ready() == {f"{name}.dcm" for name in names}
    assert durable.partial() == set()


def test_an_answer_that_fails_is_told_and_does_not_take_others_along(durable: Bench) -> None:
    def fail(_: OSError | None) -> None:
        raise RuntimeError("the association is gone")

    for number in range(21):
        durable.commit(durable.begin(), done=fail if number % 10 == 0 else None)
    durable.start(1)
    durable.stop()
    raised = durable.committer.collect()
    assert [str(error) for error in raised] == ["the association is gone"] * 3
    assert len(durable.answers) == 18
    assert len(durable.ready()) == 21
    assert durable.committer.collect() == []


def test_an_answer_may_submit_the_next(durable: Bench) -> None:
    durable.start()

    def go_on(_: OSError | None) -> None:
        durable.commit(durable.begin())

    durable.commit(durable.begin(), done=go_on)
    durable.wait(1)
    assert len(durable.ready()) == 2


def test_entry_and_callback_live_until_the_answer_and_no_longer(durable: Bench) -> None:
    class Callback:
        def __call__(self, error: OSError | None) -> None:
            durable.answers["called"] = error

    callback = Callback()
    alive = weakref.ref(callback)
    entry = durable.begin()
    references = sys.getrefcount(entry)
    durable.commit(entry, done=callback)
    del callback
    gc.collect()
    assert alive() is not None
    assert sys.getrefcount(entry) == references + 1
    durable.start()
    durable.wait(1)
    assert alive() is None
    assert sys.getrefcount(entry) == references


# --- close


def test_close_finishes_what_waits(durable: Bench) -> None:
    for _ in range(150):
        durable.commit(durable.begin())
    durable.committer.close()
    durable.committer.run()  # the body of a thread, which ends when nothing waits
    assert durable.answers == {}
    assert durable.committer.collect() == []
    assert len(durable.answers) == len(durable.ready()) == 150


def test_close_ends_threads_that_wait_for_work(durable: Bench) -> None:
    durable.start()
    durable.stop()
    durable.committer.close()  # once more
    durable.committer.run()


def test_a_committer_gives_its_own_descriptor_back(tmp_path: Path) -> None:
    before = descriptors()
    for _ in range(20):
        committer = Committer(-1, -1, durable=True)
        assert not os.get_inheritable(committer.wakeup)
        del committer
    assert descriptors() == before
