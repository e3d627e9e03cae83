"""Everything that a remote can do to a sender, at random, while workers are killed and Redis is emptied.

At the end every delivery is delivered or dead with its reason, and the remote holds exactly what is
delivered, byte for byte. FAULT_INSTANCES says how many instances there are, and FAULT_SEED which chances;
FAULT_REPORT names a file for the table of what was injected and what became of it.
"""

import contextlib
import itertools
import os
import random
import threading
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.faulty_remote import (
    EVERY,
    HELD,
    PLANS,
    FaultyRemote,
    Record,
    number_of,
    plan_of,
)
from tests.support.forwarding import Forwarding, WorkerProcess
from tests.support.instances import EXPLICIT, Made
from tests.support.nodes import eventually
from tests.support.peers import JPEG
from tests.support.pki import Material
from tests.support.servers import Valkey

INSTANCES = int(os.environ.get("FAULT_INSTANCES", "1250"))
SEED = int(os.environ.get("FAULT_SEED", "4"))
SECONDS = 150 + INSTANCES / 25
WORKERS = 2
EVENT_EVERY = max(250, INSTANCES / 50)
"""Instances, at most, between two of the larger accidents."""

TRANSIENT = {0xA700, 0xC000, 0xC123}

# Beside the plans: of a kind that the remote accepts no context for, and without a file.
REFUSED, GONE = len(PLANS), len(PLANS) + 1


def made(number: int) -> Made:
    syntax = JPEG if number % EVERY == REFUSED else EXPLICIT
    return Made(sop=f"1.2.3.{number}", syntax=syntax, pixels=b"%d" % number * 16)


def kind_of(uid: str) -> str:
    turn = number_of(uid) % EVERY
    if turn in {REFUSED, GONE}:
        return "no context accepted" if turn == REFUSED else "file gone"
    return ", then ".join(f"{status:04X}H" for status in plan_of(uid))


class Chaos:
    """Forward workers and a remote, killed and started again; a Redis that is emptied."""

    def __init__(self, forwarding: Forwarding, remote: FaultyRemote) -> None:
        self.happened: Counter[str] = Counter()
        self.failure: BaseException | None = None
        self._forwarding = forwarding
        self._remote = remote
        self._chance = random.Random(SEED)
        self._workers: list[WorkerProcess] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Chaos":
        self._workers = [self._worker() for _ in range(WORKERS)]
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.calm()
        for worker in self._workers:
            worker.kill()

    def calm(self) -> None:
        """End it; what was killed runs again."""
        self._stop.set()
        self._thread.join(60)

    def _worker(self) -> WorkerProcess:
        log = self._forwarding.folder / f"worker-{time.monotonic_ns()}.log"
        return WorkerProcess(self._forwarding.config, log)

    def _run(self) -> None:
        events = [self._kill_worker, self._kill_remote, self._reject_for_good, self._empty_redis]
        try:
            # Each once in the beginning, then by chance; the more there is to do, the more of it.
            for turn in itertools.count():
                goal = min(ended(self._forwarding) + EVENT_EVERY * self._chance.random(), 0.85 * INSTANCES)
                while ended(self._forwarding) < goal:
                    if self._stop.wait(0.05):
                        return
                if ended(self._forwarding) > 0.85 * INSTANCES:
                    return
                event = events[turn] if turn < len(events) else self._chance.choice(events)
                self.happened[event.__name__.strip("_").replace("_", " ")] += 1
                event()
        except BaseException as error:
            self.failure = error

    def _kill_worker(self) -> None:
        turn = self._chance.randrange(WORKERS)
        self._workers[turn].kill()
        self._workers[turn] = self._worker()

    def _kill_remote(self) -> None:
        self._remote.kill()
        time.sleep(self._chance.random())
        self._remote.start()

    def _reject_for_good(self) -> None:
        self._remote.tell(permanent=1)
        time.sleep(1.0)
        self._remote.tell(permanent=0)

    def _empty_redis(self) -> None:
        with contextlib.closing(self._forwarding.server.client()) as client:
            client.flushall()


