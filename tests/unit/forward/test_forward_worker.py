"""Forward workers as processes: woken by RQ, killed, and with a Redis that goes away."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ingest.clock import unix_ms
from ingest.config.model import TLS
from ingest.queue.wakeups import drain_key
from tests.support.forwarding import Forwarding
from tests.support.nodes import eventually
from tests.support.peers import CT, PynetdicomRemote, Stored, storescp

CONTEXTS = [(CT, ["1.2.840.10008.1.2.1"])]


def slowly(stored: Stored) -> int:
    time.sleep(0.02)
    return 0


def test_woken_worker_delivers_at_once_and_leaves_no_job_behind(forwarding: Forwarding, tls: TLS) -> None:
    with PynetdicomRemote(CONTEXTS, tls) as scp, contextlib.closing(forwarding.server.client()) as client:
        forwarding.add(scp.port)
        with forwarding.worker() as worker:
            eventually(lambda: client.smembers("rq:workers"), what="the worker is registered")
            forwarding.many(5)
            started = time.monotonic()
            forwarding.wake()
            forwarding.wait({"delivered": 5})
            assert time.monotonic() - started < 1.5
            eventually(lambda: not client.exists(drain_key("pacs")), 5, "the turn ends")
            eventually(lambda: not client.keys("rq:job:*"), 5, "the job is gone")
            assert worker.terminate() == 0
        assert not client.smembers("rq:workers")
        assert not client.keys("ingest:*")


def test_what_is_due_is_found_without_being_woken(forwarding: Forwarding, tls: TLS) -> None:
    with PynetdicomRemote(CONTEXTS, tls) as scp:
        forwarding.add(scp.port)
        forwarding.many(5)
        with forwarding.worker():
            forwarding.wait({"delivered": 5}, 10)


def test_retries_come_by_themselves(forwarding: Forwarding, tls: TLS) -> None:
    refused: set[str] = set()

    def first_refused(stored: Stored) -> int:
        if stored.sop_instance in refused:
            return 0
        refused.add(stored.sop_instance)
        return 0xA700

    with PynetdicomRemote(CONTEXTS, tls, answer=first_refused) as scp:
        forwarding.add(scp.port, linger_seconds=0)
        forwarding.many(5)
        with forwarding.worker():
            forwarding.wait({"delivered": 5}, 15)
    assert forwarding.row("1.2.3.1").attempts == 2


def test_two_destinations_do_not_wait_for_each_other(forwarding: Forwarding, tls: TLS) -> None:
    over = threading.Event()

    def hang(_: Stored) -> int:
        over.wait(30)
        return 0

    with PynetdicomRemote(CONTEXTS, tls, answer=hang) as stuck, PynetdicomRemote(CONTEXTS, tls) as good:
        forwarding.add(stuck.port, "stuck", response_seconds=30)
        forwarding.add(good.port, "good")
        forwarding.many(20, to=["stuck", "good"])
        with forwarding.worker(), forwarding.worker():
            forwarding.wait({"delivered": 20}, 15, "good")
            assert "delivered" not in forwarding.states("stuck")
            over.set()
            forwarding.wait({"delivered": 20}, 15, "stuck")


def test_killed_worker_is_replaced_within_15_seconds_and_nothing_is_skipped(
    forwarding: Forwarding, tls: TLS
) -> None:
    with PynetdicomRemote(CONTEXTS, tls, answer=slowly) as scp:
        forwarding.add(scp.port)
        forwarding.many(200)
        with forwarding.worker() as first, forwarding.worker() as second:
            eventually(lambda: len(scp.stored) > 10, 15, "work has begun")
            owner = eventually(forwarding.lease_owner, 5, "a lease")
            busy, idle = (first, second) if f"-{first.pid}-" in owner else (second, first)
            assert f"-{busy.pid}-" in owner
            busy.kill()
            killed, at = time.monotonic(), len(scp.stored)
            eventually(lambda: len(scp.stored) > at + 5, 16, "the other one goes on")
            assert time.monotonic() - killed < 15
            forwarding.wait({"delivered": 200}, 30)
            assert idle.terminate() == 0
        assert {stored.sop_instance for stored in scp.stored} == {f"1.2.3.{n}" for n in range(1, 201)}


def test_emptied_redis_costs_seconds(forwarding: Forwarding, tls: TLS) -> None:
    with PynetdicomRemote(CONTEXTS, tls) as scp, contextlib.closing(forwarding.server.client()) as client:
        forwarding.add(scp.port)
        with forwarding.worker():
            forwarding.many(3)
            forwarding.wait({"delivered": 3}, 10)
            forwarding.many(3)
            forwarding.wake()
            client.flushall()
            forwarding.wait({"delivered": 6}, 6)
            eventually(lambda: client.smembers("rq:workers"), 6, "the worker registers again")


def test_lost_job_whose_mark_is_left_costs_seconds(forwarding: Forwarding, tls: TLS) -> None:
    with PynetdicomRemote(CONTEXTS, tls) as scp, contextlib.closing(forwarding.server.client()) as client:
        forwarding.add(scp.port)
        forwarding.many(3)
        forwarding.wake()
        client.delete("rq:queue:forward")
        with forwarding.worker():
            forwarding.wait({"delivered": 3}, 10)


def test_worker_outlives_a_redis_that_is_away(forwarding: Forwarding, tls: TLS) -> None:
    with PynetdicomRemote(CONTEXTS, tls) as scp:
        forwarding.add(scp.port)
        with forwarding.worker() as worker:
            forwarding.many(1)
            forwarding.wait({"delivered": 1}, 10)
            forwarding.server.kill()
            forwarding.many(3)
            eventually(lambda: "queue_away" in worker.log.read_text(), 10, "it is said")
            until = time.monotonic() + 4
            eventually(lambda: time.monotonic() > until, 6)
            assert worker.process.poll() is None
            forwarding.server.start()
            forwarding.wait({"delivered": 4}, 10)
            assert worker.log.read_text().count("queue_away ") == 1
            assert "Traceback" not in worker.log.read_text()
            assert worker.terminate() == 0


def test_worker_waits_for_a_redis_that_was_never_there(forwarding: Forwarding, tls: TLS) -> None:
    forwarding.server.kill()
    with PynetdicomRemote(CONTEXTS, tls) as scp:
        forwarding.add(scp.port)
        forwarding.many(1)
        with forwarding.worker() as worker:
            eventually(lambda: "queue_away" in worker.log.read_text(), 10, "it is said")
            forwarding.server.start()
            forwarding.wait({"delivered": 1}, 10)
            forwarding.server.kill()
            assert worker.terminate() == 0


def test_term_in_the_middle_finishes_the_instance_and_gives_the_rest_back(
    forwarding: Forwarding, tls: TLS
) -> None:
    with PynetdicomRemote(CONTEXTS, tls, answer=slowly) as scp:
        forwarding.add(scp.port)
        forwarding.many(100)
        with forwarding.worker() as worker:
            eventually(lambda: len(scp.stored) > 5, 15, "work has begun")
            assert worker.terminate(5) == 0
        counts = forwarding.states()
        assert counts == {"delivered": len(scp.stored), "waiting": 100 - len(scp.stored)}
        with contextlib.closing(forwarding.server.client()) as client:
            assert not client.keys("ingest:place:*")
        assert forwarding.ledger.deliveries.find_due_destinations(unix_ms()) == ["pacs"]


def test_memory_stays_flat_with_a_large_instance(forwarding: Forwarding, tls: TLS) -> None:
    with PynetdicomRemote(CONTEXTS, tls, keep_data=False) as scp:
        forwarding.add(scp.port, response_seconds=30)
        with forwarding.worker() as worker:
            forwarding.many(1)
            forwarding.wait({"delivered": 1}, 10)
            before = _peak(worker.pid)
            forwarding.many(1, pixels=bytes(128 << 20))
            forwarding.wait({"delivered": 2}, 60)
            assert _peak(worker.pid) - before < 8 << 20


def _peak(pid: int) -> int:
    """Largest resident size of a process, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


