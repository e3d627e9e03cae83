"""States in the status of a node. Their values appear in JSON."""

from enum import StrEnum


class RunningProcesses(StrEnum):
    """The processes that run on a data folder."""

    NODE = "listening"
    """A node with listeners."""
    WORKERS = "working"
    """Workers alone."""
    NONE = ""


class ListenerState(StrEnum):
    """The state of a listener."""

    BOOTING = "booting"
    ACCEPTING = "accepting"
    DRAINING = "draining"
    SILENT = "silent"
    """Its heartbeat is old."""
