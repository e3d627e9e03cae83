"""Audit messages: each kind against the schema of PS3.15, and values of peers that try to break the XML."""

import re

from ingest.audit import messages, syslog
from ingest.audit.messages import (
    AuditSource,
    EventOutcome,
    Participant,
    StudyObject,
    TransferAction,
)
from tests.support.audit import Said, validate

SOURCE = AuditSource("node", "Hospital")
CT = Participant("CT1", is_requestor=True, ae_titles=("CT1",), address="10.0.0.7")
NODE = Participant("node", ae_titles=("INGEST",), name="dicom-ingest", address="ingest.example.org")
ANNA = Participant("anna", is_requestor=True, address="::1")
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
AT = 1_796_058_000_123


def transferred(study, **more):
    return messages.build_instances_transferred(
        SOURCE, AT, CT, NODE, study, action=TransferAction.CREATE, **more
    )


def every_kind(study):
    return [
        messages.build_application_activity(SOURCE, AT, NODE, started=True),
        messages.build_application_activity(SOURCE, AT, NODE, started=False),
        messages.build_begin_transferring(SOURCE, AT, NODE, CT, study),
        transferred(study),
        transferred(study, outcome=EventOutcome.SERIOUS_FAILURE, description="A700H"),
        messages.build_instances_accessed(SOURCE, AT, [ANNA, NODE], study, action="R"),
        messages.build_query(SOURCE, AT, ANNA, NODE, subject="studies", query=b'{"patient_id": "<&>"}'),
        messages.build_security_alert(
            SOURCE,
            AT,
            [NODE, CT],
            alert=messages.NODE_AUTHENTICATION,
            outcome=EventOutcome.MINOR_FAILURE,
            subject_type=messages.NODE_ID,
            subject="10.0.0.7",
            description="certificate has expired",
        ),
        messages.build_user_authentication(SOURCE, AT, ANNA, NODE, is_login=True),
        messages.build_user_authentication(
            SOURCE, AT, ANNA, NODE, is_login=True, outcome=EventOutcome.MINOR_FAILURE, description="password"
        ),
    ]


def test_every_kind_of_message_is_valid_under_the_schema_of_the_standard(tmp_path):
    plain = StudyObject("1.2.3", "P1", "Doe^Jane", "A1", {CT_IMAGE: 3}, is_encrypted=True)
    hostile = StudyObject(
        '1.2"><x/>', "<script>alert(1)</script>", "山田^太郎=\x00\x1b[31m\ud800", "&amp;'\"]]>\r\n", {"<": 1}
    )
    nothing = StudyObject("")
    documents = [built.xml for study in (plain, hostile, nothing) for built in every_kind(study)]
    assert validate(tmp_path, documents) == ""


def test_the_schema_refuses_what_the_standard_forbids(tmp_path):
    xml = transferred(StudyObject("1.2.3", sop_classes={CT_IMAGE: 1})).xml
    broken = [
        xml.replace(b'EventOutcomeIndicator="0"', b'EventOutcomeIndicator="1"'),
        re.sub(rb"<ParticipantObjectName ?/>", b"", xml),
        xml.replace(b' NumberOfInstances="1"', b""),
        re.sub(rb"<AuditSourceIdentification.*</AuditSourceIdentification>", b"", xml),
    ]
    complaints = validate(tmp_path, broken)
    assert all(f"message-{number}.xml" in complaints for number in range(len(broken))), complaints


def test_transfer_names_both_ends_the_study_and_the_patient():
    said = Said.of(transferred(StudyObject("1.2.3", "P1", "Doe^Jane", "A1", {CT_IMAGE: 3})).xml)
    assert (said.event, said.action, said.outcome) == ("DICOM Instances Transferred", "C", "0")
    assert (said.users, said.requestors) == (["CT1", "node"], ["CT1"])
    assert said.addresses == ["10.0.0.7", "ingest.example.org"]
    assert (said.objects, said.names) == (["1.2.3", "P1"], ["1.2.3", "Doe^Jane"])
    assert (said.classes, said.accessions) == ({CT_IMAGE: 3}, ["A1"])
    roles = [code.get("csd-code") for code in said.root.findall("ActiveParticipant/RoleIDCode")]
    assert roles == ["110153", "110152"]
    kinds = [each.get("NetworkAccessPointTypeCode") for each in said.root.findall("ActiveParticipant")]
    assert kinds == ["2", "1"]


def test_values_of_peers_stay_values():
    name = "<script>alert(1)</script>&山田^太郎"
    said = Said.of(transferred(StudyObject("1.2.3", "<P&1>", name)).xml)
    assert said.names[1] == name
    assert said.objects[1] == "<P&1>"
    assert said.root.find(".//script") is None


def test_controls_are_replaced_and_a_message_is_one_line():
    study = StudyObject("1.2.3", "P\x00\x1f\x85\u2028", "a\nb\rc\td", "A\n1", {CT_IMAGE: 1})
    xml = transferred(study, description="two\nlines").xml
    said = Said.of(xml)
    assert said.names[1] == "a b c d"
    assert said.objects[1] == "P\ufffd\ufffd  "
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029]", xml.decode())


def test_message_stays_below_the_size_that_every_repository_takes():
    many = StudyObject("1.2.3", "P" * 5000, "N" * 5000, sop_classes={f"1.2.{n}": 1 for n in range(1000)})
    said = Said.of(transferred(many).xml)
    assert sum(said.classes.values()) == 1000
    query = messages.build_query(SOURCE, AT, ANNA, NODE, subject="studies", query=b"x" * 100_000)
    assert max(len(query.xml), len(transferred(many).xml)) < 32768


def test_syslog_message_has_the_header_that_the_standard_asks_for():
    good = syslog.encode_syslog(transferred(StudyObject("1.2.3")), "ingest.example.org", 4711)
    header = b"<85>1 2026-11-30T17:00:00.123Z ingest.example.org dicom-ingest 4711 DICOM+RFC3881 - "
    assert good.startswith(header + b"\xef\xbb\xbf<?xml")
    failed = transferred(StudyObject("1.2.3"), outcome=EventOutcome.SERIOUS_FAILURE)
    assert syslog.encode_syslog(failed, "häst", 1).startswith(b"<84>1 2026-11-30T17:00:00.123Z h_st ")
    assert syslog.encode_frame(b"abc\xc3\xa4") == b"5 abc\xc3\xa4"
