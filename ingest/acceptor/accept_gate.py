"""The accept gate: the listener with the fewest associations accepts the next connection.

DICOM associations are few and long. The kernel alone would give several to one process and none to another. A
listener that is dead, stopped or stuck has an old heartbeat and does not count. After a few passes a listener
accepts regardless of the counters, so a wrong counter can never keep a scanner waiting.
"""

from typing import Final

from ingest.acceptor.scoreboard import (
    ACCEPTING,
    ACTIVE,
    HEARTBEAT,
    PENDING,
    ROWS,
    STATE,
    Scoreboard,
)
from ingest.clock import monotonic_ms

STALE_MS: Final = 2500
"""Age of a heartbeat after which no other listener waits for its owner. Heartbeats come every 250 ms."""

PASS_SECONDS: Final = 0.004
"""Time for which a more loaded listener leaves a waiting connection to the others."""

MAX_PASSES: Final = 5

PENDING_COUNTED: Final = 16
"""Limit on pending connections that count as load. They count so that simultaneous senders are spread.

Beyond this number connections are probably stalled. Balancing them as well would delay real senders."""


class AcceptGate:
    """Decides for one listener whether it accepts a waiting connection."""

    def __init__(self, board: Scoreboard, row: int) -> None:
        self._board = board
        self._row = row
        self._passes = 0

    def may_accept(self) -> bool:
        """Return whether this listener accepts now. If not, ask again after `PASS_SECONDS`."""
        if self._passes >= MAX_PASSES or not self._is_other_less_loaded():
            self._passes = 0
            return True
        self._passes += 1
        return False

    def reset_passes(self) -> None:
        """Forget the passes, because another listener accepted the connection."""
        self._passes = 0

    def _is_other_less_loaded(self) -> bool:
        board, own_load, oldest = self._board, self._load_of(self._row), monotonic_ms() - STALE_MS
        return any(
            board.get(row, STATE) == ACCEPTING
            and self._load_of(row) < own_load
            and board.get(row, HEARTBEAT) >= oldest
            for row in range(ROWS)
        )

    def _load_of(self, row: int) -> int:
        pending = self._board.get(row, PENDING)
        return self._board.get(row, ACTIVE) - max(pending - PENDING_COUNTED, 0)
