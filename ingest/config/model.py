"""The configuration as frozen, validated models. Every role gets them once, at its start.

docs/reference/configuration.md has the same names and defaults. The models check types, ranges and unknown
keys. `ingest.config.rules` checks everything that needs the file system or two sections at once. All faults
are reported together.
"""

import os
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from ingest.config.hours import find_open_since_ms, find_opening_ms, is_open, parse_hours
from ingest.dicom.study_attributes import IndexLevel


def _make_absolute(path: Path | None, info: ValidationInfo) -> Path | None:
    """Resolve `path` against the folder in the context. Tests give no context; then return it unchanged."""
    if path is not None and "\0" in str(path):
        raise ValueError("contains a NUL, which no file name may contain")
    if path is None or not info.context:
        return path
    return Path(os.path.normpath(info.context["folder"] / path))


def _require_content(value: Any) -> Any:
    """Refuse an empty path: it would silently mean the folder of the file."""
    if value == "":
        raise ValueError("is empty")
    return value


def _read_empty_as_none(value: Any) -> Any:
    return None if value == "" else value


def _make_ledger_absolute(url: str, info: ValidationInfo) -> str:
    """Resolve a relative SQLite file (three slashes) against the folder of the configuration."""
    scheme, separator, path = url.partition(":///")
    if not info.context or not separator or not scheme.startswith("sqlite") or path.startswith(("/", ":")):
        return url
    return f"{scheme}:///{os.path.normpath(info.context['folder'] / path)}" if path else url


def is_loopback(host: str) -> bool:
    """Return whether only this host can connect to an address or a name."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


FilePath = Annotated[Path, BeforeValidator(_require_content), AfterValidator(_make_absolute)]
OptionalPath = Annotated[Path | None, BeforeValidator(_read_empty_as_none), AfterValidator(_make_absolute)]

AETitle = Annotated[str, Field(min_length=1, max_length=16, pattern=r"^ *[!-\[\]-~][ -\[\]-~]*$")]
"""PS3.5 6.2, VR AE: 1 to 16 characters, no backslash, no control characters, not only spaces."""

OptionalAETitle = Annotated[str, Field(max_length=16, pattern=r"^( *[!-\[\]-~][ -\[\]-~]*)?$")]

Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
MAX_ASSOCIATIONS = 32768
"""Entries of the association table in `ingest.acceptor.scoreboard`."""

ANY_AE_TITLE = "*"
"""The AE title of a `[[peers]]` entry for every caller without its own entry."""

Positive = Annotated[int, Field(ge=1, lt=2**63)]
NotNegative = Annotated[int, Field(ge=0, lt=2**63)]
Days = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A frozen section of a configuration. Unknown keys are faults."""

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True)


class NodeSettings(Section):
    """`[node]`: name, AE title and data folder of the node."""

    name: str = ""
    ae_title: AETitle = "INGEST"
    data_dir: FilePath = Path("../var")
    drain_seconds: Seconds = 30.0
    reload_drain_seconds: Seconds = 600.0
    stable_seconds: Annotated[int, Field(ge=1, le=10**9)] = 60
    complete_idle_seconds: Annotated[int, Field(ge=1, le=10**9)] = 60
    record_completions: bool = False


class ListenerSettings(Section):
    """One of `[[listeners]]`."""

    host: Annotated[str, Field(min_length=1)] = "0.0.0.0"  # noqa: S104 - a receiving node listens
    port: Port = 2762
    tls: str | Literal[False] = "node"
    proxy_protocol: tuple[str, ...] = ()


class TLS(Section):
    """`[tls.NAME]`: keys, trusted certificates and rules for listeners and destinations."""

    certificate: OptionalPath = None
    private_key: OptionalPath = None
    pkcs12: OptionalPath = None
    password_file: OptionalPath = None
    trusted: tuple[FilePath, ...] = ()
    peer_certificate: Literal["required", "optional", "none"] = "required"
    profile: Literal["rfc8996", "rfc8996-modified", "bcp195", "bcp195-nd", "bcp195-ex", "custom"] = "rfc8996"
    minimum_version: str = ""
    ciphers: str = ""
    crl: tuple[FilePath, ...] = ()
    crl_missing: Literal["refuse", "allow"] = "refuse"
    crl_expired: Literal["refuse", "allow"] = "refuse"
    check_server_name: bool = False


