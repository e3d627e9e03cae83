"""The audit trail (PS3.15 A.5, IHE ITI-20): messages, their queue, and functions that record events."""

from ingest.audit.messages import EventKind, EventOutcome, StudyObject
from ingest.audit.recorder import (
    Action,
    AuditTrail,
    record_action,
    record_application,
    record_query,
    record_user_login,
    record_user_logout,
)

__all__ = [
    "Action",
    "AuditTrail",
    "EventKind",
    "EventOutcome",
    "StudyObject",
    "record_action",
    "record_application",
    "record_query",
    "record_user_login",
    "record_user_logout",
]
