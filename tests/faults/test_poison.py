"""Instances with which a remote always breaks the association, or crashes: the others arrive in seconds."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ingest.workers.forward.retry_policy import INSTANCE_BREAKS_MAX
from tests.faults.faulty_remote import FaultyRemote, number_of
from tests.support.forwarding import Forwarding
from tests.support.instances import Made
from tests.support.nodes import eventually
from tests.support.pki import Material
from tests.support.servers import Valkey

SOUND_SECONDS = 30.0
"""Generous, for a busy machine; before, it was half an hour or for ever."""

SETTINGS = {"retry_first_seconds": 0.3, "retry_max_seconds": 2.0, "connect_seconds": 5.0}


@pytest.fixture
def forwarding(tmp_path: Path, redis_server: Valkey, material: Material) -> Iterator[Forwarding]:
    settled = Forwarding(tmp_path / "node", redis_server, material.tls("node"))
    yield settled
    settled.ledger.close()


@pytest.fixture
def remote_with(tmp_path: Path, material: Material) -> Iterator[Callable[..., FaultyRemote]]:
    """Starts a remote that is started again whenever it crashes."""
    with contextlib.ExitStack() as stack:

        def start(poison: list[int], fault: str) -> FaultyRemote:
            remote = FaultyRemote(
                tmp_path / "remote",
                material.tls("remote"),
                always="succeed",
                poison=poison,
                poison_fault=fault,
            )
            stack.enter_context(remote)
            stop = threading.Event()
            thread = threading.Thread(target=_start_again, args=(remote, stop), daemon=True)
            thread.start()
            stack.callback(thread.join, 20)
            stack.callback(stop.set)
            return remote

        yield start


def _start_again(remote: FaultyRemote, stop: threading.Event) -> None:
    while not stop.wait(0.1):
        if remote.crashed() and not stop.wait(0.5):
            remote.kill()  # its pipe is closed
            remote.start()


def made(count: int, series: int = 1) -> list[Made]:
    return [Made(sop=f"1.2.3.{n}", series=f"1.2.9.{n % series}") for n in range(1, count + 1)]


def sound_arrive(forwarding: Forwarding, count: int) -> float:
    """Seconds until so many are delivered."""
    started = time.monotonic()
    forwarding.wake()
    eventually(
        lambda: forwarding.states().get("delivered") == count, SOUND_SECONDS, f"{count} sound ones arrive"
    )
    return time.monotonic() - started


def order_of(remote: FaultyRemote, *but: int) -> list[int]:
    return [number_of(uid) for uid in remote.record.held if number_of(uid) not in but]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["abort at data", "hang up at command", "crash"])
def test_one_poisonous_instance_in_front_holds_up_none_of_the_others(
    forwarding: Forwarding, remote_with: Callable[..., FaultyRemote], fault: str
) -> None:
    remote = remote_with([1], fault)
    forwarding.add(remote.port, **SETTINGS)
    forwarding.record(*made(98))
    with forwarding.worker() as worker:
        sound_arrive(forwarding, 97)
        assert order_of(remote) == list(range(2, 99))
        eventually(lambda: forwarding.states() == {"delivered": 97, "dead": 1}, 60, "it is given up")
        # What comes later goes at once: the circuit is closed.
        forwarding.record(*(Made(sop=f"1.2.3.{n}") for n in range(101, 111)))
        sound_arrive(forwarding, 107)
        assert "circuit_open" not in worker.log.read_text()
    row = forwarding.row("1.2.3.1")
    assert row.breaks == INSTANCE_BREAKS_MAX
    assert f"broke {INSTANCE_BREAKS_MAX} associations while others were answered for" in str(row.last_error)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["abort at data", "crash"])
def test_several_poisonous_instances_in_a_row_hold_up_none_of_the_others(
    forwarding: Forwarding, remote_with: Callable[..., FaultyRemote], fault: str
) -> None:
    poison = [3, 4, 5, 6, 7]
    remote = remote_with(poison, fault)
    forwarding.add(remote.port, **SETTINGS)
    forwarding.record(*made(100))
    with forwarding.worker() as worker:
        sound_arrive(forwarding, 95)
        if fault != "crash":
            assert "circuit_open" not in worker.log.read_text()
    assert order_of(remote) == [n for n in range(1, 101) if n not in poison]


@pytest.mark.slow
def test_whole_poisonous_series_leaves_the_other_series_their_way(
    forwarding: Forwarding, remote_with: Callable[..., FaultyRemote]
) -> None:
    """Three hundred in front that all break their association, then forty that are sound."""
    remote = remote_with(list(range(1, 301)), "abort at data")
    forwarding.add(remote.port, **SETTINGS)
    forwarding.record(
        *(Made(sop=f"1.2.3.{n}", series="1.2.9.1" if n <= 300 else "1.2.9.2") for n in range(1, 341))
    )
    with forwarding.worker():
        sound_arrive(forwarding, 40)
    assert order_of(remote) == list(range(301, 341))


@pytest.mark.slow
def test_remote_that_breaks_every_association_opens_the_circuit_and_gets_all_once_it_is_mended(
    forwarding: Forwarding, remote_with: Callable[..., FaultyRemote]
) -> None:
    remote = remote_with(list(range(1, 31)), "abort at data")
    forwarding.add(remote.port, **SETTINGS)
    forwarding.record(*made(30, series=3))
    with forwarding.worker():
        forwarding.wake()
        eventually(
            lambda: forwarding.ledger.circuits.read_circuit("pacs").state == "open", 20, "the circuit opens"
        )
        time.sleep(1.0)
        assert "dead" not in forwarding.states()
        remote.tell(poison=[])
        sound_arrive(forwarding, 30)
    assert forwarding.ledger.circuits.read_circuit("pacs").state == "closed"


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["abort at data", "crash"])
def test_poison_holds_up_nothing_over_two_associations(
    forwarding: Forwarding, remote_with: Callable[..., FaultyRemote], fault: str
) -> None:
    remote = remote_with([5], fault)
    forwarding.add(remote.port, associations=2, **SETTINGS)
    forwarding.record(*made(100, series=4))
    with forwarding.worker(), forwarding.worker():
        sound_arrive(forwarding, 99)
    broke = {row.sop for row in made(100) if forwarding.row(row.sop).breaks > 1}
    assert broke <= {"1.2.3.5"}


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["abort at data", "crash"])
def test_of_a_window_that_broke_each_is_tried_alone_and_one_is_to_blame(
    forwarding: Forwarding, remote_with: Callable[..., FaultyRemote], fault: str
) -> None:
    remote = remote_with([4], fault)
    forwarding.add(remote.port, async_operations=8, **SETTINGS)
    forwarding.record(*made(60))
    with forwarding.worker():
        sound_arrive(forwarding, 59)
        eventually(lambda: forwarding.row("1.2.3.4").breaks > 1, 20, "it breaks another one, alone")
    assert {one.sop for one in made(60) if forwarding.row(one.sop).breaks > 1} == {"1.2.3.4"}


@pytest.mark.slow
def test_first_break_after_an_outage_does_not_open_the_circuit_again(
    forwarding: Forwarding, remote_with: Callable[..., FaultyRemote]
) -> None:
    remote = remote_with([1], "abort at data")
    remote.kill()
    forwarding.add(remote.port, **SETTINGS)
    forwarding.record(*made(50))
    with forwarding.worker() as worker:
        forwarding.wake()
        eventually(
            lambda: forwarding.ledger.circuits.read_circuit("pacs").state == "open", 20, "the circuit opens"
        )
        remote.start()
        sound_arrive(forwarding, 49)
        assert worker.log.read_text().count("circuit_open") == 1