class ReceiveSettings(Section):
    """`[receive]`: limits and deadlines of the listeners."""

    # A reload starts a second set of listeners beside the first, and the scoreboard has 256 rows.
    processes: Annotated[int, Field(ge=0, le=128)] = 0
    max_pdu_length: Annotated[int, Field(ge=4096, le=4 * 1024 * 1024)] = 131072
    max_associations: Annotated[int, Field(ge=1, le=MAX_ASSOCIATIONS)] = 500
    max_associations_per_peer: NotNegative = 0
    max_newcomers: Positive = 256
    max_newcomers_per_address: Positive = 64
    max_failures_per_minute: NotNegative = 300
    durability: Literal["fsync", "page-cache"] = "fsync"
    spool_dir: OptionalPath = None
    quarantine: bool = True
    quarantine_max_bytes: NotNegative = 2 * 1024**3
    accept_unknown_sop_classes: bool = True
    sop_classes: tuple[str, ...] = ("*",)
    rejected_sop_classes: tuple[str, ...] = ()
    transfer_syntaxes: tuple[str, ...] = ("*",)
    prefer_transfer_syntaxes: tuple[str, ...] = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
    check_called_ae: bool = False
    other_ae_titles: tuple[AETitle, ...] = ()
    ignore_ae_title_case: bool = False
    max_operations: Annotated[int, Field(ge=1, le=1024)] = 64
    handshake_seconds: Seconds = 10.0
    artim_seconds: Seconds = 30.0
    idle_seconds: Seconds = 600.0
    max_command_bytes: Annotated[int, Field(ge=1024)] = 65536
    header_max_bytes: Annotated[int, Field(ge=4096, le=16 * 1024**2)] = 1024**2
    max_instance_bytes: Positive = 4 * 1024**3
    segment_max_bytes: Annotated[int, Field(ge=0, le=1024**2)] = 0
    spool_max_bytes: NotNegative = 0
    min_free_bytes: NotNegative = 256 * 1024**2

    @property
    def associations_per_peer(self) -> int:
        """`max_associations_per_peer`; half of `max_associations` if the key is 0."""
        return self.max_associations_per_peer or (self.max_associations + 1) // 2


class PeerSettings(Section):
    """One of `[[peers]]`: a caller that may associate, and the services that it may use."""

    ae_title: AETitle
    hosts: tuple[str, ...] = ()
    certificate: str = ""
    issuer: str = ""
    sop_classes: tuple[str, ...] = ("*",)
    allow: tuple[Literal["echo", "store"], ...] = ("echo", "store")
    destination: str = ""
    allow_priority: bool = False

    @property
    def is_bound(self) -> bool:
        """Whether the caller must present a certain certificate."""
        return bool(self.certificate or self.issuer)


class QueueSettings(Section):
    """`[queue]`: the Redis that carries references or, with `carrier = "redis"`, data sets."""

    url: str = Field(default="", repr=False)
    password_file: OptionalPath = None
    carrier: Literal["spool", "redis"] = "spool"
    carrier_max_bytes: Positive = 64 * 1024**2
    carrier_max_waiting: Positive = 32


class StoreSettings(Section):
    """`[store]`: the folder of stored instances, and the policy for duplicates."""

    root: OptionalPath = None
    path: str = "{study_uid}/{series_uid}/{sop_uid}.dcm"
    duplicates: Literal["keep-identical", "keep-first", "keep-both", "overwrite"] = "keep-identical"


class WorkerSettings(Section):
    """`[workers]`: the number of processes of each kind that `ingest serve` starts."""

    persist: NotNegative = 1
    forward: NotNegative = 2
    encoders: Annotated[int, Field(ge=1, le=64)] = 1


