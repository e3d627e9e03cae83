"""DICOM audit messages as XML: pure builders of the messages of PS3.15 A.5.3.

Each builder returns an `AuditMessage`. The tables of PS3.15 A.5.3 say which participants and objects a
message has; the schema of A.5.1 says how they are written. The tests validate each one against that schema.

INVARIANT 9: patient data stays in the data sets. Audit messages are an exception that the standard demands:
they name the patient. They exist only in the queue of `ingest.audit.queue` and on the way to the repository.
"""

import base64
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final
from xml.etree import ElementTree as ET

QUERY_MAX_BYTES: Final = 8192
"""A longer query is cut, so that a message stays below the 32,768 bytes of PS3.15 A.6."""

SOP_CLASSES_MAX: Final = 100
"""Number of SOP classes that one message lists. The others are counted together, without a UID."""

_TEXT_MAX: Final = 1024
_PATIENTS_DIFFER: Final = (
    b"instances of different patients have this Study Instance UID; this is the newest one"
)
_XML: Final = '<?xml version="1.0" encoding="UTF-8"?>'
# XML 1.0 2.2 has no C0 controls but tab, CR and LF, no surrogates, no U+FFFE and no U+FFFF. C1 controls and
# line separators are legal there, but they could break the line-oriented file of a repository.
_SPACES: Final = re.compile("[\t\n\r\x85\u2028\u2029]")
_FORBIDDEN: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class EventKind(StrEnum):
    """Kind of an event, as `[audit] events` names it."""

    APPLICATION = "application"
    TRANSFER = "transfer"
    SECURITY = "security"
    LOGIN = "login"
    QUERY = "query"
    ACTION = "action"


class EventOutcome(StrEnum):
    """Values of EventOutcomeIndicator (PS3.15 Table A.5.2-1)."""

    SUCCESS = "0"
    MINOR_FAILURE = "4"
    SERIOUS_FAILURE = "8"
    MAJOR_FAILURE = "12"


class TransferAction(StrEnum):
    """Values of EventActionCode in DICOM Instances Transferred (PS3.15 Table A.5.3.7-1)."""

    CREATE = "C"
    """The receiver did not hold the instances."""
    READ = "R"
    """The receiver held them already, or the sender does not know."""
    UPDATE = "U"
    """The receiver replaced what it held."""


@dataclass(frozen=True, slots=True)
class Code:
    """A coded value: `csd-code`, `codeSystemName` and `originalText`."""

    value: str
    system: str
    meaning: str


def _dcm(value: str, meaning: str) -> Code:
    return Code(value, "DCM", meaning)


# PS3.16 CID 400 to 403, and the codes that PS3.15 A.5.3 names itself.
APPLICATION_ACTIVITY: Final = _dcm("110100", "Application Activity")
BEGIN_TRANSFERRING: Final = _dcm("110102", "Begin Transferring DICOM Instances")
INSTANCES_ACCESSED: Final = _dcm("110103", "DICOM Instances Accessed")
INSTANCES_TRANSFERRED: Final = _dcm("110104", "DICOM Instances Transferred")
QUERY: Final = _dcm("110112", "Query")
SECURITY_ALERT: Final = _dcm("110113", "Security Alert")
USER_AUTHENTICATION: Final = _dcm("110114", "User Authentication")

APPLICATION_START: Final = _dcm("110120", "Application Start")
APPLICATION_STOP: Final = _dcm("110121", "Application Stop")
LOGIN: Final = _dcm("110122", "Login")
LOGOUT: Final = _dcm("110123", "Logout")
NODE_AUTHENTICATION: Final = _dcm("110126", "Node Authentication")
SECURITY_CONFIGURATION: Final = _dcm("110129", "Security Configuration")
SOFTWARE_CONFIGURATION: Final = _dcm("110131", "Software Configuration")
RESTRICTED_FUNCTION: Final = _dcm("110132", "Use of Restricted Function")
RECORDING_STOPPED: Final = _dcm("110133", "Audit Recording Stopped")
RECORDING_STARTED: Final = _dcm("110134", "Audit Recording Started")
ROLES_CHANGED: Final = _dcm("110136", "Security Roles Changed")
USER_ATTRIBUTES_CHANGED: Final = _dcm("110137", "User Security Attributes Changed")

APPLICATION: Final = _dcm("110150", "Application")
DESTINATION_ROLE: Final = _dcm("110152", "Destination Role ID")
SOURCE_ROLE: Final = _dcm("110153", "Source Role ID")

STUDY_INSTANCE_UID: Final = _dcm("110180", "Study Instance UID")
NODE_ID: Final = _dcm("110182", "Node ID")
PATIENT_NUMBER: Final = Code("2", "RFC-3881", "Patient Number")
SEARCH_CRITERIA: Final = Code("10", "RFC-3881", "Search Criteria")
RESOURCE_URI: Final = Code("12", "RFC-3881", "URI")


