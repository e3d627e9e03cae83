"""When a study is complete: a table, and what must hold for every one."""

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.acceptor.association_id import find_id_range
from ingest.acceptor.scoreboard import Scoreboard
from ingest.clock import unix_ms
from ingest.config.model import Config, NodeSettings
from ingest.ledger import CompletionTerms, Ledger
from ingest.ledger.receptions import Reception, SpoolMark
from ingest.workers.monitor.completion import CompletionJudge
from ingest.workers.monitor.completion_rule import find_low_water, judge_completion
from tests.support.ledgers import row

IDLE = 300
SILENT = 5000


def received(due_at: int, seen_at: int | None = None) -> Reception:
    return Reception("1.2", "", 1, 100, due_at - 60, 5, due_at, seen_at)


@pytest.mark.parametrize(
    ("reception", "low_water", "is_complete"),
    [
        (received(1000), 1000, True),
        (received(1001), 1001, False),
        # An entry of 999 waits in the spool, and may belong to the study.
        (received(1000), 999, False),
        (received(900), 950, True),
        (received(900, seen_at=1000), 1000, False),
        (received(900, seen_at=701), 1000, False),
        (received(900, seen_at=700), 1000, True),
    ],
)
def test_table_of_completion(reception: Reception, low_water: int, is_complete: bool) -> None:
    assert judge_completion(reception, low_water, 1000, IDLE) is is_complete


@pytest.mark.parametrize(
    ("marks", "low_water"),
    [
        ([], 9000),
        ([SpoolMark("a", 8999, 9000)], 8999),
        ([SpoolMark("a", 8000, 8500), SpoolMark("b", 7000, 8600)], 7000),
        ([SpoolMark("a", 8000, 4001)], 8000),
        ([SpoolMark("a", 8000, 4000)], 9000),
        ([SpoolMark("a", 9999, 9000)], 9000),
    ],
)
def test_table_of_low_water(marks: list[SpoolMark], low_water: int) -> None:
    assert find_low_water(marks, 9000, SILENT) == low_water


times = st.integers(0, 20_000)


@given(
    times,
    st.none() | times,
    st.lists(st.builds(SpoolMark, st.just("s"), times, times), max_size=3),
    times,
)
def test_nothing_completes_while_something_may_come_and_everything_does_at_last(
    due_at: int, seen_at: int | None, marks: Sequence[SpoolMark], now: int
) -> None:
    reception = received(due_at, seen_at)
    low_water = find_low_water(marks, now, SILENT)
    if judge_completion(reception, low_water, now, IDLE):
        assert due_at <= now
        assert all(due_at <= mark.low_water for mark in marks if mark.seen_at > now - SILENT)
        assert seen_at is None or now - seen_at >= IDLE
    late = max(due_at, seen_at or 0, now) + IDLE
    assert judge_completion(reception, late, late, IDLE)
    # What is complete stays so, for as long as nothing comes.
    if judge_completion(reception, low_water, now, IDLE):
        assert judge_completion(reception, low_water + 1, now + 1, IDLE)


def test_monitor_waits_for_own_associations_its_spool_and_other_hosts(tmp_path: Path, ledger: Ledger) -> None:
    (tmp_path / "run").mkdir()
    ready = tmp_path / "spool" / "L0" / "ready"
    ready.mkdir(parents=True)
    config = Config(node=NodeSettings(data_dir=tmp_path, record_completions=True, complete_idle_seconds=30))
    board = Scoreboard.create(tmp_path / "run" / "scoreboard")
    entry = board.claim_association(0, 5)
    assert entry is not None
    association = find_id_range(tmp_path)[0]
    board.name_association(entry, association)
    stored_at = unix_ms() - 20_000
    terms = CompletionTerms(association=association, default_ms=10_000)
    ledger.instances.record([row(1, stored_at=stored_at, received_at=stored_at, completion=terms)])
    judge = CompletionJudge(config, ledger)

    def count() -> int:
        judge.run()
        return len(ledger.receptions.list_events(9))

    assert count() == 0, "its association is open"
    assert ledger.receptions.find_carriers(association, association)[association] > stored_at + 10_000
    (tmp_path / "run" / "scoreboard").rename(tmp_path / "whole")
    (tmp_path / "run" / "scoreboard").write_bytes(b"short")
    assert count() == 0, "it cannot be read"
    assert association in ledger.receptions.find_carriers(association, association)
    (tmp_path / "whole").rename(tmp_path / "run" / "scoreboard")
    board.release_association(entry)
    waiting = ready / f"{(stored_at + 5000) * 1_000_000:016x}-1.dcm"
    waiting.touch()
    (ready / "notes.dcm").touch()
    assert count() == 0, "an entry of that time waits in the spool"
    assert ledger.receptions.find_carriers(association, association) == {}
    waiting.unlink()
    if ledger.database.dialect == "postgresql":
        other = SpoolMark("other", stored_at + 9000, unix_ms())
        ledger.receptions.write_mark(other)
        assert count() == 0, "another host is not so far"
        assert {mark.spool for mark in ledger.receptions.read_marks()} == {"other", str(tmp_path / "spool")}
        ledger.receptions.write_mark(SpoolMark("other", stored_at + 10_001, unix_ms()))
    assert count() == 1
    assert count() == 1, "once"
    [event] = ledger.receptions.list_events(9)
    assert (event.event, event.generation, event.instances) == ("complete", 1, 1)
    assert event.at / 1000 <= time.time() + 1
