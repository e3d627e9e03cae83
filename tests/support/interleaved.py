"""Many studies from many senders at once: each sender changes the study with nearly every instance."""

import contextlib
import itertools
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from ingest.errors import AssociationError
from ingest.requestor.store_scu import StoreSCU
from tests.support.instances import CT, EXPLICIT, Made
from tests.support.nodes import Node, eventually
from tests.support.senders import TIMEOUTS, remote_of

ACTIVE = 40
"""So many studies are sent at a time. More would make the gaps within a study long."""

PER_ASSOCIATION = 25


def interleave(studies: int, instances: int, seed: int) -> list[tuple[str, int]]:
    """Return study and number of each instance: a few studies at a time, in random order."""
    chance = random.Random(seed)
    root = f"1.2.826.{time.time_ns()}"
    waiting = [(f"{root}.{study}", list(range(instances))) for study in range(studies)]
    active, order = waiting[:ACTIVE], []
    del waiting[:ACTIVE]
    while active:
        at = chance.randrange(len(active))
        study, left = active[at]
        order.append((study, left.pop()))
        if not left:
            active[at : at + 1] = [waiting.pop(0)] if waiting else []
    return order


class InterleavedSenders:
    """Sends all instances, each until it is answered with Success.

    Attributes:
        acknowledged: SOP Instance UIDs, with the time of the last response of each study.
    """

    def __init__(
        self, node: Node, folder: Path, order: list[tuple[str, int]], *, senders: int = 16, pause: float = 0.0
    ) -> None:
        self.acknowledged: set[str] = set()
        self.ended: dict[str, float] = {}
        self._node, self._folder, self._pause = node, folder, pause
        self._order = iter(order)
        self._lock = threading.Lock()
        self._count = len(order)
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(senders)
        ]
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "InterleavedSenders":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._order = iter(())
        for thread in self._threads:
            thread.join(60)

    def until(self, share: float, seconds: float = 300.0) -> None:
        """Wait until this share of all instances is acknowledged."""
        goal = int(share * self._count)
        eventually(lambda: len(self.acknowledged) >= goal, seconds, f"{goal} of {self._count} acknowledged")

    def _run(self, number: int) -> None:
        path = self._folder / f"sending-{number}"
        remote = remote_of(self._node)
        mine = self._take()
        while mine is not None:
            # A lost association is made again, and the instance that it was at is sent again.
            with contextlib.suppress(AssociationError):
                with StoreSCU.open(remote, [(CT, [EXPLICIT])], timeouts=TIMEOUTS) as association:
                    for _ in range(PER_ASSOCIATION):
                        if mine is None:
                            return
                        self._store(association, path, *mine)
                        mine = self._take()
                continue
            time.sleep(0.05)

    def _take(self) -> tuple[str, int] | None:
        with self._lock:
            return next(self._order, None)

    def _store(self, association: StoreSCU, path: Path, study: str, number: int) -> None:
        uid = f"{study}.{number}"
        made = Made(sop=uid, study=study, series=f"{study}.{number % 3}0", pixels=uid.encode().ljust(512))
        path.write_bytes(made.data_set)
        answer = association.store_instance(
            path, 0, None, sop_class=CT, sop_instance=uid, transfer_syntax=EXPLICIT
        )
        assert answer.status == 0
        self.acknowledged.add(uid)
        self.ended[study] = time.time()
        time.sleep(self._pause)


def kill_in_turn(node: Node, senders: InterleavedSenders, rounds: int) -> Iterator[str]:
    """Kill listeners, workers, the monitor and Redis in turn, spread over the whole time of sending."""
    victims = itertools.cycle(["ingest-listen", "ingest-persist", "ingest-monitor", "valkey-server"])
    for number, victim in zip(range(rounds), victims, strict=False):
        senders.until((number + 1) / (rounds + 1))
        node.kill_child(victim)
        yield victim