@pytest.fixture
def forwarding(tmp_path: Path, redis_server: Valkey, material: Material) -> Iterator[Forwarding]:
    settled = Forwarding(tmp_path / "node", redis_server, material.tls("node"))
    yield settled
    settled.ledger.close()


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 120)
def test_every_delivery_ends_and_the_remote_holds_exactly_what_was_delivered(
    forwarding: Forwarding,
    material: Material,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    tls = material.tls("remote")
    with FaultyRemote(tmp_path / "remote", tls, seed=SEED, connections=0.25, stores=0.015) as remote:
        forwarding.add(
            remote.port,
            associations=2,
            connect_seconds=1.0,
            response_seconds=1.0,
            retry_first_seconds=0.05,
            retry_max_seconds=0.3,
            max_attempts=15,
        )
        for first in range(1, INSTANCES + 1, 1000):
            forwarding.record(*(made(n) for n in range(first, min(first + 1000, INSTANCES + 1))))
        for number in range(GONE, INSTANCES + 1, EVERY):
            (forwarding.config.store_root / f"{made(number).sop}.dcm").unlink()
        started = time.monotonic()
        with Chaos(forwarding, remote) as chaos:
            eventually(lambda: chaos.failure or ended(forwarding) == INSTANCES, SECONDS, "all have ended")
            chaos.calm()
            assert chaos.failure is None
        record_property("seconds", round(time.monotonic() - started, 1))
        record = remote.record
    rows = results(forwarding)
    report(rows, record, chaos.happened, time.monotonic() - started)
    assert {uid for uid, row in rows.items() if row.state == "delivered"} == record.held.keys()
    assert record.held == {uid: zlib.crc32(made(number_of(uid)).data_set) for uid in record.held}
    assert [(uid, row) for uid, row in rows.items() if not row.as_it_has_to_be(uid)] == []
    assert len(chaos.happened) == 4, "not each kind of accident has happened"


class Row:
    """How one delivery ended."""

    def __init__(self, state: str, status: int | None, error: str, attempts: int) -> None:
        self.state, self.status, self.error, self.attempts = state, status, error, attempts

    def __repr__(self) -> str:
        status = "no status" if self.status is None else f"{self.status:04X}H"
        return f"{self.state} {status} {self.error!r} after {self.attempts}"

    def as_it_has_to_be(self, uid: str) -> bool:
        turn, plan = number_of(uid) % EVERY, plan_of(uid)
        if turn == REFUSED:
            return self.state == "dead" and self.status is None and "context" in self.error
        if turn == GONE:
            return self.state == "dead" and self.status is None and "gone" in self.error
        if self.state == "dead" and plan[-1] in TRANSIENT:
            # Whatever the last of too many attempts met with.
            return self.error.endswith("the last)")
        if plan[-1] not in HELD:
            return self.state == "dead" and self.status == plan[-1] and f"{plan[-1]:04X}H" in self.error
        # The answer to what the remote has already is one of two others.
        return self.state == "delivered" and self.status in {plan[-1], 0x0000, 0x0111}


def ended(forwarding: Forwarding) -> int:
    states = forwarding.states()
    return states.get("delivered", 0) + states.get("dead", 0)


def results(forwarding: Forwarding) -> dict[str, Row]:
    query = (
        "SELECT sop_instance_uid, deliveries.state, last_status, last_error, attempts FROM deliveries "
        "JOIN instances ON instances.id = instance_id"
    )
    with forwarding.ledger.database.begin_read() as connection:
        return {
            uid: Row(state, status, error or "", attempts)
            for uid, state, status, error, attempts in connection.exec_driver_sql(query)
        }


def report(rows: dict[str, Row], record: Record, happened: Counter[str], seconds: float) -> None:
    """Write the table of failures, where FAULT_REPORT says."""
    path = os.environ.get("FAULT_REPORT")
    if not path:
        return
    again = sum(1 for count in record.received.values() if count > 1)
    lines = [
        f"{len(rows)} instances, {seconds:.0f} s, seed {SEED}; {record.received.total()} data sets received, "
        f"{again} instances more than once",
        "",
        "| answered | instances | ended | attempts, most |",
        "|---|---|---|---|",
    ]
    of_kind: dict[str, list[Row]] = defaultdict(list)
    for uid, row in rows.items():
        of_kind[kind_of(uid)].append(row)
    for kind, those in sorted(of_kind.items()):
        states = Counter(row.state for row in those)
        ends = ", ".join(f"{count} {state}" for state, count in states.items())
        lines.append(f"| {kind} | {len(those)} | {ends} | {max(row.attempts for row in those)} |")
    lines += ["", "| injected | times |", "|---|---|"]
    lines += [f"| {name} | {count} |" for name, count in sorted((happened + record.injected).items())]
    Path(path).write_text("\n".join(lines) + "\n")
