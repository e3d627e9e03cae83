"""The configuration as frozen, validated models: what every role is given, once, at its start.

Names and defaults are those of docs/reference/configuration.md. Types, ranges and unknown keys are checked
here; what needs the file system or two sections at once is checked in `ingest.config.rules`, so that all
faults are reported together.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo


def _absolute(path: Path | None, info: ValidationInfo) -> Path | None:
    """`path` below the folder that the reader names in the context; as it is where nobody does (tests)."""
    if path is not None and "\0" in str(path):
        raise ValueError("holds a NUL, which no file's name does")
    if path is None or not info.context:
        return path
    return Path(os.path.normpath(info.context["folder"] / path))


def _not_empty(value: Any) -> Any:
    """An empty path would silently mean the file's own folder."""
    if value == "":
        raise ValueError("is empty")
    return value


def _empty_is_none(value: Any) -> Any:
    return None if value == "" else value


def _absolute_ledger(url: str, info: ValidationInfo) -> str:
    """A relative SQLite file (three slashes) starts at the file's folder, as every path does."""
    scheme, separator, path = url.partition(":///")
    if not info.context or not separator or not scheme.startswith("sqlite") or path.startswith(("/", ":")):
        return url
    return f"{scheme}:///{os.path.normpath(info.context['folder'] / path)}" if path else url


FilePath = Annotated[Path, BeforeValidator(_not_empty), AfterValidator(_absolute)]
OptionalPath = Annotated[Path | None, BeforeValidator(_empty_is_none), AfterValidator(_absolute)]

AETitle = Annotated[str, Field(min_length=1, max_length=16, pattern=r"^ *[!-\[\]-~][ -\[\]-~]*$")]
"""PS3.5 6.2, VR AE: 1 to 16 characters, no backslash, no control characters, not only spaces."""

OptionalAETitle = Annotated[str, Field(max_length=16, pattern=r"^( *[!-\[\]-~][ -\[\]-~]*)?$")]

Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
MAX_ASSOCIATIONS = 32768
"""Entries of the table in `ingest.acceptor.scoreboard`."""

Positive = Annotated[int, Field(ge=1, lt=2**63)]
NotNegative = Annotated[int, Field(ge=0, lt=2**63)]
Days = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Model(BaseModel):
    """Frozen, and unknown keys are faults."""

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True)


class Node(Model):
    """`[node]`: who we are and where our data lies."""

    name: str = ""
    ae_title: AETitle = "INGEST"
    data_dir: FilePath = Path("../var")
    drain_seconds: Seconds = 30.0
    reload_drain_seconds: Seconds = 600.0
    stable_seconds: Annotated[int, Field(ge=1, le=10**9)] = 60


class Listener(Model):
    """One of `[[listeners]]`."""

    host: Annotated[str, Field(min_length=1)] = "0.0.0.0"  # noqa: S104 - a receiving node listens
    port: Port = 2762
    tls: str | Literal[False] = "node"


class TLS(Model):
    """`[tls.NAME]`: key material and rules, usable by listeners and destinations."""

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


class Receive(Model):
    """`[receive]`: listeners, their limits and deadlines."""

    # A reload starts a second set beside the first; the scoreboard has 256 rows.
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
        """`max_associations_per_peer`, or half of `max_associations` where that is 0."""
        return self.max_associations_per_peer or (self.max_associations + 1) // 2


class Peer(Model):
    """One of `[[peers]]`: a caller that is let in, and what it may do."""

    ae_title: AETitle
    hosts: tuple[str, ...] = ()
    certificate: str = ""
    issuer: str = ""
    sop_classes: tuple[str, ...] = ("*",)
    allow: tuple[Literal["echo", "store"], ...] = ("echo", "store")


class Queue(Model):
    """`[queue]`: the Redis that carries references (or, with carrier "redis", the data sets)."""

    url: str = Field(default="", repr=False)
    carrier: Literal["spool", "redis"] = "spool"
    carrier_max_bytes: Positive = 64 * 1024**2
    carrier_max_waiting: Positive = 32


