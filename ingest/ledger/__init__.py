"""The ledger: the durable state of every instance and every delivery, in SQL."""

from ingest.ledger.circuits import Circuit, CircuitState
from ingest.ledger.instances import StoreKeys
from ingest.ledger.ledger import Ledger
from ingest.ledger.quarantine import ContentIdentity
from ingest.ledger.records import (
    PLAIN_TERMS,
    UNRELEASED,
    Attempt,
    CompletionTerms,
    Counts,
    Delivery,
    DeliveryResult,
    DeliveryRow,
    DeliveryState,
    DeliveryTerms,
    Instance,
    InstanceState,
    NewInstance,
    Outcome,
)
from ingest.ledger.throughput import DestinationProgress
from ingest.program import SCHEMA_VERSION

__all__ = [
    "PLAIN_TERMS",
    "SCHEMA_VERSION",
    "UNRELEASED",
    "Attempt",
    "Circuit",
    "CircuitState",
    "CompletionTerms",
    "ContentIdentity",
    "Counts",
    "Delivery",
    "DeliveryResult",
    "DeliveryRow",
    "DeliveryState",
    "DeliveryTerms",
    "DestinationProgress",
    "Instance",
    "InstanceState",
    "Ledger",
    "NewInstance",
    "Outcome",
    "StoreKeys",
]
