"""Models of answers of the API. `ingest.console.api.request_models` has those of requests.

Answers may get further fields within version 1; programs ignore fields that they do not know.
"""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ingest.console.api.request_models import StudyPlace


class AnswerModel(BaseModel):
    """Values of an answer."""

    model_config = ConfigDict(extra="allow")


class Problem(AnswerModel):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str = Field(description="The cause, without patient data.")
    remedy: str = Field(description="The next step; may be empty.")


class Study(AnswerModel):
    """A study as far as it was received."""

    study_uid: str
    instances: int = Field(description="Stored SOP instances.")
    size: int = Field(description="Bytes of the stored files.")
    first_at: str | None
    last_at: str | None
    states: dict[str, int] = Field(description="Instances by state.")
    deliveries: dict[str, int] = Field(description="Deliveries by state.")
    stable: bool
    completion: str = Field(description="receiving, complete or reopened; empty if it is not judged.")
    copies: int
    patient_id: str = Field(description="Empty if [ledger] index does not keep it, as the next ones.")
    patient_name: str
    accession_number: str
    study_date: str
    study_description: str
    modalities: list[str]


class Instance(AnswerModel):
    """A received instance."""

    id: int
    state: str
    sop_instance_uid: str
    sop_class_uid: str
    study_uid: str
    series_uid: str
    transfer_syntax_uid: str
    size: int
    received_at: str | None
    stored_at: str | None
    calling_ae: str
    called_ae: str
    note: str


class InstanceWithDeliveries(Instance):
    """A received instance, and the state of its delivery to each destination."""

    deliveries: dict[str, str]


class Quarantined(Instance):
    """An instance in quarantine."""

    kind: Literal["refused", "conflict"]


class Delivery(AnswerModel):
    """The delivery of one instance to one destination."""

    id: int
    destination: str
    state: str
    attempts: int
    last_status: str | None
    last_error: str | None
    sop_instance_uid: str
    series_uid: str
    study_uid: str
    created_at: str | None
    updated_at: str | None
    next_attempt_at: str | None
    waits_for: str
    priority: str = Field(description="urgent, normal or bulk.")
    hours: str = Field(description="Hours of its routes; empty: any time.")
    commitment: str = Field(
        description="Storage commitment by the destination: none, wanted, asked, committed or failed."
    )
    member: str = Field(description="If the destination is a group: the member that it was sent to last.")


class Studies(AnswerModel):
    """Studies, the one with the newest instance first."""

    items: list[Study]
    next: StudyPlace | None = Field(description="`after` of the next page; null at the end.")


class Instances(AnswerModel):
    """Instances, the newest first."""

    items: list[InstanceWithDeliveries]
    next: int | None = Field(description="`before` of the next page; null at the end.")


class QuarantinedInstances(AnswerModel):
    """The quarantine, the newest instance first."""

    items: list[Quarantined]
    next: int | None


class Deliveries(AnswerModel):
    """Deliveries, those of the newest instances first."""

    items: list[Delivery]
    next: int | None


class Series(AnswerModel):
    """A series of a study."""

    series_uid: str
    modality: str
    series_description: str
    instances: int
    size: int
    states: dict[str, int]


class SeriesList(AnswerModel):
    """The series of a study."""

    items: list[Series]


class ChangedDeliveries(AnswerModel):
    """How many deliveries were changed, or would be."""

    counts: dict[str, int] = Field(description="By destination.")
    dry_run: bool
    queue_error: str = Field("", description="Why no worker could be notified; workers look by themselves.")


class CreatedForDestination(AnswerModel):
    """What was created for one destination, or would be."""

    destination: str
    new: int
    again: int
    left: dict[str, int] = Field(description="Deliveries that did not change, by state.")


class CreatedDeliveries(AnswerModel):
    """What was created, or would be."""

    items: list[CreatedForDestination]
    dry_run: bool
    queue_error: str


class Destination(AnswerModel):
    """A destination or a group with its circuit and its backlog."""

    name: str
    policy: str = Field(description="Of a group; empty for a destination.")
    members: list[str] = Field(description="Of a group.")
    backlog: int
    oldest_seconds: float | None
    oldest_due_seconds: float | None = Field(description="The same, counted within its hours only.")
    delivered_per_second: float
    circuit: str
    next_attempt_at_ms: int = Field(description="When its next delivery is tried; 0 if one may be tried now.")
    opens_at_ms: int = Field(description="When its hours begin, in Unix milliseconds; 0 within them.")
    last_error: str


class Destinations(AnswerModel):
    """All destinations."""

    items: list[Destination]


class PausedDestination(AnswerModel):
    """The pause of a destination."""

    destination: str
    was_paused: bool
    paused: bool
    paused_at: str | None
    paused_by: str
    pause_reason: str


