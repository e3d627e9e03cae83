"""A remote that takes connections and never answers, beside one that works: one worker waits, no other."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.faulty_remote import FaultyRemote
from tests.support.forwarding import Forwarding
from tests.support.nodes import eventually
from tests.support.pki import Material
from tests.support.servers import Valkey

COUNT = 1500
SIZE = 8192
DEADLINE = 3.0
STALLS = ("mute", "silent", "stall at command", "stall at answer")


@pytest.fixture
def forwarding(tmp_path: Path, redis_server: Valkey, material: Material) -> Iterator[Forwarding]:
    settled = Forwarding(tmp_path / "node", redis_server, material.tls("node"))
    yield settled
    settled.ledger.close()


@pytest.fixture
def remotes(tmp_path: Path, material: Material) -> Iterator[Callable[..., FaultyRemote]]:
    """Starts remotes."""
    with ExitStack() as stack:

        def start(name: str, always: str) -> FaultyRemote:
            remote = FaultyRemote(tmp_path / name, material.tls("remote"), always=always)
            return stack.enter_context(remote)

        yield start


def time_of(forwarding: Forwarding, to: list[str]) -> float:
    """Seconds until the good one has so many more."""
    goal = forwarding.states("good").get("delivered", 0) + COUNT
    forwarding.many(COUNT, pixels=bytes(SIZE), to=to)
    started = time.monotonic()
    for name in to:
        forwarding.wake(name)
    eventually(lambda: forwarding.states("good").get("delivered") == goal, 60, "the good one has all")
    return time.monotonic() - started


@pytest.mark.slow
@pytest.mark.parametrize("stall", STALLS)
def test_remote_that_never_answers_leaves_the_others_their_speed(
    forwarding: Forwarding,
    remotes: Callable[..., FaultyRemote],
    record_property: Callable[[str, object], None],
    stall: str,
) -> None:
    good, stuck = remotes("good", "succeed"), remotes("stuck", stall)
    deadlines = {"connect_seconds": DEADLINE, "response_seconds": DEADLINE, "retry_first_seconds": 0.2}
    forwarding.add(good.port, "good")
    forwarding.add(stuck.port, "stuck", retry_max_seconds=0.5, **deadlines)
    with forwarding.worker(), forwarding.worker():
        time_of(forwarding, ["good"])  # both workers are at work, the association was made once
        # A stall slows each round. Load of other tests slows some of them, so the best of three counts.
        rates = []
        while not rates or (len(rates) < 3 and max(rates) < 0.5):
            alone = time_of(forwarding, ["good"])
            rates.append(alone / time_of(forwarding, ["stuck", "good"]))
    record_property("rate_beside_alone", round(max(rates), 3))
    assert stuck.record.injected[stall] > 0
    assert max(rates) >= 0.5
    assert "delivered" not in forwarding.states("stuck")
    assert "dead" not in forwarding.states("stuck")


@pytest.mark.slow
@pytest.mark.parametrize("stall", STALLS)
def test_only_worker_is_free_again_after_the_deadline(
    forwarding: Forwarding, remotes: Callable[..., FaultyRemote], stall: str
) -> None:
    """Were it longer, the good one would wait for as long as the stalled one is asked again and again."""
    good, stuck = remotes("good", "succeed"), remotes("stuck", stall)
    deadlines = {"connect_seconds": 1.0, "response_seconds": 1.0}
    forwarding.add(good.port, "good")
    forwarding.add(stuck.port, "stuck", retry_first_seconds=60.0, **deadlines)
    forwarding.many(200, to=["stuck"])
    with forwarding.worker():
        eventually(lambda: stuck.record.injected[stall], 15, "the stalled one is asked")
        forwarding.many(50, to=["good"])
        forwarding.wake("good")
        forwarding.wait({"delivered": 50}, 15, "good")
        eventually(lambda: "sending" not in forwarding.states("stuck"), 15, "nothing is in hand")
