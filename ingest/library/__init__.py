"""The library: what other programs may use of this package. `docs/reference/library.md` describes it.

Values and classes here have their own names and types. They do not change when the modules behind them do.
"""

from ingest.config.model import TLS, Config
from ingest.config.reader import load_config
from ingest.errors import (
    AssociationError,
    BootError,
    Cause,
    ConfigError,
    IngestError,
    LedgerError,
    NodeError,
    UnknownDestinationError,
    UnknownObjectError,
)
from ingest.ledger import DeliveryState, InstanceState
from ingest.library.ledger import Ledger
from ingest.library.node import Node
from ingest.library.records import DeliveryRecord, InstanceRecord, StudyRecord, TraceLine, TraceRecord
from ingest.library.routing import ConditionCheck, RouteCheck, Routing, route
from ingest.library.sending import FileResult, Remote, SendReport, send

__all__ = [
    "TLS",
    "AssociationError",
    "BootError",
    "Cause",
    "ConditionCheck",
    "Config",
    "ConfigError",
    "DeliveryRecord",
    "DeliveryState",
    "FileResult",
    "IngestError",
    "InstanceRecord",
    "InstanceState",
    "Ledger",
    "LedgerError",
    "Node",
    "NodeError",
    "Remote",
    "RouteCheck",
    "Routing",
    "SendReport",
    "StudyRecord",
    "TraceLine",
    "TraceRecord",
    "UnknownDestinationError",
    "UnknownObjectError",
    "load_config",
    "route",
    "send",
]
