"""The metrics of the board: their names, meanings, types and labels.

docs/reference/metrics.md describes the same metrics; a test compares. A label has few values, all known
before: those of a list here, or the names of a table that the supervisor fills from the configuration. Every
other value counts as `OTHER`, so that no peer can create a time series. No label holds patient data.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

OTHER: Final = "other"
"""Value of a label for everything without a value of its own. It is the first value of every label."""


class Kind(Enum):
    """The type of a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class NameTable:
    """A label whose values are names of the configuration.

    Attributes:
        name: Name of the label.
        size: Number of names, with `OTHER`. Later names count as `OTHER`.
        name_bytes: Room for one name; a multiple of eight.
    """

    name: str
    size: int
    name_bytes: int


@dataclass(frozen=True, slots=True)
class Choice:
    """A label with a fixed list of values, which begins with `OTHER`."""

    name: str
    values: tuple[str, ...]

    @property
    def size(self) -> int:
        """Number of values."""
        return len(self.values)


@dataclass(frozen=True, slots=True)
class Family:
    """A metric with one time series for each combination of its labels.

    Attributes:
        name: Name without the prefix `dicom_ingest_`; that of a counter without `_total`.
        kind: Type of the metric.
        text: Help text.
        labels: Labels, the last of which changes fastest on the board.
        scale: Factor from a word of the board to the unit in the name.
    """

    name: str
    kind: Kind
    text: str
    labels: tuple[NameTable | Choice, ...] = ()
    scale: float = 1.0

    @property
    def full_name(self) -> str:
        """Name as Prometheus shows it."""
        return f"dicom_ingest_{self.name}{'_total' if self.kind is Kind.COUNTER else ''}"


CALLING_AE: Final = NameTable("calling_ae", 256, 16)
DESTINATION: Final = NameTable("destination", 128, 64)
TABLES: Final = (CALLING_AE, DESTINATION)

ROLE: Final = Choice(
    "role", (OTHER, "supervisor", "listen", "persist", "forward", "retain", "monitor", "console", "queue")
)
REJECTION_REASON: Final = Choice(
    "reason",
    (
        OTHER,
        "calling_ae",
        "host",
        "certificate",
        "called_ae",
        "protocol_version",
        "application_context",
        "no_context",
        "limit",
        "full",
        "draining",
    ),
)
CLOSING_REASON: Final = Choice(
    "reason",
    (
        OTHER,
        "failures",
        "newcomers",
        "not_balancer",
        "proxy_missing",
        "proxy_malformed",
        "proxy_deadline",
    ),
)
TLS_CAUSE: Final = Choice(
    "cause",
    (
        OTHER,
        "unknown_ca",
        "expired",
        "not_yet_valid",
        "revoked",
        "crl",
        "certificate",
        "no_certificate",
        "unreadable_certificate",
        "version",
        "cipher",
        "alert",
        "not_tls",
        "closed",
        "deadline",
    ),
)
STATUS_CLASS: Final = Choice(
    "status", (OTHER, "out_of_resources", "mismatch", "cannot_understand", "invalid_request")
)
PERSIST_OUTCOME: Final = Choice("outcome", (OTHER, "stored", "variant", "quarantined", "duplicate", "lost"))
DELIVERY_RESULT: Final = Choice("result", (OTHER, "delivered", "retry", "dead"))
ASSOCIATION_RESULT: Final = Choice("result", (OTHER, "opened", "refused", "unreachable", "broken"))
RELOAD_RESULT: Final = Choice("result", (OTHER, "done", "refused"))

