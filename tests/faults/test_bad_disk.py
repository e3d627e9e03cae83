"""Disks that are full or failing: A700, the association lives, and no file stays (PS3.4 Table B.2-1)."""

import errno
import os
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.caller import Caller, data_pdus, new_uid
from tests.faults.watch import Watch, known, nothing_received, partial_of, receive, row
from tests.support.instances import Made
from tests.support.nodes import Node, eventually
from tests.support.peers import require_program

DISK_BYTES = 3 << 20
LARGE = bytes(2 * DISK_BYTES)


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of its own with little room; root alone can make one."""
    yield from _mounted(tmp_path_factory.mktemp("small disk"), DISK_BYTES)


def _mounted(folder: Path, size_bytes: int) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "none", str(folder)],
        capture_output=True,
        text=True,
    )
    if made.returncode:
        reason = f"no file system could be mounted: {made.stderr.strip()}"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def full(small_disk: Path, start_node: Callable[..., Node]) -> Node:
    """A node whose spool is on the small disk."""
    return start_node(receive=receive(spool_dir=str(small_disk / "spool")))


@pytest.mark.parametrize("connect", [Caller.plain, Caller.tls], ids=["plain", "tls"])
def test_full_disk_answers_a700_and_keeps_the_association(
    full: Node, small_disk: Path, connect: Callable[[Node], Caller]
) -> None:
    watch = Watch(full)
    spool = small_disk / "spool"
    large, small = Made(sop=new_uid(), pixels=LARGE), Made(sop=new_uid(), pixels=bytes(100_000))
    with connect(full) as caller:
        caller.associate()
        for _ in range(2):
            response = caller.store(large)
            assert response.status == 0xA700
            assert response.error_comment
        nothing_received(full, spool)
        assert caller.store(small).status == 0
        assert caller.echo() == 0
        caller.release()
    watch.event("spool_write_failed", error=f"errno {errno.ENOSPC}", remedy="spool_dir")
    watch.event("instance_refused", status="A700", sop_instance=large.sop)
    row(full, small.sop, "stored")
    assert full.stored()[small.sop].read_bytes().endswith(small.data_set)
    nothing_received(full, spool)
    assert not known(full, large.sop)


def test_full_disk_in_mid_image_leaves_other_associations_untouched(full: Node, small_disk: Path) -> None:
    spool = small_disk / "spool"
    large, kept = Made(sop=new_uid(), pixels=LARGE), Made(sop=new_uid(), pixels=bytes(200_000))
    with Caller.tls(full) as other, Caller.tls(full) as caller:
        for each in (other, caller):
            each.associate()
        other.begin_store(kept.sop)
        other.send(data_pdus(1, kept.data_set[:100_000], last=False))
        partial_of(full, 50_000, spool)
        assert caller.store(large).status == 0xA700
        other.send(data_pdus(1, kept.data_set[100_000:]))
        assert other.response().status == 0
    row(full, kept.sop, "stored")
    assert full.stored()[kept.sop].read_bytes().endswith(kept.data_set)
    nothing_received(full, spool)


# --- a disk that fails


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder: a file in it named like a system call makes it fail in nodes that are started from now on."""
    folder = tmp_path_factory.mktemp("faults")
    library = folder / "failing_disk.so"
    source = Path(__file__).with_name("failing_disk.c")
    subprocess.run(
        [require_program("gcc"), "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(library))
        patch.setenv("FAILING_DISK", str(folder))
        yield folder


@pytest.fixture(scope="module")
def node(faults: Path, start_node: Callable[..., Node]) -> Node:
    return start_node(receive=receive())


@pytest.fixture
def fail(faults: Path) -> Iterator[Callable[[str, int], None]]:
    """Make a call fail with an errno until the end of the test, or (0) no longer."""
    set_up = set()

    def fail(call: str, number: int) -> None:
        path = faults / call
        set_up.add(path)
        if number:
            path.write_text(str(number))
        else:
            path.unlink()

    yield fail
    for path in set_up:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("call", "number"),
    [
        ("openat", errno.ENOSPC),
        ("openat", errno.EROFS),
        ("writev", errno.EIO),
        ("writev", errno.EDQUOT),
        ("fdatasync", errno.EIO),
        ("fdatasync", errno.ENOSPC),
        ("renameat", errno.EIO),
    ],
)
def test_failing_disk_answers_a700_and_keeps_the_association(
    node: Node, watch: Watch, fail: Callable[[str, int], None], call: str, number: int
) -> None:
    lost, kept = (Made(sop=new_uid(), pixels=bytes(300_000)) for _ in range(2))
    with Caller.tls(node) as caller:
        caller.associate()
        fail(call, number)
        assert caller.store(lost).status == 0xA700
        assert caller.echo() == 0
        nothing_received(node)
        fail(call, 0)
        assert caller.store(kept).status == 0
        caller.release()
    watch.event("spool_write_failed", remedy="spool_dir")
    row(node, kept.sop, "stored")
    assert not known(node, lost.sop)


def test_a_disk_that_cannot_be_read_answers_a700(node: Node, fail: Callable[[str, int], None]) -> None:
    # What a deflated data set says is read from the file; of others it is known before.
    lost, kept = (Made(sop=new_uid(), pixels=os.urandom(300_000)) for _ in range(2))

    def deflated(made: Made) -> bytes:
        compressor = zlib.compressobj(wbits=-15)
        return compressor.compress(made.data_set) + compressor.flush()

    with Caller.tls(node) as caller:
        caller.associate()
        fail("pread", errno.EIO)
        assert caller.store(lost, 7, data=deflated(lost)).status == 0xA700
        assert caller.echo() == 0
        nothing_received(node)
        fail("pread", 0)
        assert caller.store(kept, 7, data=deflated(kept)).status == 0
        caller.release()
    row(node, kept.sop, "stored")
    assert not known(node, lost.sop)


def test_a_disk_that_fails_in_mid_image_is_told_at_its_end(
    node: Node, faults: Path, fail: Callable[[str, int], None]
) -> None:
    made = Made(sop=new_uid(), pixels=bytes(500_000))
    with Caller.plain(node) as caller:
        caller.associate()
        caller.begin_store(made.sop)
        caller.send(data_pdus(1, made.data_set[:300_000], last=False))
        partial_of(node, 200_000)
        (faults / "writev.failed").unlink(missing_ok=True)
        fail("writev", errno.EIO)
        caller.send(data_pdus(1, made.data_set[300_000:400_000], last=False))
        eventually((faults / "writev.failed").exists, 5)
        fail("writev", 0)
        caller.send(data_pdus(1, made.data_set[400_000:]))
        assert caller.response().status == 0xA700
        assert caller.echo() == 0
    nothing_received(node)
    assert not known(node, made.sop)


def test_a_name_that_is_not_safe_gets_a700_and_the_same_again_is_stored_once(
    node: Node, fail: Callable[[str, int], None]
) -> None:
    made = Made(sop=new_uid(), pixels=bytes(300_000))
    with Caller.tls(node) as caller:
        caller.associate()
        fail("fsync", errno.EIO)
        assert caller.store(made).status == 0xA700
        assert caller.echo() == 0
        fail("fsync", 0)
        assert caller.store(made).status == 0
        caller.release()
    row(node, made.sop, "stored")
    assert node.stored()[made.sop].read_bytes().endswith(made.data_set)
    nothing_received(node)
    eventually(lambda: known(node, made.sop) == [("stored",)], 5)


def test_a_copy_for_quarantine_that_cannot_be_kept_is_told_as_a700(
    node: Node, fail: Callable[[str, int], None]
) -> None:
    made = Made(sop=new_uid(), sop_in_data_set="1.2.3.4.5")
    with Caller.plain(node) as caller:
        caller.associate()
        fail("fdatasync", errno.EIO)
        assert caller.store(made).status == 0xA700
        assert caller.echo() == 0
    nothing_received(node)
    assert not known(node, made.sop)


def test_many_at_once_on_a_failing_disk_are_all_told(node: Node, fail: Callable[[str, int], None]) -> None:
    callers = [Caller.plain(node) for _ in range(8)]
    try:
        for caller in callers:
            caller.associate()
        fail("fdatasync", errno.EIO)
        for caller in callers:
            made = Made(sop=new_uid(), pixels=bytes(50_000))
            caller.begin_store(made.sop)
            caller.send(data_pdus(1, made.data_set))
        assert [caller.response().status for caller in callers] == [0xA700] * 8
        fail("fdatasync", 0)
        assert [caller.store(Made(sop=new_uid())).status for caller in callers] == [0] * 8
    finally:
        for caller in callers:
            caller.sock.close()
    nothing_received(node)


# --- the reserve

RESERVE_BYTES = 24 << 20


@pytest.fixture
def medium_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with 64 MiB; root alone can make one."""
    yield from _mounted(tmp_path / "medium disk", 64 << 20)


def test_data_sets_under_way_leave_the_reserve_alone(
    make_node: Callable[..., Node], medium_disk: Path
) -> None:
    node = make_node(
        node=f'[node]\ndata_dir = "{medium_disk}/var"\ndrain_seconds = 10',
        receive=f"[receive]\nprocesses = 2\nmin_free_bytes = {RESERVE_BYTES}",
    )
    node.data_folder = medium_disk / "var"
    node.start()
    least, done = [1 << 62], threading.Event()

    def watch_free() -> None:
        while not done.wait(0.002):
            facts = os.statvfs(medium_disk)
            least[0] = min(least[0], facts.f_bavail * facts.f_frsize)

    watcher = threading.Thread(target=watch_free)
    watcher.start()
    try:
        large = bytes(30 << 20)
        with Caller.tls(node) as one, Caller.tls(node) as other:
            made = [Made(sop=new_uid(), pixels=large) for _ in range(2)]
            for caller, each in zip((one, other), made, strict=True):
                caller.associate()
                caller.begin_store(each.sop)
            for caller, each in zip((one, other), made, strict=True):
                caller.send(data_pdus(1, each.data_set))
            statuses = {caller.response().status for caller in (one, other)}
            assert 0xA700 in statuses, "there is room for one of them at most"
            assert one.echo() == other.echo() == 0, "the associations live"
    finally:
        done.set()
        watcher.join()
    assert least[0] > RESERVE_BYTES - (4 << 20), "but for what ledger and queue write"
