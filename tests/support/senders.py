"""A modality for tests: keeps sending small instances over TLS, remembers what was answered with Success."""

import contextlib
import itertools
import threading
import time
from pathlib import Path

from ingest.errors import AssociationError
from ingest.requestor.association import Timeouts
from ingest.requestor.store_scu import StoreSCU
from ingest.requestor.transport import Remote
from ingest.tls.contexts import build_client_context
from tests.support.instances import CT, EXPLICIT, Made
from tests.support.nodes import Node, eventually

TIMEOUTS = Timeouts(connect_seconds=5.0, response_seconds=30.0)


def remote_of(node: Node) -> Remote:
    """The TLS port of a node, called by the trusted peer of the test's PKI."""
    return Remote(
        "localhost", node.tls_port, "INGEST", "CT1", build_client_context(node.material.tls("peer"))
    )


class Modality:
    """Sends on several associations until stopped; a lost one is made again.

    With `retries` an instance without an answer is sent again, as a modality does.

    Attributes:
        acknowledged: SOP instance UID to data set, of what was answered with 0000H.
        sent: All UIDs whose sending had begun.
        other: Answers that were not Success.
    """

    def __init__(
        self,
        node: Node,
        folder: Path,
        *,
        associations: int = 4,
        size: int = 8192,
        pause: float = 0.0,
        retries: bool = False,
    ) -> None:
        self.acknowledged: dict[str, bytes] = {}
        self.sent: set[str] = set()
        self.other: list[int] = []
        self._node = node
        self._folder = folder
        self._size = size
        self._pause = pause
        self._stop = threading.Event()
        self._study = f"1.2.826.{time.time_ns()}"
        self._numbers = itertools.count(1)
        self._retries = retries
        self._unanswered: dict[int, int] = {}
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(associations)
        ]
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Modality":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def until(self, count: int, seconds: float = 60.0) -> None:
        """Wait until so many more instances were acknowledged."""
        goal = len(self.acknowledged) + count
        eventually(lambda: len(self.acknowledged) >= goal, seconds, f"{goal} acknowledged")

    def _run(self, number: int) -> None:
        remote = remote_of(self._node)
        while not self._stop.is_set():
            try:
                association = StoreSCU.open(remote, [(CT, [EXPLICIT])], timeouts=TIMEOUTS)
            except AssociationError:
                self._stop.wait(0.05)
                continue
            with contextlib.suppress(AssociationError), association:
                while not self._stop.wait(self._pause):
                    self._store(association, number)

    def _store(self, association: StoreSCU, thread: int) -> None:
        number = self._unanswered.get(thread) or next(self._numbers)
        if self._retries:
            self._unanswered[thread] = number
        uid = f"{self._study}.{number}"
        made = Made(
            sop=uid,
            study=self._study,
            series=f"{self._study}.0",
            pixels=str(number).encode().ljust(self._size, b"x"),
        )
        path = self._folder / f"sending-{thread}"
        path.write_bytes(made.data_set)
        self.sent.add(uid)
        answer = association.store_instance(
            path, 0, None, sop_class=CT, sop_instance=uid, transfer_syntax=EXPLICIT
        )
        self._unanswered.pop(thread, None)
        if answer.status == 0:
            self.acknowledged[uid] = made.data_set
        else:
            self.other.append(answer.status)


def kept_whole(node: Node, instances: dict[str, bytes]) -> bool:
    """Whether all of these are in ledger and store; raises AssertionError for one that is damaged."""
    stored = node.stored()
    if not instances.keys() <= stored.keys():
        return False
    for uid, data_set in instances.items():
        content = stored[uid].read_bytes()
        assert content[128:132] == b"DICM", f"{uid}: no Part 10 file"
        assert content.endswith(data_set), f"{uid}: its data set differs"
    return True


def nothing_half_there(node: Node, modality: Modality) -> None:
    """No partial file, no file in the store without a row, none twice, none that was never sent."""
    assert node.partials() == []
    rows = node.query("SELECT sop_instance_uid, count(*) FROM instances GROUP BY 1 HAVING count(*) > 1")
    assert rows == [], f"twice in the ledger: {rows[:3]}"
    stored = node.stored()
    assert stored.keys() <= modality.sent
    files = {path for path in node.store.rglob("*.dcm") if ".incoming" not in path.parts}
    assert files == set(stored.values())
