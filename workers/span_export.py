"""Traces of an instance's way, sent to an OpenTelemetry collector (`[traces]`).

Workers make spans afterwards, from the times that they know anyway. A listener makes none. The instance is
one trace, whose id follows from its store key, so that workers on several hosts add to the same trace:

    instance          from its reception until it is stored
      persist         its batch
      deliver NAME    an attempt to deliver it

A thread of each worker sends spans as OTLP over HTTP (JSON). Spans that wait are bounded, and dropped while
the collector is away: a trace never holds up an image. Attributes are UIDs, AE titles, states and sizes. They
hold no patient data.
"""

import contextlib
import hashlib
import http.client
import importlib.metadata
import json
import secrets
import ssl
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import structlog

from ingest import threads
from ingest.clock import unix_ms
from ingest.config.model import Config
from ingest.errors import IngestError
from ingest.events.trust import create_client_context
from ingest.ledger import Delivery, DeliveryResult, DeliveryState, NewInstance
from ingest.log import RateLimitedLog, describe_defect
from ingest.network.dialer import dial_host

WAITING_MAX: Final = 4096
"""Spans that wait. Later ones are dropped."""

BATCH: Final = 512
PERIOD_SECONDS: Final = 2.0
SEND_SECONDS: Final = 5.0
"""Deadline of one connection to the collector, and of each wait for it."""

_ERROR: Final = 2  # opentelemetry.proto.trace.v1.Status.StatusCode
_INTERNAL, _CLIENT = 1, 3  # opentelemetry.proto.trace.v1.Span.SpanKind

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Span:
    """One span.

    Attributes:
        trace_id: Name of the trace in hexadecimal.
        span_id: Name of the span.
        parent_id: Name of the span around it; empty for the first one of a trace.
        start_ms, end_ms: Its times, in Unix milliseconds.
        attributes: UIDs, AE titles, states and sizes; no patient data.
    """

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    start_ms: int
    end_ms: int
    kind: int = _INTERNAL
    has_failed: bool = False
    attributes: Mapping[str, str | int] = field(default_factory=dict)

    def to_otlp(self) -> dict[str, Any]:
        """Return the span as JSON of OTLP 1.0 (opentelemetry.proto.trace.v1.Span)."""
        return {
            "traceId": self.trace_id,
            "spanId": self.span_id,
            **({"parentSpanId": self.parent_id} if self.parent_id else {}),
            "name": self.name,
            "kind": self.kind,
            "startTimeUnixNano": str(self.start_ms * 1_000_000),
            "endTimeUnixNano": str(max(self.start_ms, self.end_ms) * 1_000_000),
            "attributes": [_encode_attribute(name, value) for name, value in self.attributes.items()],
            "status": {"code": _ERROR} if self.has_failed else {},
        }


def _encode_attribute(name: str, value: str | int) -> dict[str, Any]:
    kind = "stringValue" if isinstance(value, str) else "intValue"
    return {"key": name, "value": {kind: str(value)}}


def name_trace(store_key: str) -> tuple[str, str]:
    """Return the id of an instance's trace, and of its first span."""
    digest = hashlib.sha256(store_key.encode()).hexdigest()
    return digest[:32], digest[32:48]


