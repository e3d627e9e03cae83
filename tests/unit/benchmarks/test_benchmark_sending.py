"""What the benchmarks of sender and forwarding make of their figures, and one real run of our sender."""

import os
import time

import pytest

from benchmarks import forwarding, rounds, sending, transit, workloads
from benchmarks.load import Load, Result
from benchmarks.messages import instance_uid
from benchmarks.receivers import Unavailable, make_pki
from benchmarks.sending import Used, net
from benchmarks.session import Pause
from benchmarks.workloads import Entrant, Work

ROOT = "2.25.7"


def result(instances: int = 100, seconds: float = 10.0, sent: tuple[tuple[float, ...], ...] = ()) -> Result:
    return Result(
        seconds=seconds,
        instances=instances,
        bytes=instances * 1000,
        latencies=(),
        sent=sent,
        failed=0,
        statuses={0: instances},
        operations=1,
        sender_seconds=0.0,
        root=ROOT,
        refused=frozenset(),
        load=Load(1000, instances, 1),
    )


def test_what_a_process_takes_to_start_is_not_counted():
    found = net(Used(cpu=1.5, seconds=3.0), Used(cpu=0.5, seconds=1.0), files=11, data_bytes=11_000_000)
    assert found["instances"] == 10
    assert found["cpu_ms"] == pytest.approx(100)
    assert found["cpu_s_gb"] == pytest.approx(100)
    assert found["rate"] == pytest.approx(5)
    assert found["mb_s"] == pytest.approx(5)
    assert found["start_cpu_ms"] == pytest.approx(500)


def test_senders_that_cost_the_same_a_file_come_out_the_same_however_they_start():
    slow, quick = (
        net(Used(start + 40 * 0.01, 9.0), Used(start + 0.01, 1.0), 40, 40) for start in (2.0, 0.01)
    )
    assert slow["cpu_ms"] == pytest.approx(quick["cpu_ms"]) == pytest.approx(10)


def test_only_what_arrived_while_the_load_lasted_makes_the_rate():
    backlog = [(float(second), second * 20) for second in range(10)]
    found = forwarding.summed(result(), 80, backlog, cpu=0.5, missing=0)
    assert found["rate"] == pytest.approx(8)
    assert found["mb_s"] == pytest.approx(0.008)
    assert found["cpu_ms"] == pytest.approx(5)
    assert (found["backlog_middle"], found["backlog_end"]) == (100, 180)
    assert found["growing"] == 1


def test_a_backlog_that_swings_does_not_grow():
    backlog = [(second / 2, 7 + second % 2) for second in range(120)]
    assert forwarding.summed(result(), 100, backlog, 0.5, 0)["growing"] == 0


def test_transit_is_from_the_last_byte_sent_to_when_the_remote_stored_it():
    sent = tuple(10.0 + number for number in range(100))
    came = {instance_uid(f"{ROOT}.0", number): 1010.05 + number for number in range(99)}
    came[instance_uid(f"{ROOT}.0", 99)] = 1110.0
    found = transit.summed(result(sent=(sent,)), came, offset=1000.0)
    assert found["p50_ms"] == pytest.approx(50)
    assert found["p99_ms"] > 50
    assert (found["instances"], found["missing"]) == (100, 0)


def test_an_instance_that_never_arrived_is_missing():
    sent = (10.0, 11.0)
    came = {instance_uid(f"{ROOT}.0", 0): 10.1}
    found = transit.summed(result(instances=2, sent=(sent,)), came, offset=0.0)
    assert (found["instances"], found["missing"]) == (1, 1)


def test_a_paced_sender_makes_up_for_what_it_lost():
    pause = Pause(0.0, 0.02)
    begun = time.perf_counter()
    pause.wait(0)
    time.sleep(0.05)
    pause.wait(1)
    pause.wait(2)
    late = time.perf_counter() - begun
    pause.wait(10)
    assert time.perf_counter() - begun >= 0.2
    assert late < 0.2


def test_limits_follow_the_size():
    assert [claim.measure for claim in workloads.sending(8 << 10).claims] == ["cpu_ms"]
    large = workloads.sending(27 << 20).claims
    assert {claim.against: claim.limit for claim in large} == {"storescu": 0.6, "pynetdicom": 0.15}
    assert [claim.measure for claim in workloads.forwarding(512 << 10).claims][:3] == ["mb_s"] * 3
    assert [claim.measure for claim in workloads.forwarding(8 << 10).claims][:3] == ["rate"] * 3


def test_our_sender_sends_every_file(tmp_path):
    work = Work("ours alone", (Entrant("ours", "ours", Load(8 << 10, 30, 1)),), sender="alone", pairs=1)
    for name in ("memory", "disk"):
        (tmp_path / name).mkdir()
    setting = rounds.Setting({}, make_pki(tmp_path / "pki"), tmp_path / "memory", tmp_path / "disk")
    taken = rounds.nothing_yet(work)
    try:
        sending.measure(work, setting, taken)
    except Unavailable as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))
    (sample,) = taken["ours"].samples
    assert (sample["instances"], sample["missing"]) == (29, 0)
    assert os.listdir(tmp_path / "disk" / "send-8192-30") == []