class Decision(AnswerModel):
    """What became of an instance in quarantine."""

    id: int
    outcome: str
    destinations: list[str]
    error: str


class Decisions(AnswerModel):
    """What became of instances in quarantine."""

    results: list[Decision]
    queue_error: str


class Alarm(AnswerModel):
    """A condition that needs a person."""

    name: str
    condition: str
    subject: str
    severity: str
    since_ms: int
    cause: str
    remedy: str


class Alarms(AnswerModel):
    """All alarms, the worst first."""

    items: list[Alarm]


class Status(AnswerModel):
    """The status of the node, as `ingest status --json`."""

    verdict: str
    exit_code: int
    problems: list[Alarm]
    time: float
    name: str


class Fault(AnswerModel):
    """A fault of the configuration, or a note."""

    key: str
    cause: str
    remedy: str
    is_note: bool


class Faults(AnswerModel):
    """The result of a check."""

    items: list[Fault]
    answers: list[dict[str, Any]] = Field(description="Destinations that answered a C-ECHO.")


class Configuration(AnswerModel):
    """The configuration in force, without secrets."""

    values: dict[str, Any]


class Change(AnswerModel):
    """A value that a reload would change."""

    key: str
    before: Any
    after: Any


class Changes(AnswerModel):
    """What a reload would change."""

    items: list[Change]
    faults: list[str] = Field(description="Why a reload would be refused; empty if it would not.")


class Reloaded(AnswerModel):
    """The outcome of a reload."""

    generation: int


class Certificates(AnswerModel):
    """Certificates in force, and those that peers presented."""

    items: list[dict[str, Any]]


class Caller(AnswerModel):
    """A caller: AE title, network and certificate."""

    calling_ae: str
    network: str
    subject: str
    fingerprint: str
    days_left: float | None = Field(description="Until its certificate ends.")
    associations: int
    refusals: int
    last_at: str | None


class Callers(AnswerModel):
    """Callers, the last one first."""

    items: list[Caller]


class Refusal(AnswerModel):
    """Refusals of one cause."""

    kind: str
    text: str
    remedy: str
    count: int
    callers: list[dict[str, Any]]


class Refusals(AnswerModel):
    """Refusals by cause, that of the last one first."""

    items: list[Refusal]


class Commitment(AnswerModel):
    """A request for storage commitment."""

    transaction_uid: str
    calling_ae: str
    called_ae: str
    destination: str
    state: Literal["waiting", "due", "reported", "failed"]
    references: int
    failures: int
    attempts: int
    error: str
    requested_at: datetime | None
    next_at: datetime | None
    updated_at: datetime | None


class Commitments(AnswerModel):
    """Requests for storage commitment."""

    items: list[Commitment]


class SentCommitment(AnswerModel):
    """A request for storage commitment to a destination."""

    transaction_uid: str
    destination: str
    state: Literal["asked", "answered", "expired", "refused"]
    instances: int
    failures: int
    error: str
    asked_at: datetime | None
    updated_at: datetime | None


class SentCommitments(AnswerModel):
    """Requests for storage commitment to destinations."""

    items: list[SentCommitment]


class Completion(AnswerModel):
    """The completion of a study or series, or the instance that reopened it."""

    id: int
    study_uid: str
    series_uid: str
    generation: int
    event: Literal["complete", "reopened"]
    at: datetime
    instances: int
    first_stored_at: datetime
    last_stored_at: datetime


class Completions(AnswerModel):
    """Completions of studies and series."""

    items: list[Completion]


class Alerts(AnswerModel):
    """Receivers of alerts."""

    items: list[dict[str, Any]]


class TestedAlert(AnswerModel):
    """The result of a test of one alert."""

    alert: str
    receiver: str
    event_id: str
    sent: bool
    cause: str
    remedy: str


class TestedAlerts(AnswerModel):
    """The results of a test of alerts."""

    items: list[TestedAlert]


class Webhook(AnswerModel):
    """A webhook, as `ingest webhooks list --json`."""

    webhook: str
    receiver: str
    events: list[str]
    waiting: int
    oldest_at: datetime | None
    dead: int
    last_error: str


class Webhooks(AnswerModel):
    """Webhooks."""

    items: list[Webhook]


class WebhookEvent(AnswerModel):
    """An event of a webhook, as `ingest webhooks events --json`."""

    event_id: str
    webhook: str
    type: str
    subject: str
    state: Literal["waiting", "sending", "dead"]
    attempts: int
    created_at: datetime | None
    updated_at: datetime | None
    last_error: str


class WebhookEvents(AnswerModel):
    """Events of webhooks."""

    items: list[WebhookEvent]


class TestedWebhook(AnswerModel):
    """The result of a test of one webhook."""

    webhook: str
    receiver: str
    event_id: str
    sent: bool
    cause: str
    remedy: str


