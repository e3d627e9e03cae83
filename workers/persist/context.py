"""Objects that all batches of one persist worker share."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import redis

from ingest.config.model import Config
from ingest.dicom.study_attributes import StudyAttributeReader
from ingest.ledger import Ledger
from ingest.routing.router import Router
from ingest.workers.backoff import Backoff, retry_with_backoff
from ingest.workers.delivery_terms import CompletionPolicy
from ingest.workers.persist.caller_recorder import CallerRecorder
from ingest.workers.persist.claim_renewal import ClaimRenewal
from ingest.workers.persist.crash_marks import CrashMarks
from ingest.workers.persist.spool_leftovers import SpoolLeftovers
from ingest.workers.persist.streams import SpoolStreams
from ingest.workers.quarantine.limit import QuarantineLimit
from ingest.workers.span_export import SpanExporter
from ingest.workers.store.filesystem import FileStore
from ingest.workers.store.keys import StoreKeyTemplate

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PersistContext:
    """The services of one persist worker.

    Attributes:
        config: The configuration.
        client: Redis, which holds the data sets of the carrier "redis".
        streams: The streams of the node, and the id of its spool.
        claims: Keeps the entries of the current batch claimed.
        store: Holds the instances.
        quarantine: Holds the instances that a person must examine.
        quarantine_limit: The limit on copies of refused instances.
        key_template: `[store] path`.
        router: `[[routes]]`.
        completion: What decides when a study is complete; None if that is not judged.
        attribute_reader: Reads the attributes of the study index from headers.
        ledger: Records instances and deliveries.
        ledger_backoff: The failures of the ledger in a row.
        leftovers: Spool entries that could not be removed.
        crash_marks: Proof that a worker died of an instance.
        callers: Brings caller certificates into the ledger.
        stop: Set when the worker is asked to stop.
        spans: Takes the spans of stored instances; None without traces.
    """

    config: Config
    client: redis.Redis
    streams: SpoolStreams
    claims: ClaimRenewal
    store: FileStore
    quarantine: FileStore
    quarantine_limit: QuarantineLimit
    key_template: StoreKeyTemplate
    router: Router
    completion: CompletionPolicy | None
    attribute_reader: StudyAttributeReader
    ledger: Ledger
    ledger_backoff: Backoff
    leftovers: SpoolLeftovers
    crash_marks: CrashMarks
    callers: CallerRecorder
    stop: threading.Event
    spans: SpanExporter | None = None

    def ask_ledger(self, call: Callable[P, T], *args: P.args, **keywords: P.kwargs) -> T:
        """Call a method of the ledger, again and again while the ledger is away.

        Raises:
            StoppedError: The worker was asked to stop while the ledger was away.
        """
        return retry_with_backoff(self.ledger_backoff, call, *args, **keywords)
