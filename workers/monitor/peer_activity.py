"""The hours in which callers sent instances, in memory, kept up with the ledger."""

from collections.abc import Collection
from typing import Final

from ingest.clock import unix_ms
from ingest.ledger.peer_hours import HOUR_MS, HourKey, PeerHours
from ingest.workers.monitor.silence import LEARNED_HOURS

CALLERS_MAX: Final = 500
"""Callers that are remembered beside the configured ones, because anybody may call with any AE title."""

CHUNK: Final = 20_000
"""Rows that one call reads."""

OVERLAP: Final = 2_000
"""Ids that are read again: a row may become visible after one with a higher id."""

WRITE_MS: Final = 300_000
"""The last arrival of an hour is written again after this time."""


class PeerActivity:
    """What is known about the callers of a ledger.

    Attributes:
        peers: For each AE title the hours in which it sent something, each with the last arrival.
        is_behind: Whether rows of the ledger still have to be read.
    """

    def __init__(self, table: PeerHours) -> None:
        """Prepare; `learn` reads the ledger."""
        self.peers: dict[str, dict[int, int]] = {}
        self.is_behind = True
        self._table = table
        self._last_id: int | None = None
        self._is_loaded = False
        self._written: dict[HourKey, int] = {}

    def learn(self, named: Collection[str]) -> None:
        """Read the next instances of the ledger, and keep what they show.

        Args:
            named: Callers that are remembered in any case.

        Raises:
            LedgerError: The ledger is away.
        """
        if not self._is_loaded:
            self._load()
        after = self._last_id or 0
        if self._table.find_newest_id() == after:
            self.is_behind = False
            return
        rows = self._table.read_arrivals(max(0, after - OVERLAP), CHUNK)
        for row_id, name, received_at in rows:
            after = max(after, row_id)
            self._note(name.strip(), received_at, named)
        self.is_behind = len(rows) == CHUNK
        self._write(after)
        self._last_id = after

    def _load(self) -> None:
        self._last_id, self._written = self._table.read_hours()
        first_hour = unix_ms() // HOUR_MS - LEARNED_HOURS
        self._table.remove_before(first_hour)
        for (name, hour), last_at in self._written.items():
            if hour >= first_hour:
                self.peers.setdefault(name, {})[hour] = last_at
        if self._last_id is None:
            self._last_id = self._table.find_id_before(first_hour * HOUR_MS)
        self._is_loaded = True

    def _note(self, name: str, received_at: int, named: Collection[str]) -> None:
        if not name or (name not in self.peers and name not in named and len(self.peers) >= CALLERS_MAX):
            return
        hours = self.peers.setdefault(name, {})
        hour = received_at // HOUR_MS
        hours[hour] = max(hours.get(hour, 0), received_at)

    def _write(self, last_id: int) -> None:
        changes = {
            (name, hour): last_at
            for name, hours in self.peers.items()
            for hour, last_at in hours.items()
            if last_at - self._written.get((name, hour), -WRITE_MS) >= WRITE_MS
        }
        if changes or self.is_behind:
            self._table.record(changes, last_id)
            self._written |= changes
