"""Who accepts the next connection: the listener that serves the fewest associations.

DICOM associations are few and long; the kernel would give several to one process and none to another. A
listener that is dead, stopped or stuck has a stale heartbeat and does not count; and whatever the counts say,
a connection that was passed over a few times is accepted by whoever sees it, so that no mistake here can hold
a scanner back.
"""

from typing import Final

from ingest.acceptor.scoreboard import (
    ACCEPTING,
    ACTIVE,
    HEARTBEAT,
    NEWCOMERS,
    ROWS,
    STATE,
    Scoreboard,
)
from ingest.clock import monotonic_ms

STALE_MS: Final = 2500
"""Without a heartbeat for so long, a listener is not waited for; it gives one every second."""

PASS_SECONDS: Final = 0.004
"""How long a listener that is not among the least loaded leaves a waiting connection to the others."""

MAX_PASSES: Final = 5

NEWCOMERS_COUNTED: Final = 16
"""Connections without an association that count as load, so that senders who come together spread. More than
these are not sound senders but stall: to spread them, too, would keep waiting who comes after them."""


class AcceptGate:
    """The decision of one listener, taken at each waiting connection."""

    def __init__(self, board: Scoreboard, row: int) -> None:
        self._board = board
        self._row = row
        self._passes = 0

    def open(self) -> bool:
        """Whether this listener shall accept now; if not, ask again after `PASS_SECONDS`."""
        if self._passes >= MAX_PASSES or not self._less_loaded_listener():
            self._passes = 0
            return True
        self._passes += 1
        return False

    def reset(self) -> None:
        """Somebody else took the connection."""
        self._passes = 0

    def _less_loaded_listener(self) -> bool:
        board, mine, oldest = self._board, self._load(self._row), monotonic_ms() - STALE_MS
        return any(
            board.get(row, STATE) == ACCEPTING
            and self._load(row) < mine
            and board.get(row, HEARTBEAT) >= oldest
            for row in range(ROWS)
        )

    def _load(self, row: int) -> int:
        newcomers = self._board.get(row, NEWCOMERS)
        return self._board.get(row, ACTIVE) - max(newcomers - NEWCOMERS_COUNTED, 0)
