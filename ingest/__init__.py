"""Receive DICOM over TLS, keep it durably, and forward it.

The names below are the library: `docs/reference/library.md` describes them, and they stay stable. They are
imported when they are used for the first time, so that `import ingest` and the command line start fast. Every
other module of this package may change with each release. `__init__.pyi` has their types.
"""

import importlib
from typing import Any

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


def __getattr__(name: str) -> Any:
    """Import a name of the library when it is used for the first time."""
    if name not in __all__:
        raise AttributeError(f"module 'ingest' has no attribute {name!r}")
    if name == "__version__":
        value: Any = importlib.import_module("ingest.build_info").read_version()
    else:
        value = getattr(importlib.import_module("ingest.library"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the names of the library, for completion."""
    return sorted({*globals(), *__all__})
