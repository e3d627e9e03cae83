# The names of the library. In __init__.py, import-linter would take these imports for those of every module.
from ingest.library import TLS as TLS
from ingest.library import AssociationError as AssociationError
from ingest.library import BootError as BootError
from ingest.library import Cause as Cause
from ingest.library import ConditionCheck as ConditionCheck
from ingest.library import Config as Config
from ingest.library import ConfigError as ConfigError
from ingest.library import DeliveryRecord as DeliveryRecord
from ingest.library import DeliveryState as DeliveryState
from ingest.library import FileResult as FileResult
from ingest.library import IngestError as IngestError
from ingest.library import InstanceRecord as InstanceRecord
from ingest.library import InstanceState as InstanceState
from ingest.library import Ledger as Ledger
from ingest.library import LedgerError as LedgerError
from ingest.library import Node as Node
from ingest.library import NodeError as NodeError
from ingest.library import Remote as Remote
from ingest.library import RouteCheck as RouteCheck
from ingest.library import Routing as Routing
from ingest.library import SendReport as SendReport
from ingest.library import StudyRecord as StudyRecord
from ingest.library import TraceLine as TraceLine
from ingest.library import TraceRecord as TraceRecord
from ingest.library import UnknownDestinationError as UnknownDestinationError
from ingest.library import UnknownObjectError as UnknownObjectError
from ingest.library import load_config as load_config
from ingest.library import route as route
from ingest.library import send as send

__version__: str

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
    "__version__",
    "load_config",
    "route",
    "send",
]
