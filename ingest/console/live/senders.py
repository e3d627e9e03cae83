"""The senders of the picture, from the counters that listeners keep for each configured caller."""

import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final

from ingest.config.model import ANY_AE_TITLE, Config
from ingest.console.live.flow import FlowNode, make_sender
from ingest.metrics.board import MetricsBoard, merge_samples
from ingest.metrics.board_file import read_boards
from ingest.metrics.families import INSTANCES, OTHER

RATE_SECONDS: Final = 10.0
"""A rate covers this time, or less after the start of the console."""

_HISTORY: Final = 64


class SenderRates:
    """Rates of the senders since the last readings. One thread at a time uses it."""

    def __init__(self, config: Config) -> None:
        """Begin without history."""
        self._config = config
        self._history: deque[tuple[float, Mapping[str, float]]] = deque(maxlen=_HISTORY)
        self._seen_ms: dict[str, int] = {}

    def read(self, at: float) -> list[FlowNode]:
        """Return the senders, the busiest first.

        Args:
            at: Time of `time.monotonic`.
        """
        totals = sum_by_sender(read_boards(self._config.run_dir).values())
        now = time.time()
        if self._history:
            last = self._history[-1][1]
            for name, total in totals.items():
                if total > last.get(name, 0):
                    self._seen_ms[name] = int(now * 1000)
        rates = self._find_rates(at, totals)
        self._history.append((at, totals))
        nodes = [
            make_sender(
                "other callers" if name == OTHER else name,
                rates.get(name),
                totals[name],
                self._seen_ms.get(name),
                now,
            )
            for name in totals
            if name != OTHER or totals[name]
        ]
        return sorted(nodes, key=lambda node: -(node.rate or 0.0))

    def _find_rates(self, at: float, totals: Mapping[str, float]) -> dict[str, float]:
        # A node that was started again counts from 0.
        while self._history and (
            at - self._history[0][0] > RATE_SECONDS
            or any(total < self._history[0][1].get(name, 0) for name, total in totals.items())
        ):
            self._history.popleft()
        if not self._history or at - self._history[0][0] < 0.2:
            return {}
        began, before = self._history[0]
        return {name: (total - before.get(name, 0)) / (at - began) for name, total in totals.items()}


def sum_by_sender(boards: Iterable[MetricsBoard]) -> dict[str, float]:
    """Return the number of instances of each configured caller, and of all others together."""
    found: dict[str, float] = {}
    for (name,), value in merge_samples(boards, INSTANCES).items():
        if name != ANY_AE_TITLE and isinstance(value, int | float):
            found[name] = value
    return found