CONNECTIONS: Final = Family("connections", Kind.COUNTER, "TCP connections that listeners accepted.")
CONNECTIONS_CLOSED: Final = Family(
    "connections_closed",
    Kind.COUNTER,
    "Connections that listeners closed to protect themselves: too many failures of the address, too many "
    "connections without an association, an address that is no load balancer of the listener, or a faulty "
    "PROXY header.",
    (CLOSING_REASON,),
)
TLS_HANDSHAKES: Final = Family("tls_handshakes", Kind.COUNTER, "Completed TLS handshakes of listeners.")
TLS_FAILURES: Final = Family(
    "tls_failures", Kind.COUNTER, "Connections that failed in TLS, by cause.", (TLS_CAUSE,)
)
ASSOCIATIONS: Final = Family("associations", Kind.COUNTER, "Accepted associations.", (CALLING_AE,))
REJECTIONS: Final = Family(
    "rejections", Kind.COUNTER, "Rejected associations, by reason.", (REJECTION_REASON,)
)
INSTANCES: Final = Family(
    "instances", Kind.COUNTER, "Instances answered with Success (0000H).", (CALLING_AE,)
)
RECEIVED_BYTES: Final = Family(
    "received_bytes", Kind.COUNTER, "Data-set bytes of instances answered with Success.", (CALLING_AE,)
)
INSTANCES_REFUSED: Final = Family(
    "instances_refused",
    Kind.COUNTER,
    "Instances answered with a failure, by class of status.",
    (STATUS_CLASS,),
)
RECEIVE_SECONDS: Final = Family(
    "receive_seconds", Kind.HISTOGRAM, "Time from a C-STORE request to the end of its data set."
)
COMMIT_SECONDS: Final = Family(
    "commit_seconds", Kind.HISTOGRAM, "Time from the end of a data set until the spool has it durably."
)

PERSISTED: Final = Family(
    "persisted", Kind.COUNTER, "Instances that persist workers took off the queue.", (PERSIST_OUTCOME,)
)
PERSIST_SECONDS: Final = Family(
    "persist_seconds",
    Kind.HISTOGRAM,
    "Time from the begin of an instance's batch until the ledger has the instance.",
)
QUEUE_SECONDS: Final = Family(
    "queue_seconds", Kind.HISTOGRAM, "Time from the reception of an instance until it is stored."
)

DELIVERY_RESULTS: Final = Family(
    "delivery_results",
    Kind.COUNTER,
    "Attempts to deliver an instance, by result.",
    (DESTINATION, DELIVERY_RESULT),
)
DELIVERED_BYTES: Final = Family(
    "delivered_bytes", Kind.COUNTER, "Bytes of delivered Part 10 files.", (DESTINATION,)
)
DELIVERY_SECONDS: Final = Family(
    "delivery_seconds",
    Kind.HISTOGRAM,
    "Time from the creation of a delivery until the destination has the instance.",
    (DESTINATION,),
)
SEND_SECONDS: Final = Family(
    "send_seconds", Kind.HISTOGRAM, "Time from a C-STORE request to its response.", (DESTINATION,)
)
DESTINATION_ASSOCIATIONS: Final = Family(
    "destination_associations",
    Kind.COUNTER,
    "Associations with destinations, by result; a broken one counts as opened too.",
    (DESTINATION, ASSOCIATION_RESULT),
)

PROCESSES: Final = Family("processes", Kind.GAUGE, "Running processes.", (ROLE,))
PROCESSES_WANTED: Final = Family(
    "processes_wanted", Kind.GAUGE, "Processes that the configuration asks for.", (ROLE,)
)
PROCESS_DEATHS: Final = Family(
    "process_deaths", Kind.COUNTER, "Processes that ended and were started again.", (ROLE,)
)
PROCESS_CPU: Final = Family(
    "process_cpu_seconds", Kind.COUNTER, "CPU time of all processes, ended ones included.", (ROLE,), 1e-9
)
PROCESS_MEMORY: Final = Family(
    "process_resident_memory_bytes",
    Kind.GAUGE,
    "Resident memory of all processes. Memory that they share counts for each one.",
    (ROLE,),
)
RELOADS: Final = Family("reloads", Kind.COUNTER, "Reloads of the configuration, by result.", (RELOAD_RESULT,))

FAMILIES: Final = (
    CONNECTIONS,
    CONNECTIONS_CLOSED,
    TLS_HANDSHAKES,
    TLS_FAILURES,
    ASSOCIATIONS,
    REJECTIONS,
    INSTANCES,
    RECEIVED_BYTES,
    INSTANCES_REFUSED,
    RECEIVE_SECONDS,
    COMMIT_SECONDS,
    PERSISTED,
    PERSIST_SECONDS,
    QUEUE_SECONDS,
    DELIVERY_RESULTS,
    DELIVERED_BYTES,
    DELIVERY_SECONDS,
    SEND_SECONDS,
    DESTINATION_ASSOCIATIONS,
    PROCESSES,
    PROCESSES_WANTED,
    PROCESS_DEATHS,
    PROCESS_CPU,
    PROCESS_MEMORY,
    RELOADS,
)
"""Every metric of the board, in the order of its words."""
