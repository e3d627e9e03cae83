"""Quarantine keeps the same thing once, bounds what was refused, and forgets nothing acknowledged."""

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import make_url

from ingest.alarms import standing_alarms
from ingest.ledger import DeliveryState, Instance, InstanceState, Ledger
from ingest.ledger.instance_filter import InstanceFilter
from ingest.ledger.migrations import configuration
from ingest.operations.instances import list_instances, quarantined_to_json
from ingest.status.report import gather_status
from ingest.workers.quarantine.command import drop_instances, release_instances, retry_instances
from tests.support.instances import Made
from tests.support.ledgers import find_newest_instances
from tests.support.persisting import Site
from tests.support.retaining import fill, left, made, remove
from tests.unit.persist.test_persist_contested import delivery_of

Sites = Callable[..., Site]

STORED, QUARANTINED, REMOVED = InstanceState.STORED, InstanceState.QUARANTINED, InstanceState.REMOVED
FIRST, SECOND = Made(), Made(pixels=b"other")
KEY = "1.2.3/1.2.3.1/1.2.3.4.dcm"
BROKEN = b"no DICOM file"


def refuse(site: Site, *files: bytes, status: str = "A900") -> None:
    """Have a worker take copies of what a listener refused."""
    for file in files:
        site.number += 1
        site.hand_off(site.spooled(file, suffix=f".{status}"))
    site.work()


def quarantined(site: Site) -> list[Instance]:
    return [row for row in site.instances() if row.state is QUARANTINED]


def alarms(site: Site) -> list[str]:
    return [str(alarm["name"]) for alarm in gather_status(site.config)["alarms"]]


@pytest.mark.parametrize("at_once", [True, False], ids=["one batch", "one by one"])
def test_same_thing_is_kept_once_and_counted(either_ledger: Sites, at_once: bool) -> None:
    site = either_ledger()
    files = [FIRST.file, Made(calling="CT2").file] * 5
    for some in [files] if at_once else [[file] for file in files]:
        refuse(site, *some)
    [row] = site.instances()
    assert (row.state, row.times, row.refused_status) == (QUARANTINED, 10, 0xA900)
    assert [path.read_bytes() for path in site.quarantined()] == [FIRST.file]
    assert site.settled()
    refuse(site, FIRST.file, status="C000")
    refuse(site, SECOND.file, Made(sop="1.2.3.5").file)
    assert sorted(row.times for row in quarantined(site)) == [1, 1, 1, 10]
    assert len(site.quarantined()) == 4


def test_conflict_that_comes_again_is_counted_and_what_is_listed_says_so(site: Site) -> None:
    site.receive(FIRST)
    for _ in range(3):
        site.receive(SECOND)
        site.work()
    [row] = quarantined(site)
    assert (row.times, row.refused_status) == (3, 0)
    [found] = list_instances(site.config, InstanceFilter(states=(QUARANTINED,)), 10, None)
    said = quarantined_to_json(found.instance, site.config.quarantine_dir)
    assert (said["times"], said["kind"]) == (3, "conflict")


def test_copy_whose_file_was_lost_is_kept_again(site: Site) -> None:
    refuse(site, FIRST.file)
    site.quarantined()[0].unlink()
    refuse(site, FIRST.file)
    assert [path.read_bytes() for path in site.quarantined()] == [FIRST.file]
    assert [row.times for row in quarantined(site)] == [1, 1]


def test_what_was_dropped_and_comes_again_is_kept_again(site: Site) -> None:
    refuse(site, FIRST.file)
    drop_instances(site.config, [site.instances()[0].id])
    refuse(site, FIRST.file)
    assert [row.state for row in site.instances()] == [REMOVED, QUARANTINED]
    assert len(site.quarantined()) == 1