@dataclass(frozen=True, slots=True)
class AuditSource:
    """The system that reports (AuditSourceIdentification).

    Attributes:
        source_id: `[audit] source_id`.
        site: `[audit] enterprise_site`; empty if there is none.
    """

    source_id: str
    site: str = ""


@dataclass(frozen=True, slots=True)
class Participant:
    """An ActiveParticipant: a person, a process or a node.

    Attributes:
        user_id: Name of the person or node, or the id of the process (PS3.15 A.5.2.1).
        is_requestor: Whether it initiated the event. At most one participant did.
        ae_titles: AE titles that took part (PS3.15 A.5.2.2).
        name: Name for people (PS3.15 A.5.2.3).
        address: Host name or IP address; empty if unknown.
        role: RoleIDCode; None if the event needs none.
    """

    user_id: str
    is_requestor: bool = False
    ae_titles: tuple[str, ...] = ()
    name: str = ""
    address: str = ""
    role: Code | None = None


@dataclass(frozen=True, slots=True)
class StudyObject:
    """A study that takes part in an event, and its patient.

    Attributes:
        study_uid: Study Instance UID.
        patient_id: Empty if the ledger does not have it.
        patient_name: Empty if the ledger does not have it.
        accession_number: Empty if the ledger does not have it.
        sop_classes: Number of instances of each SOP class.
        is_encrypted: Whether the instances were encrypted on their way; None if that is not said.
        has_several_patients: Whether instances of different patients came with the Study Instance UID. The
            patient is then that of the newest instance, and the message says so.
    """

    study_uid: str
    patient_id: str = ""
    patient_name: str = ""
    accession_number: str = ""
    sop_classes: Mapping[str, int] = field(default_factory=dict)
    is_encrypted: bool | None = None
    has_several_patients: bool = False


@dataclass(frozen=True, slots=True)
class AuditMessage:
    """A built message.

    Attributes:
        kind: Kind of the event.
        at_ms: Time of the event, in Unix milliseconds.
        outcome: Outcome of the event.
        xml: The XML document in UTF-8, in one line.
    """

    kind: EventKind
    at_ms: int
    outcome: EventOutcome
    xml: bytes


def build_application_activity(
    source: AuditSource, at_ms: int, application: Participant, *, started: bool
) -> AuditMessage:
    """Build Application Activity (PS3.15 A.5.3.1): an application was started or stopped."""
    event = _Event(
        APPLICATION_ACTIVITY, "E", at_ms, types=(APPLICATION_START if started else APPLICATION_STOP,)
    )
    return _build(EventKind.APPLICATION, event, [_with_role(application, APPLICATION)], source)


def build_begin_transferring(
    source: AuditSource, at_ms: int, sender: Participant, receiver: Participant, study: StudyObject
) -> AuditMessage:
    """Build Begin Transferring DICOM Instances (PS3.15 A.5.3.3)."""
    event = _Event(BEGIN_TRANSFERRING, "E", at_ms)
    return _build(EventKind.TRANSFER, event, _ends(sender, receiver), source, _study_objects(study))


def build_instances_transferred(
    source: AuditSource,
    at_ms: int,
    sender: Participant,
    receiver: Participant,
    study: StudyObject,
    *,
    action: TransferAction,
    outcome: EventOutcome = EventOutcome.SUCCESS,
    description: str = "",
) -> AuditMessage:
    """Build DICOM Instances Transferred (PS3.15 A.5.3.7): a transfer has ended at `at_ms`."""
    event = _Event(INSTANCES_TRANSFERRED, action.value, at_ms, outcome, description)
    return _build(EventKind.TRANSFER, event, _ends(sender, receiver), source, _study_objects(study))


def build_instances_accessed(
    source: AuditSource,
    at_ms: int,
    participants: Sequence[Participant],
    study: StudyObject,
    *,
    action: str,
    outcome: EventOutcome = EventOutcome.SUCCESS,
    description: str = "",
) -> AuditMessage:
    """Build DICOM Instances Accessed (PS3.15 A.5.3.6): a person read, changed or removed instances.

    Args:
        source: The system that reports.
        at_ms: Time of the event.
        participants: The person, and the process that did the work.
        study: The study of the instances.
        action: "C", "R", "U" or "D".
        outcome: Outcome of the event.
        description: What was done, for people; no patient data.
    """
    event = _Event(INSTANCES_ACCESSED, action, at_ms, outcome, description)
    return _build(EventKind.ACTION, event, participants, source, _study_objects(study))