class LedgerSettings(Section):
    """`[ledger]`: a URL of SQLAlchemy, empty for SQLite in data_dir; searchable attributes of studies."""

    url: Annotated[str, AfterValidator(_make_ledger_absolute)] = Field(default="", repr=False)
    password_file: OptionalPath = None
    index: IndexLevel = "identifiers"


class RetentionSettings(Section):
    """`[retention]`: limits on the age and size of stored studies.

    Without the section it removes nothing.
    """

    keep_days: Days = 0.0
    max_bytes: NotNegative = 0
    at_max_bytes: Literal["remove", "refuse"] = "remove"
    high_watermark: Fraction = 0.0
    low_watermark: Fraction = 0.0
    only_delivered: bool = True
    only_committed: bool = False
    ledger_keep_days: Days = 0.0
    max_pass_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    check_seconds: Seconds = 60.0

    @property
    def needs_remover(self) -> bool:
        """Whether a remover has to run: to remove studies or rows, or to measure the store."""
        return bool(self.keep_days or self.max_bytes or self.high_watermark or self.ledger_keep_days)

    @property
    def refuses_when_full(self) -> bool:
        """Whether the node refuses instances while the store has `max_bytes`."""
        return self.at_max_bytes == "refuse"


class BandwidthSettings(Section):
    """One entry of `bandwidth_by_hours` of `[[destinations]]`: the limit in some hours."""

    hours: Annotated[str, Field(min_length=1)]
    mb_per_s: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class Destination(Section):
    """One of `[[destinations]]`: a remote node to which instances are forwarded."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    ae_title: AETitle
    calling_ae_title: OptionalAETitle = ""
    pass_through: tuple[Literal["calling_ae", "called_ae"], ...] = ()
    host: Annotated[str, Field(min_length=1)]
    port: Annotated[int, Field(ge=1, le=65535)] = 2762
    tls: str | Literal[False] = "node"
    certificate: str = ""
    issuer: str = ""
    associations: Positive = 1
    connect_seconds: Seconds = 10.0
    response_seconds: Seconds = 60.0
    linger_seconds: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] = 1.0
    async_operations: Annotated[int, Field(ge=0, le=1024)] = 0
    bandwidth_mb_per_s: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = 0.0
    bandwidth_by_hours: tuple[BandwidthSettings, ...] = ()
    hours: str = ""
    time_zone: str = ""
    retry_first_seconds: Seconds = 2.0
    retry_max_seconds: Seconds = 300.0
    max_attempts: Positive = 20
    give_up_hours: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = 168.0
    retry_statuses: tuple[str, ...] = ()
    dead_statuses: tuple[str, ...] = ()
    one_association_per_study: bool = False
    commitment: bool = False
    commitment_seconds: Seconds = 3600.0
    set: dict[str, Any] = Field(default_factory=dict)
    remove: tuple[str, ...] = ()
    map: OptionalPath = None
    map_unmatched: Literal["send", "dead"] = "send"
    original_attributes: bool = True
    transcode: Literal["never", "if-refused", "always"] = "never"
    preferred_transfer_syntax: str = ""

    @property
    def changes_attributes(self) -> bool:
        """Whether data sets are changed on their way to this destination."""
        return bool(self.set or self.remove or self.map)

    @property
    def is_bound(self) -> bool:
        """Whether the remote must present a certain certificate."""
        return bool(self.certificate or self.issuer)

    def find_opening_ms(self, unix_ms: int) -> int:
        """Return from when on it may be sent to: `unix_ms` itself within its hours."""
        if not self.hours:
            return unix_ms
        return find_opening_ms(parse_hours(self.hours, self.time_zone), unix_ms)

    def find_open_since_ms(self, unix_ms: int) -> int:
        """Return since when it may be sent to; 0 if it may at any time."""
        return find_open_since_ms(parse_hours(self.hours, self.time_zone), unix_ms) if self.hours else 0

    def find_bandwidth_mb_per_s(self, unix_ms: int) -> float:
        """Return the limit for all associations together at a time; 0 means no limit."""
        for each in self.bandwidth_by_hours:
            if is_open(parse_hours(each.hours, self.time_zone), unix_ms):
                return each.mb_per_s
        return self.bandwidth_mb_per_s


SENDER: Final = "@sender"
"""In `to` of a route: the destination that the `[[peers]]` entry of the sender names."""


class Group(Section):
    """One of `[[groups]]`: destinations of which one gets each study."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    members: tuple[str, ...]
    policy: Literal["fail-over", "round-robin", "sticky"] = "fail-over"
    sticky_by: Literal["study", "patient"] = "study"
    weights: dict[str, Annotated[int, Field(ge=1, le=100)]] = Field(default_factory=dict)
    study_in_progress: Literal["move", "wait"] = "wait"


