"""The snapshot of a node that all browsers share: the status, with rates since the last one.

A snapshot may take a good part of a second with a large ledger. Therefore one thread at a time takes one, and
every page and stream uses it until it is old.
"""

import hashlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ingest.config.model import Config
from ingest.console.live.flow import FlowNode
from ingest.console.live.senders import RATE_SECONDS, SenderRates
from ingest.console.live.shared import BUSY_FACTOR
from ingest.status.report import gather_status

_HISTORY: Final = 64


@dataclass(frozen=True, slots=True)
class Totals:
    """Counters that only grow, at one moment."""

    at: float
    received: int
    received_bytes: int
    stored: int | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A node at one moment.

    Attributes:
        at: Time of `time.monotonic`.
        seconds: Time that it took to take it.
        status: The status from `ingest.status.report.gather_status`.
        received_per_second: Instances; None in the first snapshot.
        bytes_per_second: Bytes of received data sets; None in the first snapshot.
        stored_per_second: Instances that workers stored; None in the first snapshot, or without a ledger.
        senders: The senders of the picture.
        versions: For each kind of list, a word that changes with its content.
    """

    at: float
    seconds: float
    status: Mapping[str, Any]
    received_per_second: float | None
    bytes_per_second: float | None
    stored_per_second: float | None
    senders: Sequence[FlowNode]
    versions: Mapping[str, str]

    @property
    def dead(self) -> int:
        """Number of dead deliveries."""
        states = self.status["ledger"].get("deliveries", {}).values()
        return sum(counts.get("dead", 0) for counts in states)

    @property
    def quarantined(self) -> int:
        """Number of instances in quarantine."""
        return int(self.status["ledger"].get("instances", {}).get("quarantined", 0))

    def count_attention(self) -> dict[str, Any]:
        """Return the numbers beside the pages in the navigation."""
        problems = self.status["problems"]
        return {
            "overview": len(problems),
            "fails": any(problem["severity"] == "failing" for problem in problems),
            "deliveries": self.dead,
            "quarantine": self.quarantined,
        }


class SnapshotSource:
    """Takes snapshots of one node, and keeps the last one."""

    def __init__(self, config: Config, gather: Callable[[Config], dict[str, Any]] = gather_status) -> None:
        self._config = config
        self._gather = gather
        self._lock = threading.Lock()
        self._last: Snapshot | None = None
        self._is_expired = False
        self._senders = SenderRates(config)
        self._history: deque[Totals] = deque(maxlen=_HISTORY)

    def read(self, max_age_seconds: float = 2.0) -> Snapshot:
        """Return a snapshot that is not older. If a thread takes one already, wait for it."""
        with self._lock:
            last = self._last
            bound = 0.0 if last is None else max(max_age_seconds, BUSY_FACTOR * last.seconds)
            if last is None or time.monotonic() - last.at > bound or self._is_expired:
                self._is_expired = False
                self._last = last = self._take()
            return last

    def expire(self) -> None:
        """Forget the last snapshot, because a person has changed something.

        The lock is held while a snapshot is taken, and the event loop calls this: it must not wait. `read`
        clears the mark before it takes a snapshot, so no change is missed.
        """
        self._is_expired = True

    def peek(self) -> Snapshot | None:
        """Return the last snapshot, whatever its age."""
        return self._last

    def _take(self) -> Snapshot:
        started = time.monotonic()
        status = self._gather(self._config)
        at = time.monotonic()
        totals = _sum_totals(at, status)
        before = self._find_earlier(totals)
        self._history.append(totals)
        return Snapshot(
            at,
            at - started,
            status,
            _rate(None if before is None else (before.at, before.received), (at, totals.received)),
            _rate(
                None if before is None else (before.at, before.received_bytes), (at, totals.received_bytes)
            ),
            _rate(
                None if before is None or before.stored is None else (before.at, before.stored),
                None if totals.stored is None else (at, totals.stored),
            ),
            self._senders.read(at),
            _make_versions(status),
        )

    def _find_earlier(self, now: Totals) -> Totals | None:
        """Return the oldest totals within the time of a rate. A restarted node counts from 0 again."""
        while self._history and (
            now.at - self._history[0].at > RATE_SECONDS or self._history[0].received > now.received
        ):
            self._history.popleft()
        return self._history[0] if self._history else None


def _sum_totals(at: float, status: Mapping[str, Any]) -> Totals:
    listeners, ledger = status["listeners"], status["ledger"]
    stored = None
    if ledger["reachable"]:
        # Instances leave "stored" when retention removes them, but never the sum of all states.
        stored = sum(ledger["instances"].values())
    return Totals(
        at, sum(row["instances"] for row in listeners), sum(row["bytes"] for row in listeners), stored
    )


def _rate(before: tuple[float, float] | None, now: tuple[float, float] | None) -> float | None:
    if before is None or now is None or now[0] - before[0] < 0.2:
        return None
    return max(0.0, (now[1] - before[1]) / (now[0] - before[0]))


def _make_versions(status: Mapping[str, Any]) -> dict[str, str]:
    """Return a word for each kind of list. A list is read again when its word changes."""
    ledger = status["ledger"]
    circuits = [
        (row["name"], row["circuit"], row["failures"], row["paused_at_ms"], row["last_error"])
        for row in ledger.get("destinations", ())
    ]
    deliveries = [ledger.get("deliveries"), circuits]
    return {
        "studies": _digest([ledger.get("instances"), ledger.get("deliveries")]),
        "deliveries": _digest(deliveries),
        "quarantine": _digest([ledger.get("instances", {}).get("quarantined", 0)]),
        "peers": _digest([[row["associations"], row["refused"]] for row in status["listeners"]]),
    }


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:12]