class SpanExporter:
    """Sends the spans of one worker. Its methods never wait and never fail."""

    def __init__(self, config: Config, role: str) -> None:
        """Prepare. `start` starts the thread.

        Args:
            config: A configuration with `[traces]`.
            role: Role of the worker.
        """
        settings = config.traces
        if settings is None:
            raise ValueError("the configuration has no [traces]")
        self._url = urlsplit(settings.endpoint)
        self._tls = config.tls[settings.tls] if settings.tls else None
        self._limit = round(settings.share * 2**32)
        self._waiting: deque[Span] = deque(maxlen=WAITING_MAX)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._log = RateLimitedLog()
        self._resource = [
            _encode_attribute("service.name", "dicom-ingest"),
            _encode_attribute("service.version", importlib.metadata.version("dicom-ingest")),
            _encode_attribute("service.instance.id", config.node.name or config.node.ae_title),
            _encode_attribute("dicom_ingest.role", role),
        ]

    def start(self) -> None:
        """Start the thread."""
        self._thread = threads.start_guarded("span-export", self._run, self._stop.is_set)

    def close(self) -> None:
        """Send what waits, within the deadline, and end."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2 * SEND_SECONDS)

    # --- spans

    def add_stored(self, row: NewInstance, batch_seconds: float) -> None:
        """Add the spans of an instance that was recorded just now."""
        trace_id, first_id = name_trace(row.store_key)
        if not self._is_chosen(trace_id):
            return
        now = unix_ms()
        attributes: dict[str, str | int] = {
            "dicom.sop_instance_uid": row.sop_instance_uid,
            "dicom.study_instance_uid": row.study_uid,
            "dicom.calling_ae": row.calling_ae,
            "dicom_ingest.state": row.state.value,
            "dicom_ingest.bytes": row.size,
        }
        began_ms = max(row.received_at, now - round(batch_seconds * 1000))
        self._waiting.append(
            Span(trace_id, first_id, "", "instance", row.received_at, now, attributes=attributes)
        )
        self._waiting.append(Span(trace_id, secrets.token_hex(8), first_id, "persist", began_ms, now))

    def add_attempt(self, row: Delivery, result: DeliveryResult, duration_ms: int | None) -> None:
        """Add the span of an attempt to deliver that has ended just now."""
        trace_id, first_id = name_trace(row.store_key)
        if not self._is_chosen(trace_id):
            return
        now = unix_ms()
        attributes: dict[str, str | int] = {
            "dicom.sop_instance_uid": row.sop_instance_uid,
            "dicom_ingest.destination": row.destination,
            "dicom_ingest.state": result.state.value,
            "dicom_ingest.attempt": row.attempts,
            "dicom_ingest.bytes": row.size,
        }
        if result.last_status is not None:
            attributes["dicom.status"] = f"{result.last_status:04X}"
        self._waiting.append(
            Span(
                trace_id,
                secrets.token_hex(8),
                first_id,
                f"deliver {row.destination}",
                now - (duration_ms or 0),
                now,
                _CLIENT,
                result.state is not DeliveryState.DELIVERED,
                attributes,
            )
        )

    def _is_chosen(self, trace_id: str) -> bool:
        """Return whether a trace belongs to the share that is sent; all workers choose the same ones."""
        return int(trace_id[:8], 16) < self._limit

    # --- the thread

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_SECONDS):
            self._send_waiting()
        self._send_waiting()

    def _send_waiting(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            try:
                self._send(batch)
            except (OSError, http.client.HTTPException, IngestError) as error:
                remedy = "see [traces] endpoint and tls; images are not concerned"
                self._log.warning("spans_dropped", count=len(batch), error=str(error), remedy=remedy)
                return
            except Exception as error:  # even a defect here must not end a worker that images need
                self._log.warning("spans_dropped", count=len(batch), **describe_defect(error))
                return

    def _send(self, spans: Sequence[Span]) -> None:
        """Send spans in one request. A redirect is an error: it could lead anywhere.

        Raises:
            OSError: The collector is away, is not trusted, or does not answer in time.
            ConfigError: A file of the [tls.NAME] cannot be used.
            HTTPException: It answers no HTTP, or refuses the request.
        """
        scope = {"scope": {"name": "dicom-ingest"}, "spans": [span.to_otlp() for span in spans]}
        body = {"resourceSpans": [{"resource": {"attributes": self._resource}, "scopeSpans": [scope]}]}
        host, is_https = self._url.hostname or "", self._url.scheme == "https"
        port = self._url.port or (443 if is_https else 80)
        # INVARIANT 7: every wait has a deadline, that for a name server too.
        plain = dial_host(host, port, SEND_SECONDS)
        plain.settimeout(SEND_SECONDS)
        with contextlib.closing(http.client.HTTPConnection(host, port)) as connection:
            connection.sock = plain
            if is_https:
                connection.sock = self._create_context().wrap_socket(plain, server_hostname=host)
            path = self._url.path.rstrip("/") or "/v1/traces"
            headers = {"Content-Type": "application/json"}
            connection.request("POST", path, json.dumps(body).encode(), headers)
            answer = connection.getresponse()
            answer.read(65536)
            if answer.status // 100 != 2:
                raise http.client.HTTPException(f"the collector answers {answer.status}")

    def _create_context(self) -> ssl.SSLContext:
        """Make a context for one connection, so that new certificates are taken over at once."""
        return create_client_context(self._tls) if self._tls is not None else ssl.create_default_context()


def make_exporter(config: Config, role: str) -> SpanExporter | None:
    """Return a started exporter if the configuration has `[traces]`, otherwise None."""
    if config.traces is None:
        return None
    exporter = SpanExporter(config, role)
    exporter.start()
    return exporter