def build_query(
    source: AuditSource,
    at_ms: int,
    issuer: Participant,
    responder: Participant,
    *,
    subject: str,
    query: bytes,
) -> AuditMessage:
    """Build Query (PS3.15 A.5.3.10) for a search that is no DICOM query.

    Args:
        source: The system that reports.
        at_ms: Time of the event.
        issuer: The person who searched.
        responder: The process that answered.
        subject: What was searched, such as "studies".
        query: The criteria in the format of the protocol used.
    """
    criteria = ET.Element("ParticipantObjectIdentification")
    # PS3.15 Table A.5.3.10-1: the type code is 2 (system object), and the role 3 (report).
    _set_object(criteria, f"dicom-ingest:{subject}", "2", "3", SEARCH_CRITERIA)
    _add_text(criteria, "ParticipantObjectQuery", _base64(query[:QUERY_MAX_BYTES]))
    event = _Event(QUERY, "E", at_ms)
    participants = [_with_role(issuer, SOURCE_ROLE), _with_role(responder, DESTINATION_ROLE)]
    return _build(EventKind.QUERY, event, participants, source, [criteria])


def build_security_alert(
    source: AuditSource,
    at_ms: int,
    participants: Sequence[Participant],
    *,
    alert: Code,
    outcome: EventOutcome,
    subject_type: Code,
    subject: str,
    description: str,
    kind: EventKind = EventKind.SECURITY,
) -> AuditMessage:
    """Build Security Alert (PS3.15 A.5.3.11).

    Args:
        source: The system that reports.
        at_ms: Time of the event.
        participants: The reporting person or process first, then the others.
        alert: The EventTypeCode.
        outcome: SUCCESS for an informative alert; otherwise the severity.
        subject_type: `NODE_ID` or `RESOURCE_URI`.
        subject: The node or resource that the alert is about.
        description: The nature of the alert, for people.
        kind: SECURITY, or ACTION for what a person did.
    """
    about = ET.Element("ParticipantObjectIdentification")
    _set_object(about, subject, "2", "13", subject_type)  # 13: security resource
    _add_text(about, "ParticipantObjectName", subject)
    # PS3.15 Table A.5.3.11-1: a detail of type "Alert Description" is mandatory.
    detail = ET.SubElement(about, "ParticipantObjectDetail")
    detail.set("type", "Alert Description")
    detail.set("value", _base64(_clean(description).encode()))
    event = _Event(SECURITY_ALERT, "E", at_ms, outcome, types=(alert,))
    return _build(kind, event, participants, source, [about])


def build_user_authentication(
    source: AuditSource,
    at_ms: int,
    person: Participant,
    node: Participant,
    *,
    is_login: bool,
    outcome: EventOutcome = EventOutcome.SUCCESS,
    description: str = "",
) -> AuditMessage:
    """Build User Authentication (PS3.15 A.5.3.12). `person` has an address, which is mandatory there."""
    event = _Event(
        USER_AUTHENTICATION, "E", at_ms, outcome, description, types=(LOGIN if is_login else LOGOUT,)
    )
    return _build(EventKind.LOGIN, event, [person, node], source)


# --- elements


@dataclass(frozen=True, slots=True)
class _Event:
    """The values of EventIdentification."""

    code: Code
    action: str
    at_ms: int
    outcome: EventOutcome = EventOutcome.SUCCESS
    description: str = ""
    types: tuple[Code, ...] = ()


def _build(
    kind: EventKind,
    event: _Event,
    participants: Sequence[Participant],
    source: AuditSource,
    objects: Sequence[ET.Element] = (),
) -> AuditMessage:
    root = ET.Element("AuditMessage")
    _add_event(root, event)
    for participant in participants:
        _add_participant(root, participant)
    _add_source(root, source)
    root.extend(objects)
    text = _XML + ET.tostring(root, encoding="unicode")
    return AuditMessage(kind, event.at_ms, event.outcome, text.encode())


def _add_event(root: ET.Element, event: _Event) -> None:
    element = ET.SubElement(root, "EventIdentification")
    element.set("EventActionCode", event.action)
    # PS3.15 A.5.2.5: with the time zone
    element.set("EventDateTime", format_time(event.at_ms))
    element.set("EventOutcomeIndicator", event.outcome.value)
    _add_code(element, "EventID", event.code)
    for code in event.types:
        _add_code(element, "EventTypeCode", code)
    if event.description:
        _add_text(element, "EventOutcomeDescription", event.description)