class TestedWebhooks(AnswerModel):
    """The results of a test of webhooks."""

    items: list[TestedWebhook]


class Replayed(AnswerModel):
    """Events that wait again."""

    replayed: int


class AuditStatus(AnswerModel):
    """The queue of audit messages, as `ingest audit status --json`."""

    repository: str
    waiting: int
    waiting_bytes: int
    max_bytes: int
    dropped: int
    is_dropping: bool
    sent: int
    failing_since: str | None
    error: str


class AuditTest(AnswerModel):
    """A test message that the audit repository took."""

    repository: str


class RetentionPlan(AnswerModel):
    """What a retention run would remove, as `ingest retention --dry-run --json`."""

    go: list[dict[str, Any]] = Field(description="Studies that it would remove; the first 1000.")
    go_count: int
    held: list[dict[str, Any]] = Field(description="Studies that a destination does not have yet.")
    held_count: int
    kept_bytes: int
    left_bytes: int


class User(AnswerModel):
    """A user of the console."""

    name: str
    role: str


class Users(AnswerModel):
    """The users of the console."""

    items: list[User]


class Token(AnswerModel):
    """A token, without its text."""

    name: str
    role: str
    created_at: str | None
    expires_at: str | None
    is_expired: bool


class Tokens(AnswerModel):
    """The tokens of programs."""

    items: list[Token]


class MadeToken(AnswerModel):
    """A new token. Its text is kept nowhere."""

    name: str
    role: str
    expires_at: str | None
    token: str


class RouteResult(AnswerModel):
    """One route, and whether it took the instance."""

    route: str
    took: bool
    conditions: list[dict[str, Any]]


class ChangedAttribute(AnswerModel):
    """An attribute that changes on the way to a destination; null where there is none."""

    attribute: str
    before: str | None
    after: str | None


class DestinationChanges(AnswerModel):
    """What changes on the way to a destination; an error if the data set cannot be changed."""

    destination: str
    changes: list[ChangedAttribute]
    error: str


class OfferedSyntaxes(AnswerModel):
    """Transfer syntaxes that a destination is offered. The first one that it accepts is used."""

    destination: str
    transfer_syntaxes: list[str]


class ExplainedGroup(AnswerModel):
    """A group that an instance goes to."""

    group: str
    policy: str
    members: list[str]


class RouteTestResult(AnswerModel):
    """Which routes take an instance, and why."""

    destinations: list[str]
    routed: str
    kept_back: list[str]
    changes: list[DestinationChanges]
    offers: list[OfferedSyntaxes] = Field(description="For destinations with `transcode`.")
    groups: list[ExplainedGroup]
    held_for: list[str] = Field(description="Destinations whose deliveries a person releases.")
    awaits: dict[str, str] = Field(description="Destinations that wait for the series or study.")
    hours: dict[str, str] = Field(description="Hours of deliveries, by destination; others have any time.")
    priorities: dict[str, str] = Field(description="Priorities that the routes give, by destination.")
    routes: list[RouteResult]


class Route(AnswerModel):
    """A rule that names destinations."""

    name: str
    to: list[str]
    when: dict[str, Any]
    stop: bool
    default: bool


class Routes(AnswerModel):
    """The rules in their order."""

    items: list[Route]


class Trace(AnswerModel):
    """The way of a study or of an instance, as `ingest trace --json`."""

    wanted: str
    kind: str
    study_uids: list[str]
    events: list[dict[str, Any]]
    next_steps: list[dict[str, Any]]
    instances: list[dict[str, Any]]
    notes: list[str]


class Charts(AnswerModel):
    """Series for charts; all columns have the length of `times`, with null where nothing is known."""

    span: str
    step_seconds: int
    times: list[int]
    series: dict[str, list[float | None]]
    callers: dict[str, list[float | None]]
    destinations: dict[str, list[float | None]]
    backlogs: dict[str, list[float | None]]


class ComparedAttribute(AnswerModel):
    """An attribute in which a quarantined instance differs from the stored one; null where one lacks it."""

    path: str
    keyword: str
    vr: str
    quarantined: str | None
    stored: str | None


class Comparison(AnswerModel):
    """A quarantined instance beside the stored one of its SOP Instance UID."""

    id: int
    sop_instance_uid: str
    kind: Literal["refused", "conflict"]
    reason: str
    quarantined: dict[str, Any]
    stored: dict[str, Any] | None
    differences: list[ComparedAttribute]
    is_complete: bool
    fault: str


class JobState(AnswerModel):
    """The last job on the ledger."""

    kind: str
    state: Literal["none", "running", "done", "failed"]
    progress: str
    error: str
    result: dict[str, Any] | None
