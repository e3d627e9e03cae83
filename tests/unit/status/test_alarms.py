import pytest

from ingest.alarms import Severity, clear_alarm, raise_alarm, standing_alarms


def test_an_alarm_stands_until_it_is_cleared(tmp_path):
    raise_alarm(tmp_path, "segment_corrupt", "a record has bit rot", "look at the disk")
    raise_alarm(tmp_path, "segment_corrupt", "two records have bit rot", "look at the disk")

    (alarm,) = standing_alarms(tmp_path)
    assert (alarm.cause, alarm.severity) == ("two records have bit rot", Severity.DEGRADED)

    clear_alarm(tmp_path, "segment_corrupt")
    clear_alarm(tmp_path, "segment_corrupt")
    assert standing_alarms(tmp_path) == []


def test_an_alarm_that_is_renewed_keeps_the_time_when_it_began(tmp_path):
    raise_alarm(tmp_path, "disk_full", "no space", "make room")
    began = standing_alarms(tmp_path)[0].since_ms
    raise_alarm(tmp_path, "disk_full", "still no space", "make room")

    assert standing_alarms(tmp_path)[0].since_ms == began > 0


def test_the_worst_alarm_comes_first(tmp_path):
    raise_alarm(tmp_path, "quarantine_full.PACS", "full", "drop")
    raise_alarm(tmp_path, "store_missing", "gone", "mount it", severity=Severity.FAILING)

    assert [alarm.name for alarm in standing_alarms(tmp_path)] == ["store_missing", "quarantine_full.PACS"]


def test_alarms_that_cannot_be_written_or_read_fail_nothing(tmp_path):
    (tmp_path / "run").write_text("not a folder")
    raise_alarm(tmp_path / "run", "disk_full", "no space", "make room")
    assert standing_alarms(tmp_path / "run") == []

    (tmp_path / "alarms").mkdir()
    (tmp_path / "alarms" / "broken").write_text("{")
    assert standing_alarms(tmp_path) == []


@pytest.mark.parametrize("name", ["../escape", "", "Name", "a b", "a.b/c"])
def test_a_name_never_leads_out_of_the_folder(tmp_path, name):
    with pytest.raises(ValueError, match="no name of an alarm"):
        raise_alarm(tmp_path, name, "", "")