class Route(Section):
    """One of `[[routes]]`: conditions on an instance, and the destinations that get it."""

    name: Annotated[str, Field(max_length=64)] = ""
    to: tuple[str, ...]
    when: dict[str, Any] = Field(default_factory=dict)
    stop: bool = False
    default: bool = False
    hold: bool = False
    committed: Annotated[
        str, Field(pattern=r"^(stored|delivered(:[A-Za-z0-9_.-]{1,64})?|committed:[A-Za-z0-9_.-]{1,64})$")
    ] = "stored"
    priority: Literal["", "urgent", "normal", "bulk"] = ""
    on: Literal["instance", "series", "study"] = "instance"
    stable_seconds: Annotated[int, Field(ge=0, le=10**9)] = 0
    hours: str = ""
    time_zone: str = ""
    # The key is called "return", which is a keyword of Python.
    sends_back: bool = Field(default=False, alias="return")


class CommitmentSettings(Section):
    """`[commitment]`: how long the node waits for what a request for storage commitment names."""

    wait_seconds: Seconds = 600.0
    give_up_hours: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = 168.0


class OIDCSettings(Section):
    """`[console.oidc]`: login at an OpenID provider."""

    issuer: Annotated[str, Field(min_length=1)]
    client_id: Annotated[str, Field(min_length=1)]
    client_secret_file: OptionalPath = None
    title: str = "single sign-on"
    tls: str = ""
    scopes: tuple[str, ...] = ("openid", "profile", "email")
    name_claim: Annotated[str, Field(min_length=1)] = "preferred_username"
    role_claim: Annotated[str, Field(min_length=1)] = "groups"
    viewer: tuple[str, ...] = ()
    operator: tuple[str, ...] = ()
    admin: tuple[str, ...] = ()
    required_claim: str = ""
    required_values: tuple[str, ...] = ()


class ConsoleSettings(Section):
    """`[console]`: the web console. A configuration without the section has none."""

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Port = 8080
    tls: str = ""
    public_url: str = ""
    trusted_proxies: tuple[str, ...] = ()
    session_minutes: Annotated[int, Field(ge=1, le=525_600)] = 480
    idle_minutes: Annotated[int, Field(ge=1, le=525_600)] = 30
    download: bool = True
    max_connections: Annotated[int, Field(ge=16, le=4096)] = 256
    oidc: OIDCSettings | None = None

    @property
    def is_public(self) -> bool:
        """Whether other hosts can reach the console, directly or through a proxy."""
        try:
            public = urlsplit(self.public_url).hostname
        except ValueError:
            return True  # a fault, which is reported for the key itself
        if self.trusted_proxies or not is_loopback(self.host):
            return True
        return public is not None and not is_loopback(public)

    @property
    def is_https(self) -> bool:
        """Whether browsers reach the console over https, its own or that of a proxy."""
        return bool(self.tls) or self.public_url.startswith("https://")


class AuditSettings(Section):
    """`[audit]`: the audit record repository. Without the section there are no audit messages."""

    host: Annotated[str, Field(min_length=1)]
    port: Annotated[int, Field(ge=1, le=65535)] = 6514
    tls: str | Literal[False] = "node"
    allow_plain: bool = False
    source_id: Annotated[str, Field(max_length=64)] = ""
    enterprise_site: Annotated[str, Field(max_length=64)] = ""
    queue_max_bytes: Annotated[int, Field(ge=1024**2, lt=2**63)] = 256 * 1024**2
    away_seconds: Seconds = 900.0
    idle_seconds: Seconds = 10.0
    events: tuple[Literal["application", "transfer", "security", "login", "query", "action"], ...] = (
        "application",
        "transfer",
        "security",
        "login",
        "query",
        "action",
    )