class Store(Model):
    """`[store]`: where instances end up, and what a second one of the same UID means."""

    root: OptionalPath = None
    path: str = "{study_uid}/{series_uid}/{sop_uid}.dcm"
    duplicates: Literal["keep-identical", "keep-first", "keep-both", "overwrite"] = "keep-identical"


class Workers(Model):
    """`[workers]`: how many processes of each kind `ingest serve` starts."""

    persist: NotNegative = 1
    forward: NotNegative = 2


class LedgerConfig(Model):
    """`[ledger]`: empty is SQLite in data_dir; else an SQLAlchemy URL."""

    url: Annotated[str, AfterValidator(_absolute_ledger)] = Field(default="", repr=False)


class Retention(Model):
    """`[retention]`: what may be removed from the store, and from the ledger; nothing unless it is set."""

    keep_days: Days = 0.0
    max_bytes: NotNegative = 0
    at_max_bytes: Literal["remove", "refuse"] = "remove"
    high_watermark: Fraction = 0.0
    low_watermark: Fraction = 0.0
    only_delivered: bool = True
    ledger_keep_days: Days = 0.0
    max_pass_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    check_seconds: Seconds = 60.0

    @property
    def wanted(self) -> bool:
        """Whether somebody has to look: to remove, or for how much the store holds."""
        return bool(self.keep_days or self.max_bytes or self.high_watermark or self.ledger_keep_days)

    @property
    def refuses(self) -> bool:
        """Whether nothing more is taken where `max_bytes` are in the store."""
        return self.at_max_bytes == "refuse"


class Destination(Model):
    """One of `[[destinations]]`: a remote node that instances are forwarded to."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    ae_title: AETitle
    calling_ae_title: OptionalAETitle = ""
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
    retry_first_seconds: Seconds = 2.0
    retry_max_seconds: Seconds = 300.0
    max_attempts: Positive = 20
    give_up_hours: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = 168.0
    retry_statuses: tuple[str, ...] = ()
    dead_statuses: tuple[str, ...] = ()


class Route(Model):
    """One of `[[routes]]`: which destinations get an instance."""

    name: Annotated[str, Field(max_length=64)] = ""
    to: tuple[str, ...]
    when: dict[str, Any] = Field(default_factory=dict)
    stop: bool = False
    default: bool = False
    # "return" is a keyword of Python.
    sends_back: bool = Field(default=False, alias="return")


class Console(Model):
    """`[console]`: where the web console will listen."""

    host: str = "127.0.0.1"
    port: Port = 8080


class Log(Model):
    """`[log]`: standard error, or a file that USR1 reopens."""

    format: Literal["console", "json"] = "console"
    level: Literal["debug", "info", "warning", "error"] = "info"
    file: OptionalPath = None


class Config(Model):
    """A whole configuration; every path in it is absolute once `ingest.config.load` has read it."""

    node: Node = Node()
    listeners: tuple[Listener, ...] = ()
    tls: dict[str, TLS] = Field(default_factory=dict)
    receive: Receive = Receive()
    peers: tuple[Peer, ...] = ()
    queue: Queue = Queue()
    store: Store = Store()
    workers: Workers = Workers()
    ledger: LedgerConfig = LedgerConfig()
    retention: Retention = Retention()
    destinations: tuple[Destination, ...] = ()
    routes: tuple[Route, ...] = ()
    console: Console = Console()
    log: Log = Log()

    @property
    def data_dir(self) -> Path:
        """The folder below which everything lies that is not set apart."""
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
        """`data_dir/quarantine`: copies of what was refused as unreadable or conflicting."""
        return self.data_dir / "quarantine"

    @property
    def instance_limit(self) -> tuple[str, int]:
        """The largest data set that is received: which key says so, and bytes."""
        own, carried = self.receive.max_instance_bytes, self.queue.carrier_max_bytes
        if self.queue.carrier == "redis" and carried < own:
            return "[queue] carrier_max_bytes", carried
        return "[receive] max_instance_bytes", own

    @property
    def run_dir(self) -> Path:
        """`data_dir/run`: scoreboard, locks and process ids of a running node."""
        return self.data_dir / "run"

    @property
    def ledger_url(self) -> str:
        """The SQLAlchemy URL of the ledger."""
        return self.ledger.url or f"sqlite:///{self.data_dir / 'ledger.db'}"
