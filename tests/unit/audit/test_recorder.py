"""Functions that record events: what each one writes, and that no failure reaches their callers."""

import contextlib
import json
import shutil

import pytest

from ingest.alarms import standing_alarms
from ingest.audit import (
    Action,
    AuditTrail,
    StudyObject,
    record_action,
    record_application,
    record_query,
    record_user_login,
    record_user_logout,
)
from ingest.audit.queue import BLOCK_BYTES, AuditQueue
from ingest.audit.study_objects import record_study_access
from ingest.config.model import Config, LedgerSettings
from ingest.dicom.study_attributes import StudyAttributes
from ingest.ledger import Ledger
from tests.support.audit import Said, validate
from tests.support.ledgers import row


def configure(folder, **audit):
    return Config.model_validate(
        {"node": {"name": "node-1", "data_dir": folder}, "audit": {"host": "arr", **audit}}
    )


@pytest.fixture
def config(tmp_path):
    return configure(tmp_path)


def queue_of(config):
    return AuditTrail.open(config).queue


def read_all(config):
    queue = queue_of(config)
    return [Said.of_syslog(queue.read(name)) for name in queue.list_names()]


def test_console_and_supervisor_record_valid_messages(config, tmp_path):
    study = StudyObject("1.2.3", "P1", "Doe^Jane")
    record_application(config, started=True)
    record_user_login(config, "anna", "10.0.0.9", description="password")
    record_user_login(config, "<x>", "10.0.0.9", succeeded=False, description="wrong password")
    record_query(config, "anna", "10.0.0.9", subject="studies", query=json.dumps({"patient_id": "P1"}))
    record_action(config, "anna", "10.0.0.9", Action.DOWNLOAD, studies=[study])
    record_action(config, "anna", "10.0.0.9", Action.PAUSE, target="destination/PACS")
    record_action(config, "anna", "10.0.0.9", Action.CHANGE_USERS, target="user/bob", succeeded=False)
    record_user_logout(config, "anna", "10.0.0.9")
    record_user_logout(config, "anna", "10.0.0.9", description="session timeout")
    found = read_all(config)
    assert [(said.event, said.types, said.outcome) for said in found] == [
        ("Application Activity", ["Application Start"], "0"),
        ("User Authentication", ["Login"], "0"),
        ("User Authentication", ["Login"], "4"),
        ("Query", [], "0"),
        ("DICOM Instances Accessed", [], "0"),
        ("Security Alert", ["Use of Restricted Function"], "0"),
        ("Security Alert", ["User Security Attributes Changed"], "4"),
        ("User Authentication", ["Logout"], "0"),
        ("User Authentication", ["Logout"], "0"),
    ]
    assert found[4].objects == ["1.2.3", "P1"]
    assert found[5].objects == ["dicom-ingest:destination/PACS"]
    assert found[5].detail == "pause destination: destination/PACS"
    # After a session timeout the node is the requestor.
    assert (found[7].requestors, len(found[8].requestors)) == (["anna"], 1)
    assert found[8].requestors != ["anna"]
    queue = queue_of(config)
    documents = [queue.read(name).partition(b"\xef\xbb\xbf")[2] for name in queue.list_names()]
    assert validate(tmp_path, documents) == ""


def test_node_without_audit_and_unwanted_kinds_write_nothing(tmp_path):
    assert record_user_login(Config.model_validate({"node": {"data_dir": tmp_path}}), "anna", "::1")
    assert not (tmp_path / "audit").exists()
    config = configure(tmp_path, events=["transfer"])
    assert record_user_login(config, "anna", "::1")
    assert record_action(config, "anna", "::1", Action.RELOAD)
    assert not (tmp_path / "audit").exists()


def test_full_queue_raises_an_alarm_and_reports_the_gap_when_there_is_room(config):
    trail = AuditTrail.open(config)
    trail.queue = AuditQueue(trail.queue.folder, 2 * BLOCK_BYTES)
    message = _application(trail)
    assert [trail.write(message) for _ in range(4)] == [True, True, False, False]
    assert [alarm.name for alarm in standing_alarms(config.run_dir)] == ["audit_queue_full"]
    trail.report_room()
    assert standing_alarms(config.run_dir)
    trail.queue.remove(trail.queue.list_names()[:2])
    trail.report_room()
    types = [said.types for said in read_all(config)]
    assert types == [["Audit Recording Stopped"], ["Audit Recording Started"]]
    assert "2 were dropped" in read_all(config)[1].detail
    assert standing_alarms(config.run_dir) == []


def test_disk_that_cannot_be_written_costs_the_message_and_raises_an_alarm(config, tmp_path):
    (tmp_path / "audit").write_text("in the way")
    assert not record_user_login(config, "anna", "::1")
    assert [alarm.name for alarm in standing_alarms(config.run_dir)] == ["audit_queue_full"]
    shutil.rmtree(tmp_path / "run")


def _application(trail):
    from ingest.audit.messages import build_application_activity

    return build_application_activity(trail.source, 1000, trail.process(), started=True)


@pytest.mark.parametrize(
    ("level", "named"), [("none", ("", "")), ("identifiers", ("P1", "")), ("full", ("P1", "Doe^Jane"))]
)
def test_access_to_a_study_names_its_patient_as_far_as_the_index_may(tmp_path, level, named):
    config = configure(tmp_path).model_copy(update={"ledger": LedgerSettings(index=level)})
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        ledger.migrate()
        # The ledger was made with a higher level than today's.
        known = StudyAttributes(level="full", patient_id="P1", patient_name="Doe^Jane")
        ledger.instances.record([row(1, study_uid="1.2", attributes=known)])
    assert record_study_access(config, "anna", "::1", Action.DOWNLOAD, "1.2", target="instance/1")
    assert record_study_access(config, "anna", "::1", Action.RELEASE, "9.9")
    first, second = read_all(config)
    assert (first.event, first.action) == ("DICOM Instances Accessed", "R")
    assert (first.objects, first.names[1]) == (["1.2", named[0]], named[1])
    assert (second.action, second.objects) == ("U", ["9.9", ""])


def test_access_is_recorded_while_the_ledger_is_away(config):
    assert record_study_access(config, "anna", "::1", Action.DOWNLOAD, "1.2")
    assert [said.objects for said in read_all(config)] == [["1.2", ""]]


def test_study_of_several_patients_says_so(config, tmp_path):
    record_action(config, "a", "::1", Action.VIEW, studies=[StudyObject("1", "P", has_several_patients=True)])
    (said,) = read_all(config)
    assert "different patients" in said.detail
    queue = queue_of(config)
    assert validate(tmp_path, [queue.read(queue.list_names()[0]).partition(b"\xef\xbb\xbf")[2]]) == ""