def test_worker_that_dies_after_its_commit_counts_no_row_twice(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def dying(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("ingest.workers.persist.batch.PersistBatch._release_spool_entry", dying)
        site.number += 1
        site.hand_off(site.spooled(FIRST.file, suffix=".A900"))
        with pytest.raises(Killed):
            site.work()
    site.work()
    [row] = site.instances()
    assert row.times == 1
    assert site.settled()


def test_copies_of_what_was_refused_have_a_bound_and_what_was_acknowledged_has_none(
    either_ledger: Sites,
) -> None:
    most = 2 * len(FIRST.file) + 10
    site = either_ledger(receive={"quarantine_max_bytes": most})
    refuse(site, *(Made(sop=f"1.9.{number}").file for number in range(6)))
    assert len(site.quarantined()) == len(site.instances()) == 2
    assert site.settled()
    [alarm] = standing_alarms(site.config.run_dir)
    assert "quarantine_max_bytes" in alarm.remedy
    # Acknowledged ones are kept all the same.
    site.receive(FIRST)
    site.receive(SECOND)
    site.receive(BROKEN)
    site.work()
    assert len(site.quarantined()) == 4
    drop_instances(site.config, [row.id for row in quarantined(site) if row.refused_status])
    assert standing_alarms(site.config.run_dir) == []
    refuse(site, Made(sop="1.9.9").file)
    assert len(site.quarantined()) == 3


def test_no_study_leaves_for_copies_of_what_was_refused(either_ledger: Sites) -> None:
    site = either_ledger(routes=[{"to": []}])
    fill(site, *(made(study) for study in range(3)))
    size = len(made(0).file)
    refuse(site, Made(pixels=bytes(10 * size)).file)

    def disk(_: object) -> os.statvfs_result:
        # Nearly full, for what was refused alone.
        return os.statvfs_result((1, 1, 100 * size, 6 * size, 6 * size, 0, 0, 0, 0, 255))

    assert remove(site, statvfs=disk, high_watermark=0.9, low_watermark=0.9).studies == 0
    assert left(site) == ["2.0", "2.1", "2.2"]
    drop_instances(site.config, [row.id for row in quarantined(site)])
    assert remove(site, statvfs=disk, high_watermark=0.9, low_watermark=0.9).studies == 3


# --- what was set aside


def set_aside(site: Site, monkeypatch: pytest.MonkeyPatch, *ones: Made) -> list[int]:
    """Instances that a worker has given up for a fault that is mended since; their ids."""
    before = {row.id for row in site.instances()}
    with monkeypatch.context() as patch:
        patch.setattr("ingest.workers.persist.batch.DELIVERIES_MAX", 0)
        patch.setattr("ingest.workers.store.keys.StoreKeyTemplate.make_key", _failing)
        for one in ones:
            site.receive(one)
        site.work()
    assert len(quarantined(site)) >= len(ones)
    return [row.id for row in site.instances() if row.id not in before]


def _failing(*_: object, **__: object) -> str:
    raise RuntimeError("a fault of ours")


def test_what_was_set_aside_is_an_alarm_until_it_is_tried_again(
    either_ledger: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = either_ledger()
    refuse(site, Made(sop="1.9.9").file)
    assert alarms(site) == []
    number, other = set_aside(site, monkeypatch, FIRST, Made(sop="1.2.3.5"))
    assert alarms(site) == ["set_aside"]
    assert "2 acknowledged instances" in gather_status(site.config)["alarms"][0]["cause"]
    assert not retry_instances(site.config, [number]).failures
    assert (site.config.store_root / KEY).read_bytes() == FIRST.file
    assert delivery_of(site, number) == {"pacs": DeliveryState.WAITING}
    assert not retry_instances(site.config, []).failures
    assert delivery_of(site, other) == {"pacs": DeliveryState.WAITING}
    assert alarms(site) == []
    assert [row.refused_status for row in quarantined(site)] == [0xA900]


def test_retry_replaces_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    same, other = set_aside(site, monkeypatch, Made(calling="CT2"), SECOND)
    site.receive(FIRST)
    site.work()
    [failed] = retry_instances(site.config, [same, other]).failures
    assert "release" in failed.error
    states = {row.id: row.state for row in site.instances()}
    assert (states[same], states[other]) == (REMOVED, QUARANTINED)
    assert (site.config.store_root / KEY).read_bytes() == FIRST.file
    assert [path.read_bytes() for path in site.quarantined()] == [SECOND.file]


def test_retry_leaves_what_was_refused_and_what_cannot_be_read(site: Site) -> None:
    refuse(site, FIRST.file)
    site.receive(BROKEN)
    site.work()
    refused, broken = retry_instances(site.config, [row.id for row in site.instances()]).failures
    assert "A900H" in refused.error
    assert "cannot be read" in broken.error
    assert len(site.quarantined()) == 2


def test_what_gave_way_to_a_release_is_no_alarm(site: Site) -> None:
    for one in (FIRST, SECOND):
        site.receive(one)
        site.work()
    assert alarms(site) == ["set_aside"]
    release_instances(site.config, [quarantined(site)[0].id])
    assert len(quarantined(site)) == 1
    assert alarms(site) == []


def test_file_of_the_quarantine_that_cannot_be_read_now_fails_without_a_traceback(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = set_aside(site, monkeypatch, FIRST, Made(sop="1.2.3.5"))
    real = os.pread

    def failing(fd: int, *rest: int) -> bytes:
        if "0001.dcm" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(5, "Input/output error")
        return real(fd, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", failing)
        [failed] = retry_instances(site.config, [first, second]).failures
    assert "Input/output error" in failed.error
    states = {row.id: row.state for row in site.instances()}
    assert (states[first], states[second]) == (QUARANTINED, STORED)


def test_older_ledger_learns_what_is_damaged_from_its_notes(either_ledger: Sites) -> None:
    site = either_ledger()
    refuse(site, FIRST.file, SECOND.file)
    with site.ledger() as ledger, ledger.database.begin_write() as connection:
        command.downgrade(configuration(connection), "0017")
        connection.exec_driver_sql(
            "UPDATE instances SET note = 'damaged in the spool: wrong bytes' WHERE id ="
            " (SELECT min(id) FROM instances)"
        )
    with site.ledger() as ledger:
        ledger.migrate()
    assert [row.is_damaged_in_spool for row in site.instances()] == [True, False]


def test_older_ledger_learns_what_was_refused_from_its_notes(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    ledger = Ledger(url)
    ledger.migrate()
    with ledger.database.begin_write() as connection:
        command.downgrade(configuration(connection), "0008")
    ledger.close()
    columns = "state, sop_instance_uid, sop_class_uid, study_uid, series_uid, transfer_syntax_uid, store_key,"
    columns += (
        " size, data_set_offset, calling_ae, called_ae, source, spool_ref, note, received_at, stored_at"
    )
    notes = ["refused with A900H: it does not match", "refused with C000H: unreadable", "another object"]
    with sqlite3.connect(str(make_url(url).database)) as connection:
        for number, note in enumerate(notes):
            values = ["quarantined", *[""] * 5, str(number), 7, 0, "", "", "", f"s:{number}", note, 0, 0]
            marks = ",".join("?" * len(values))
            connection.execute(f"INSERT INTO instances ({columns}) VALUES ({marks})", values)
    connection.close()
    ledger.migrate()
    found = {row.note: row.refused_status for row in find_newest_instances(ledger)}
    assert [found[note] for note in notes] == [0xA900, 0xC000, 0]
    assert ledger.quarantine.sum_refused_bytes() == 14
    assert ledger.quarantine.count_acknowledged()[0] == 1
    ledger.close()
