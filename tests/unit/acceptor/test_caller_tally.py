"""Tallies of callers: bounded whatever an attacker does, and kept when a listener dies."""

from pathlib import Path

import pytest

from ingest.acceptor import caller_tally
from ingest.acceptor.caller_tally import (
    ENTRIES_MAX,
    NETWORK_ENTRIES_MAX,
    REFUSALS,
    STALE_MS,
    WRITE_MS,
    CallerTally,
    TallyKey,
    read_tallies,
)
from ingest.acceptor.refusals import CallerRefusal, RefusalKind, refuse_association, refuse_tls
from ingest.dicom.admission import RejectionCause
from ingest.metrics.families import CLOSING_REASON, OTHER, TLS_CAUSE
from ingest.tls.rejection import REMEDIES

NOW = 1_700_000_000_000
UNKNOWN = refuse_association(RejectionCause.CALLING_AE)


def write(tally: CallerTally, at_ms: int = NOW) -> None:
    tally.write_if_due(at_ms, at_once=True)


def test_successor_of_a_dead_listener_goes_on_and_readers_add_all_listeners(tmp_path: Path) -> None:
    key = TallyKey(UNKNOWN, "10.0.0.7", "CT1", "ab" * 32)
    for row, at_ms in ((0, NOW), (0, NOW + 5), (3, NOW + 9)):
        tally = CallerTally(tmp_path, REFUSALS, row, at_ms)
        tally.record(key, at_ms, "CN=ct1")
        write(tally, at_ms)
    (entry,) = read_tallies(tmp_path, REFUSALS, NOW + 10)
    assert (entry.key, entry.subject, entry.count) == (key, "CN=ct1", 3)
    assert (entry.first_ms, entry.last_ms) == (NOW, NOW + 9)


def test_file_is_written_after_a_change_only_and_seldom(tmp_path: Path) -> None:
    tally = CallerTally(tmp_path, REFUSALS, 0, NOW)
    path = tmp_path / REFUSALS / "0.json"
    tally.write_if_due(NOW)
    assert not path.exists()
    tally.record(TallyKey(UNKNOWN, "10.0.0.7"), NOW)
    tally.write_if_due(NOW)
    first = path.read_bytes()
    tally.record(TallyKey(UNKNOWN, "10.0.0.8"), NOW)
    tally.write_if_due(NOW + WRITE_MS - 1)
    assert path.read_bytes() == first
    tally.write_if_due(NOW + WRITE_MS)
    assert b"10.0.0.8" in path.read_bytes()


def test_attacker_with_many_titles_and_networks_fills_nothing_and_hides_nobody(tmp_path: Path) -> None:
    tally = CallerTally(tmp_path, REFUSALS, 0, NOW)
    known = TallyKey(UNKNOWN, "10.0.0.7", "CT1")
    tally.record(known, NOW)
    for number in range(3_000):
        tally.record(
            TallyKey(UNKNOWN, "192.0.2.1", f"AE{number}", f"{number:064x}"), NOW, "CN=" + "x" * 9_000
        )
    assert len(tally) <= 1 + NETWORK_ENTRIES_MAX + 1
    for number in range(5_000):
        tally.record(TallyKey(refuse_tls("unknown_ca", 20), f"2001:db8:{number:x}::/64", f"AE{number}"), NOW)
    assert len(tally) <= ENTRIES_MAX + 2
    write(tally)
    assert (tmp_path / REFUSALS / "0.json").stat().st_size < ENTRIES_MAX * 1_000
    entries = read_tallies(tmp_path, REFUSALS, NOW)
    assert sum(entry.count for entry in entries) == 8_001
    assert known in {entry.key for entry in entries}
    # Once the entries are old, a new caller is counted by its own name again.
    later = NOW + STALE_MS + 1
    new = TallyKey(UNKNOWN, "10.0.0.9", "MR1")
    tally.record(new, later)
    write(tally, later)
    assert new in {entry.key for entry in read_tallies(tmp_path, REFUSALS, later)}


def test_damaged_file_and_failing_disk_stop_nobody(tmp_path: Path) -> None:
    folder = tmp_path / REFUSALS
    folder.mkdir()
    for row, text in enumerate(("{", "[1]", '[{"refusal": {"kind": "?"}}]', "null", '[{"refusal": null}]')):
        (folder / f"{row}.json").write_text(text)
        assert len(CallerTally(tmp_path, REFUSALS, row, NOW)) == 0
    assert read_tallies(tmp_path, REFUSALS, NOW) == []
    blocked = CallerTally(tmp_path / "file", REFUSALS, 0, NOW)
    (tmp_path / "file").write_text("")
    blocked.record(TallyKey(UNKNOWN, "10.0.0.7"), NOW)
    write(blocked)


def test_entry_is_left_out_after_a_month(tmp_path: Path) -> None:
    tally = CallerTally(tmp_path, REFUSALS, 0, NOW)
    tally.record(TallyKey(UNKNOWN, "10.0.0.7"), NOW)
    write(tally)
    later = NOW + caller_tally.FORGOTTEN_MS
    assert read_tallies(tmp_path, REFUSALS, later) == []
    assert len(CallerTally(tmp_path, REFUSALS, 0, later)) == 0


@pytest.mark.parametrize(
    "refusal",
    [
        *(CallerRefusal(RefusalKind.TLS, cause) for cause in TLS_CAUSE.values if cause != OTHER),
        *(CallerRefusal(RefusalKind.CONNECTION, cause) for cause in CLOSING_REASON.values if cause != OTHER),
        *(refuse_association(cause) for cause in RejectionCause if cause != RejectionCause.OTHER),
    ],
    ids=lambda refusal: f"{refusal.kind}-{refusal.cause}",
)
def test_each_cause_has_a_text_and_a_remedy(refusal: CallerRefusal) -> None:
    assert refusal.text != CallerRefusal(RefusalKind.TLS, "new").text
    assert refusal.remedy


def test_verify_code_has_the_remedy_of_the_log() -> None:
    assert refuse_tls("expired", 10).remedy == REMEDIES[10]
    assert refuse_tls("crl", 12).remedy == REMEDIES[12]
