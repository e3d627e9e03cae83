"""The queue of audit messages: durable, bounded, private, and shared by processes."""

import multiprocessing
import os
import signal
import stat

import pytest

from ingest.audit import queue as queues
from ingest.audit.queue import AuditQueue, make_name, read_time_of


@pytest.fixture
def queue(tmp_path):
    return AuditQueue(tmp_path / "audit", 10 * queues.BLOCK_BYTES)


def put(queue, at, data=b"x"):
    name = make_name(at)
    assert queue.put(name, data)
    return name


def test_messages_come_out_in_the_order_of_their_events(queue):
    names = [put(queue, at, b"%d" % at) for at in (3000, 1000, 2000)]
    assert queue.list_names() == [names[1], names[2], names[0]]
    assert [queue.read(name) for name in queue.list_names()] == [b"1000", b"2000", b"3000"]
    assert read_time_of(names[0]) == 3000


def test_only_the_user_of_the_node_can_read_the_files(queue):
    before = os.umask(0)
    try:
        put(queue, 1)
    finally:
        os.umask(before)
    for path in (queue.folder, *queue.folder.rglob("*")):
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_full_queue_keeps_what_waits_and_counts_what_it_drops(queue):
    kept = [put(queue, at) for at in range(10)]
    assert not queue.put(make_name(11), b"x")
    assert not queue.put(make_name(12), b"x")
    assert queue.list_names() == kept
    assert (queue.read_usage().dropped, queue.read_usage().dropped_now) == (2, 2)
    assert queue.put(make_name(13), b"x", uses_reserve=True)


def test_room_is_reported_once(queue):
    kept = [put(queue, at) for at in range(10)]
    assert not queue.put(make_name(11), b"x")
    assert queue.take_dropped_now() == 0
    queue.remove(kept[:5])
    assert queue.take_dropped_now() == 1
    assert queue.take_dropped_now() == 0
    assert queue.read_usage().dropped == 1


def test_event_that_is_reported_again_after_a_crash_is_queued_once(queue):
    assert queue.put("0000000000001000-group-7", b"first")
    assert queue.put("0000000000001000-group-7", b"again")
    assert [queue.read(name) for name in queue.list_names()] == [b"first"]
    assert queue.read_usage().bytes == queues.BLOCK_BYTES


def test_recount_corrects_counts_and_removes_what_a_dead_process_left(queue, monkeypatch):
    put(queue, 1)
    (queue.messages / "0000000000000002-x").write_bytes(b"x" * 5000)
    (queue.messages / ".left").write_bytes(b"half")
    assert queue.recount().bytes == 3 * queues.BLOCK_BYTES
    assert (queue.messages / ".left").exists()
    monkeypatch.setattr(queues, "LEFTOVER_SECONDS", -1.0)
    queue.recount()
    assert not (queue.messages / ".left").exists()
    assert len(queue.list_names()) == 2


def test_failing_disk_leaves_no_half_message(queue, monkeypatch):
    put(queue, 1)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(queues, "_sync_folder", fail)
    with pytest.raises(OSError, match="No space"):
        queue.put(make_name(2), b"x")
    monkeypatch.undo()
    assert not [name for name in os.listdir(queue.messages) if name.startswith(".")]


def _write_many(folder, count):
    queue = AuditQueue(folder, 1 << 30)
    for number in range(count):
        queue.put(make_name(number), b"%d" % os.getpid())


def test_processes_write_at_once_and_no_message_or_count_is_lost(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(tmp_path / "audit", 50)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    queue = AuditQueue(tmp_path / "audit", 1 << 30)
    assert len(queue.list_names()) == 200
    assert queue.read_usage().bytes == 200 * queues.BLOCK_BYTES


def test_killed_writer_leaves_whole_messages_and_a_free_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    folder = tmp_path / "audit"
    writer = context.Process(target=_write_many, args=(folder, 1_000_000))
    writer.start()
    queue = AuditQueue(folder, 1 << 30)
    while len(queue.list_names()) < 20:
        pass
    os.kill(writer.pid, signal.SIGKILL)
    writer.join(10)
    content = [queue.read(name) for name in queue.list_names()]
    assert set(content) == {str(writer.pid).encode()}
    put(queue, 1)
    assert queue.recount().bytes == len(queue.list_names()) * queues.BLOCK_BYTES


def test_stopped_process_with_the_lock_holds_up_nobody_for_long(queue, monkeypatch):
    put(queue, 1)
    monkeypatch.setattr(queues, "LOCK_SECONDS", 0.05)
    with queue._edit_usage():
        put(queue, 2)
    assert len(queue.list_names()) == 2