@pytest.mark.interop
def test_dcmtk_gets_every_byte_over_tls(forwarding: Forwarding, tls: TLS, tmp_path: Path) -> None:
    received = tmp_path / "received"
    with storescp(received, tls) as port:
        forwarding.add(port)
        sent = forwarding.many(20, pixels=os.urandom(50_000))
        with forwarding.worker():
            forwarding.wait({"delivered": 20}, 15)
    files = {path.name.partition(".")[2]: path.read_bytes() for path in received.iterdir()}
    assert len(files) == 20
    for one in sent:
        assert files[one.sop].endswith(one.data_set)


def test_rq_own_tool_sees_queue_and_worker(forwarding: Forwarding, tls: TLS) -> None:
    with PynetdicomRemote(CONTEXTS, tls) as scp:
        forwarding.add(scp.port)
        with forwarding.worker(), contextlib.closing(forwarding.server.client()) as client:
            eventually(lambda: client.smembers("rq:workers"), what="the worker is registered")
            forwarding.many(1)
            forwarding.wake()
            forwarding.wait({"delivered": 1})
            rq = Path(sys.executable).with_name("rq")
            told = subprocess.run(
                [rq, "info", "--raw", "--url", forwarding.server.url],
                capture_output=True, text=True, timeout=60, check=True,
            ).stdout  # fmt: skip
    assert "queue forward" in told
    assert "worker forward-" in told