def _add_participant(root: ET.Element, participant: Participant) -> None:
    element = ET.SubElement(root, "ActiveParticipant")
    element.set("UserID", _clean(participant.user_id))
    if participant.ae_titles:
        # PS3.15 A.5.2.2: AETITLES=aetitle1;aetitle2;…
        element.set("AlternativeUserID", _clean(f"AETITLES={';'.join(participant.ae_titles)}"))
    if participant.name:
        element.set("UserName", _clean(participant.name))
    element.set("UserIsRequestor", _boolean(participant.is_requestor))
    if participant.address:
        element.set("NetworkAccessPointID", _clean(participant.address))
        element.set("NetworkAccessPointTypeCode", "2" if _is_ip_address(participant.address) else "1")
    if participant.role is not None:
        _add_code(element, "RoleIDCode", participant.role)


def _add_source(root: ET.Element, source: AuditSource) -> None:
    element = ET.SubElement(root, "AuditSourceIdentification")
    if source.site:
        element.set("AuditEnterpriseSiteID", _clean(source.site))
    element.set("AuditSourceID", _clean(source.source_id))
    # PS3.15 Table A.5.1.2.1-1: 4 is an application server process
    ET.SubElement(element, "AuditSourceTypeCode").set("csd-code", "4")


def _study_objects(study: StudyObject) -> list[ET.Element]:
    """Return the two objects of a transfer: the study (role 3, report), and its patient (role 1)."""
    element = ET.Element("ParticipantObjectIdentification")
    _set_object(element, study.study_uid, "2", "3", STUDY_INSTANCE_UID)
    _add_text(element, "ParticipantObjectName", study.study_uid)
    _add_description(element, study)
    patient = ET.Element("ParticipantObjectIdentification")
    _set_object(patient, study.patient_id, "1", "1", PATIENT_NUMBER)
    _add_text(patient, "ParticipantObjectName", study.patient_name)
    if study.has_several_patients:
        detail = ET.SubElement(patient, "ParticipantObjectDetail")
        detail.set("type", "Patients Differ")
        detail.set("value", _base64(_PATIENTS_DIFFER))
    return [element, patient]


def _add_description(parent: ET.Element, study: StudyObject) -> None:
    # PS3.15 Table A.5.2-1, SOPClass: it is required if any of the optional fields is present.
    if not study.sop_classes:
        return
    element = ET.SubElement(parent, "ParticipantObjectDescription")
    if study.accession_number:
        ET.SubElement(element, "Accession").set("Number", _clean(study.accession_number))
    listed = sorted(study.sop_classes.items())
    for uid, count in listed[:SOP_CLASSES_MAX]:
        _add_sop_class(element, uid, count)
    if len(listed) > SOP_CLASSES_MAX:
        _add_sop_class(element, "", sum(count for _, count in listed[SOP_CLASSES_MAX:]))
    if study.is_encrypted is not None:
        _add_text(element, "Encrypted", _boolean(study.is_encrypted))


def _add_sop_class(parent: ET.Element, uid: str, count: int) -> None:
    element = ET.SubElement(parent, "SOPClass")
    if uid:
        element.set("UID", _clean(uid))
    element.set("NumberOfInstances", str(count))


def _set_object(element: ET.Element, object_id: str, kind: str, role: str, id_type: Code) -> None:
    element.set("ParticipantObjectID", _clean(object_id))
    element.set("ParticipantObjectTypeCode", kind)
    element.set("ParticipantObjectTypeCodeRole", role)
    _add_code(element, "ParticipantObjectIDTypeCode", id_type)


def _add_code(parent: ET.Element, name: str, code: Code) -> None:
    element = ET.SubElement(parent, name)
    element.set("csd-code", code.value)
    element.set("codeSystemName", code.system)
    element.set("originalText", code.meaning)


def _add_text(parent: ET.Element, name: str, text: str) -> None:
    ET.SubElement(parent, name).text = _clean(text, limit=4 * QUERY_MAX_BYTES)


def _ends(sender: Participant, receiver: Participant) -> list[Participant]:
    return [_with_role(sender, SOURCE_ROLE), _with_role(receiver, DESTINATION_ROLE)]


def _with_role(participant: Participant, role: Code) -> Participant:
    return Participant(
        participant.user_id,
        participant.is_requestor,
        participant.ae_titles,
        participant.name,
        participant.address,
        role,
    )


# --- values


def format_time(unix_ms: int) -> str:
    """Write a time for an XML dateTime and for RFC 5424 6.2.3, in UTC."""
    return f"{datetime.fromtimestamp(unix_ms / 1000, UTC):%Y-%m-%dT%H:%M:%S}.{unix_ms % 1000:03d}Z"


def _clean(text: str, *, limit: int = _TEXT_MAX) -> str:
    """Make a text legal in XML 1.0 and one line. Escaping is the work of the XML library."""
    return _FORBIDDEN.sub("\ufffd", _SPACES.sub(" ", text))[:limit]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _boolean(value: bool) -> str:
    return "true" if value else "false"


def _is_ip_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True
