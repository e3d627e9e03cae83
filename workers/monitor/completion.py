"""Completion of studies and series: the task of the monitor that judges them.

INVARIANT 2: everything is judged from ledger, spool and scoreboard, and nothing from Redis. A monitor that
dies leaves nothing half done, because one transaction writes the event and makes the deliveries due. Of two
monitors that judge the same study, one finds it complete already.
"""

import time
from typing import Final

import structlog

from ingest.acceptor.association_id import find_id_range
from ingest.acceptor.scoreboard import Scoreboard
from ingest.config.model import Config
from ingest.ledger import SCHEMA_VERSION, Ledger
from ingest.ledger.receptions import Reception, SpoolMark
from ingest.spool.inventory import find_oldest_received_ms
from ingest.spool.spool import read_spool_id
from ingest.workers.monitor.completion_rule import find_low_water, judge_completion

PAGE: Final = 200

SEEN_SHARE: Final = 3
"""An open association is noted again after this part of `complete_idle_seconds`."""

SILENT_MS: Final = 300_000
"""A host that wrote no mark for this long does not hold up studies any more."""

KEEP_MS: Final = 90 * 24 * 3_600_000
"""How long complete studies are remembered."""

BOUND_SECONDS: Final = 60.0
CLEAN_UP_SECONDS: Final = 3600.0

log = structlog.get_logger()


class CompletionJudge:
    """Judges which studies and series are complete, and makes the deliveries due that await them."""

    def __init__(self, config: Config, ledger: Ledger) -> None:
        self._config = config
        self._receptions = ledger.receptions
        self._ledger = ledger
        self._idle_ms = config.node.complete_idle_seconds * 1000
        self._own_ids = find_id_range(config.data_dir)
        self._is_migrated = False
        self._bound_at = self._clean_up_at = 0.0

    def run(self) -> None:
        """Judge what is due.

        Raises:
            LedgerError: The ledger is away.
            OSError: The spool cannot be read.
        """
        if not self._is_migrated:
            # At the first start another process may still create the tables.
            if self._ledger.read_schema_version() != SCHEMA_VERSION:
                return
            self._is_migrated = True
        self._update_carriers()
        if time.monotonic() >= self._bound_at:
            self._bound_at = time.monotonic() + BOUND_SECONDS
            self._receptions.bound_times(self._ledger.unix_ms())
        self._judge_due()
        if time.monotonic() >= self._clean_up_at:
            self._clean_up_at = time.monotonic() + CLEAN_UP_SECONDS
            self._receptions.remove_ended(self._ledger.unix_ms() - KEEP_MS)

    def _update_carriers(self) -> None:
        """Forget own associations that have ended, and note which of the others made progress."""
        carriers = self._receptions.find_carriers(*self._own_ids)
        if not carriers:
            return
        path = self._config.run_dir / "scoreboard"
        board = Scoreboard.open_reader(path)
        # Without listeners no association is open.
        still_open = board.list_open_associations() if board is not None else {}
        if not still_open and path.exists() and (board is None or not board.exists):
            return  # it cannot be read now
        ended = [number for number in carriers if number not in still_open]
        now, seen = self._ledger.unix_ms(), {}
        for number, seen_at in carriers.items():
            at_ms = now - still_open.get(number, 0)
            if number in still_open and at_ms > seen_at + self._idle_ms // SEEN_SHARE:
                seen[number] = at_ms
        if ended or seen:
            self._receptions.update_carriers(ended, seen)

    def _judge_due(self) -> None:
        # Look at the spool before the ledger: what leaves the spool in between is in the ledger by then.
        now = self._ledger.unix_ms()
        page = self._receptions.find_due(now, 1)
        is_shared = self._ledger.database.dialect == "postgresql"
        if not page and not is_shared:
            return
        low_water = self._find_low_water(now, is_shared=is_shared)
        last: Reception | None = None
        while page := self._receptions.find_due(low_water, PAGE, last):
            last = page[-1]
            for reception in page:
                if judge_completion(reception, low_water, now, self._idle_ms):
                    self._complete(reception)
            if len(page) < PAGE:
                return

    def _find_low_water(self, now: int, *, is_shared: bool) -> int:
        root = self._config.spool_dir
        oldest = find_oldest_received_ms(root)
        own = SpoolMark(read_spool_id(root) or str(root), now if oldest is None else min(now, oldest), now)
        if not is_shared:
            return own.low_water
        if self._receptions.count_receptions().due_at is not None:
            # Other hosts judge too. Without a study that waits, the mark is of no use.
            self._receptions.write_mark(own)
        return find_low_water([own, *self._receptions.read_marks()], now, SILENT_MS)

    def _complete(self, reception: Reception) -> None:
        # Forward workers find in the ledger what is due from now on.
        if not self._receptions.complete(reception, self._ledger.unix_ms()):
            return
        log.info(
            "series_complete" if reception.series_uid else "study_complete",
            study=reception.study_uid,
            **({"series": reception.series_uid} if reception.series_uid else {}),
            generation=reception.generation,
            instances=reception.instances,
        )
