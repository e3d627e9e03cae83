"""Models of requests to the API."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ingest.ledger.records import DeliveryState, InstanceState

MAX_LIMIT = 1000


class RequestModel(BaseModel):
    """Values of a request. An unknown field is an error, because it is probably misspelt."""

    model_config = ConfigDict(extra="forbid")


def _require_utf8(text: str) -> str:
    if "\0" in text or any("\ud800" <= sign <= "\udfff" for sign in text):
        raise ValueError("contains a character that no text may contain")
    return text


Text = Annotated[str, Field(max_length=256), AfterValidator(_require_utf8)]
UID = Annotated[str, Field(max_length=64, pattern=r"^[0-9.]*$")]
DicomDate = Annotated[str, Field(pattern=r"^[0-9]{8}$")]
Id = Annotated[int, Field(ge=1, lt=2**63)]
Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT)]


def _to_utc(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value


Moment = Annotated[datetime, AfterValidator(_to_utc)]


def to_unix_ms(moment: datetime | None) -> int | None:
    """Return a time in Unix milliseconds."""
    return None if moment is None else int(moment.timestamp() * 1000)


# --- requests


class AttributeConditions(RequestModel):
    """Conditions for attributes of the study; `*` stands for any text and `?` for one character."""

    accession_number: Text | None = None
    patient_id: Text | None = None
    patient_name: Text | None = Field(None, description='Needs [ledger] index = "full".')
    date_from: DicomDate | None = Field(None, description="Study date, included.")
    date_to: DicomDate | None = Field(None, description="Study date, included.")
    modality: Text | None = None


class TimedConditions(AttributeConditions):
    """Conditions for objects and times; all of them must hold."""

    destination: Text | None = Field(None, description="There is a delivery to it.")
    study_uid: UID | None = None
    series_uid: UID | None = None
    sop_instance_uid: UID | None = None
    calling_ae: Text | None = Field(None, description="AE title of the sender.")
    since: Moment | None = Field(None, description="Received or changed since then. Without an offset: UTC.")
    until: Moment | None = Field(None, description="Received or changed before then.")


class ObjectSearch(TimedConditions):
    """Conditions for instances and studies; all of them must hold."""

    states: tuple[InstanceState, ...] = ()
    delivery_states: tuple[DeliveryState, ...] = ()


class InstanceSearch(ObjectSearch):
    """Conditions for instances, and the page."""

    limit: Limit = 100
    before: Id | None = Field(None, description="`next` of the previous page.")


class StudyPlace(RequestModel):
    """The last study of a page."""

    last_ms: Annotated[int, Field(ge=0, lt=2**63)]
    study_uid: UID


class StudySearch(ObjectSearch):
    """Conditions for studies, and the page."""

    stable: bool | None = None
    limit: Limit = 100
    after: StudyPlace | None = Field(None, description="`next` of the previous page.")


class DeliveryConditions(TimedConditions):
    """Conditions for deliveries; all of them must hold."""

    states: tuple[DeliveryState, ...] = ()
    error: Text | None = Field(None, description="A part of the last error.")


class DeliverySearch(DeliveryConditions):
    """Conditions for deliveries, and the page."""

    limit: Limit = 100
    before: Id | None = Field(None, description="`next` of the previous page.")


class DeliveryRetry(DeliveryConditions):
    """Which deliveries to send again: without `states` dead ones, or with `states` those in one of them."""

    everything: bool = Field(False, description="Needed if there is no condition.")
    dry_run: bool = False


class DeliveryRelease(DeliveryConditions):
    """Which held deliveries to send. Deliveries in other states do not change."""

    everything: bool = Field(False, description="Needed if there is no condition.")
    dry_run: bool = False


class DeliveryDrop(DeliveryRetry):
    """Which deliveries to give up, and why."""

    reason: Annotated[Text, Field(min_length=1)] = Field(description="For other people.")


class DeliveryCreation(ObjectSearch):
    """Which stored instances to deliver, and to which destinations. Routes are not evaluated."""

    to: Annotated[tuple[Text, ...], Field(min_length=1, max_length=100)]
    everything: bool = Field(False, description="Needed if there is no condition.")
    again: bool = Field(False, description="Also instances that are delivered there.")
    dry_run: bool = False


class Pause(RequestModel):
    """Why a destination is paused."""

    reason: Text = ""


class Ids(RequestModel):
    """Ids of instances in quarantine."""

    ids: Annotated[tuple[Id, ...], Field(min_length=1, max_length=1000)]


class TraceRequest(RequestModel):
    """What to trace."""

    wanted: Annotated[Text, Field(min_length=1)] = Field(
        description="A study, series or SOP instance UID, or an accession number."
    )


class RouteTest(RequestModel):
    """A stored instance, and what to assume instead of its File Meta Information."""

    id: Id
    calling_ae: Text | None = None
    called_ae: Text | None = None
    source: Text | None = Field(None, description="IP address of the sender.")


class AssumedCaller(RequestModel):
    """What to assume of the sender of an uploaded file."""

    calling_ae: Text | None = None
    called_ae: Text | None = None
    source: Text | None = None


class Check(RequestModel):
    """What to check."""

    connect: bool = Field(False, description="Also send a C-ECHO to every destination.")


class Job(RequestModel):
    """A job on ledger and store."""

    kind: Literal["verify", "verify-files", "rebuild", "reindex", "retention"]
    deliveries: bool = Field(True, description="Rebuild: create deliveries as the routes say.")
    accept_clock: bool = Field(False, description="Retention: accept the clock, although it jumped ahead.")


class AlertTest(RequestModel):
    """Which alert to test."""

    name: Text | None = Field(None, description="Without it: all.")


class WebhookTest(RequestModel):
    """Which webhook to test."""

    name: Text | None = Field(None, description="Without it: all.")


class WebhookReplay(RequestModel):
    """Which events that were given up are sent again."""

    name: Text = Field(description="The webhook.")
    event_ids: list[Text] | None = Field(None, description="Without it: all.", max_length=1000)


Password = Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_require_utf8)]
UserRole = Literal["viewer", "operator", "admin"]


class NewUser(RequestModel):
    """A user to add."""

    name: Annotated[Text, Field(min_length=1)]
    role: UserRole = "viewer"
    password: Password


class NewPassword(RequestModel):
    """A new password."""

    password: Password


class NewRole(RequestModel):
    """A new role."""

    role: UserRole


class NewToken(RequestModel):
    """A token to make."""

    name: Annotated[Text, Field(min_length=1)]
    role: Literal["metrics", "viewer", "operator", "admin"] = "viewer"
    days: Annotated[int, Field(ge=1, le=36500)] | None = Field(None, description="Without it: no end.")


class ChartQuery(RequestModel):
    """Which charts."""

    span: Literal["hour", "day"] = "hour"