Minutes = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


class SilentPeerSettings(Section):
    """One entry of `silent_peers` of `[[alerts]]`: when a caller has to send."""

    ae_title: AETitle
    hours: Annotated[float, Field(gt=0, le=10_000)]
    days: tuple[Weekday, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
    begin_hour: Annotated[int, Field(ge=0, le=23)] = 0
    end_hour: Annotated[int, Field(ge=1, le=24)] = 24


class AlertSettings(Section):
    """One of `[[alerts]]`: which alarms are sent to which addresses or webhook."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    type: Literal["email", "webhook"]
    alarms: tuple[str, ...] = ("*",)
    severity: Literal["degraded", "failing"] = "degraded"
    destinations: tuple[str, ...] = ("*",)
    destination_down_minutes: Minutes = 5.0
    oldest_delivery_minutes: Minutes = 60.0
    not_ready_minutes: Minutes = 2.0
    certificate_days: Annotated[float, Field(ge=0, le=3650)] = 14.0
    min_free_share: Fraction = 0.05
    silent_hours: Annotated[float, Field(ge=0, le=10_000)] = 4.0
    silent_peers: tuple[SilentPeerSettings, ...] = ()
    interval_minutes: Annotated[float, Field(gt=0, le=1e6)] = 15.0
    remind_hours: Annotated[float, Field(ge=0, le=1e6)] = 24.0
    recovery: bool = True
    give_up_hours: Annotated[float, Field(gt=0, le=1e6)] = 168.0
    timeout_seconds: Annotated[float, Field(gt=0, le=120)] = 20.0
    console_url: str = ""
    tls: str = "node"
    url: str = ""
    secret_file: OptionalPath = None
    host: str = ""
    port: Port = 0
    security: Literal["starttls", "tls", "none"] = "starttls"
    user: str = ""
    password_file: OptionalPath = None
    sender: str = ""
    recipients: tuple[str, ...] = ()

    @property
    def smtp_port(self) -> int:
        """`port`; if it is 0, the usual port for `security` (RFC 8314: 587 and 465)."""
        return self.port or {"starttls": 587, "tls": 465, "none": 25}[self.security]

    @property
    def needs_tls(self) -> bool:
        """Whether a `[tls.NAME]` section verifies the server."""
        return self.security != "none" if self.type == "email" else self.url.startswith("https:")


EventName = Literal[
    "instance.stored", "instance.quarantined", "study.complete", "delivery.delivered", "delivery.dead"
]


class WebhookSettings(Section):
    """One of `[[webhooks]]`: which events are posted to which address."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    url: str = ""
    secret_file: OptionalPath = None
    tls: str = "node"
    events: tuple[EventName, ...]
    destinations: tuple[str, ...] = ("*",)
    give_up_hours: Annotated[float, Field(gt=0, le=1e6)] = 168.0
    timeout_seconds: Annotated[float, Field(gt=0, le=120)] = 20.0

    @property
    def needs_tls(self) -> bool:
        """Whether a `[tls.NAME]` section verifies the server."""
        return self.url.startswith("https:")


def _check_endpoint(value: str) -> str:
    """Accept https to any host, and plain http to this host alone.

    Raises:
        ValueError: The URL is another one.
    """
    url = urlsplit(value)
    if url.scheme not in {"http", "https"} or not url.hostname or url.username or url.query:
        raise ValueError("is no URL such as https://collector.example.org:4318")
    if url.scheme == "http" and not is_loopback(url.hostname):
        raise ValueError("is plain http to another host; name https, or a collector on this host")
    return value


class TraceSettings(Section):
    """`[traces]`: the OpenTelemetry collector. Without the section there are no traces."""

    endpoint: Annotated[str, AfterValidator(_check_endpoint)]
    tls: str = ""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0


class LogSettings(Section):
    """`[log]`: standard error, or a file that USR1 opens again."""

    format: Literal["console", "json"] = "console"
    level: Literal["debug", "info", "warning", "error"] = "info"
    file: OptionalPath = None


class Config(Section):
    """A whole configuration. `ingest.config.reader.load_config` makes every path in it absolute."""

    node: NodeSettings = NodeSettings()
    listeners: tuple[ListenerSettings, ...] = ()
    tls: dict[str, TLS] = Field(default_factory=dict)
    receive: ReceiveSettings = ReceiveSettings()
    peers: tuple[PeerSettings, ...] = ()
    queue: QueueSettings = QueueSettings()
    store: StoreSettings = StoreSettings()
    workers: WorkerSettings = WorkerSettings()
    ledger: LedgerSettings = LedgerSettings()
    retention: RetentionSettings = RetentionSettings()
    destinations: tuple[Destination, ...] = ()
    groups: tuple[Group, ...] = ()
    routes: tuple[Route, ...] = ()
    commitment: CommitmentSettings = CommitmentSettings()
    alerts: tuple[AlertSettings, ...] = ()
    webhooks: tuple[WebhookSettings, ...] = ()
    console: ConsoleSettings | None = None
    audit: AuditSettings | None = None
    traces: TraceSettings | None = None
    log: LogSettings = LogSettings()

    @property
    def data_dir(self) -> Path:
        """The folder for all files without a separate folder."""
        return self.node.data_dir

    @property
    def spool_dir(self) -> Path:
        """`[receive] spool_dir`, or `data_dir/spool`."""
        return self.receive.spool_dir or self.data_dir / "spool"

    @property
    def store_root(self) -> Path:
        """`[store] root`, or `data_dir/store`."""
        return self.store.root or self.data_dir / "store"

    @property
    def quarantine_dir(self) -> Path:
        """`data_dir/quarantine`: instances that conflict, failed or were refused."""
        return self.data_dir / "quarantine"

    @property
    def console_dir(self) -> Path:
        """`data_dir/console`: users, tokens and sessions of the console."""
        return self.data_dir / "console"

    @property
    def target_names(self) -> tuple[str, ...]:
        """The names that a route may give: destinations, then groups."""
        return (*(each.name for each in self.destinations), *(each.name for each in self.groups))

    def list_groups_of(self, destination: str) -> tuple[str, ...]:
        """Return the names of the groups of which a destination is a member."""
        return tuple(group.name for group in self.groups if destination in group.members)

    @property
    def instance_limit(self) -> tuple[str, int]:
        """The key that limits the size of a data set, and its value in bytes."""
        own, carried = self.receive.max_instance_bytes, self.queue.carrier_max_bytes
        if self.queue.carrier == "redis" and carried < own:
            return "[queue] carrier_max_bytes", carried
        return "[receive] max_instance_bytes", own

    @property
    def needs_monitor(self) -> bool:
        """Whether a monitor has to run."""
        is_watched = self.console is not None or self.audit is not None
        has_rows = self.takes_commitment_requests or self.judges_completion
        return bool(self.alerts or self.webhooks) or is_watched or has_rows

    @property
    def judges_completion(self) -> bool:
        """Whether the monitor judges when studies and series are complete."""
        is_told = any("study.complete" in webhook.events for webhook in self.webhooks)
        return self.node.record_completions or is_told or any(route.on != "instance" for route in self.routes)

    @property
    def judges_series(self) -> bool:
        """Whether it judges series too."""
        return any(route.on == "series" for route in self.routes)

    @property
    def takes_commitment_requests(self) -> bool:
        """Whether a peer can ask for storage commitment: a report needs a destination."""
        return any(peer.destination for peer in self.peers)

    @property
    def records_transfers(self) -> bool:
        """Whether workers note transfers for audit messages."""
        return self.audit is not None and "transfer" in self.audit.events

    @property
    def run_dir(self) -> Path:
        """`data_dir/run`: scoreboard, locks and process ids of a running node."""
        return self.data_dir / "run"

    @property
    def ledger_url(self) -> str:
        """The SQLAlchemy URL of the ledger."""
        return self.ledger.url or f"sqlite:///{self.data_dir / 'ledger.db'}"
