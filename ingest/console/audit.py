"""Records of what people and programs do in the console: an event of the log, and an audit message.

The log gets names of users, ids, UIDs and names of destinations, but no search terms: these may be names of
patients. The audit trail, which is made for it, gets them too.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import structlog

from ingest.audit import recorder
from ingest.audit.recorder import Action
from ingest.audit.study_objects import record_study_access
from ingest.config.model import Config
from ingest.dicom.uids import is_valid_uid
from ingest.errors import LedgerError
from ingest.ledger import Instance, Ledger

log = structlog.get_logger()


class DecisionResult(Protocol):
    """What became of an instance in quarantine; the class of it belongs to workers."""

    @property
    def id(self) -> int:
        """Id of its row."""

    @property
    def outcome(self) -> str:
        """What was done with it, or "failed"."""


def record_login(config: Config, user: str, address: str, *, succeeded: bool, how: str) -> None:
    """Record a login, or a refused one."""
    # A person may type a password into the field of the name: the log keeps no name that is not known.
    write = log.info if succeeded else log.warning
    write("console_login", user=user if succeeded else "", address=address, succeeded=succeeded, how=how)
    recorder.record_user_login(
        config, user if succeeded else "unknown", address, succeeded=succeeded, description=how
    )


def record_logout(config: Config, user: str, address: str) -> None:
    """Record a logout."""
    log.info("console_logout", user=user, address=address)
    recorder.record_user_logout(config, user, address)


def hide_typed_text(config: Config, name: str, value: Any) -> Any:
    """Return a value for the log: "other" for what is no UID, or no destination of the configuration.

    A person may type the name of a patient into any field.
    """
    if name.endswith("_uid"):
        return value if is_valid_uid(str(value)) else "other"
    if name == "destination":
        return value if value in config.target_names else "other"
    return value


def record_action(
    config: Config,
    user: str,
    address: str,
    action: Action,
    target: str,
    *,
    succeeded: bool = True,
    details: Mapping[str, Any] | None = None,
    study_uid: str | None = None,
    note: str = "",
) -> None:
    """Record an action, such as a retry.

    Args:
        config: The configuration.
        user: Name of the person or program.
        address: Its IP address.
        action: The action.
        target: What it concerns, such as "destination/PACS"; no patient data.
        succeeded: Whether it was done.
        details: More about it, such as ids and counts; no patient data.
        study_uid: Study whose instances a person read or changed: the audit message names its patient.
        note: Free text of the person or a peer, for the audit trail only.
    """
    kind, _, name = target.partition("/")
    log.info(
        "console_action",
        user=user,
        address=address,
        action=action.value,
        target=f"{kind}/{hide_typed_text(config, kind, name)}" if kind == "destination" else target,
        succeeded=succeeded,
        **{key: hide_typed_text(config, key, value) for key, value in (details or {}).items()},
    )
    said_of = [f"{name} {value}" for name, value in (details or {}).items()]
    description = ", ".join([*said_of, *([note] if note else [])])
    said: dict[str, Any] = {"target": target, "description": description, "succeeded": succeeded}
    if study_uid is None:
        recorder.record_action(config, user, address, action, **said)
    else:
        record_study_access(config, user, address, action, study_uid, **said)


def record_decisions(
    config: Config, user: str, address: str, action: Action, results: Sequence[DecisionResult]
) -> None:
    """Record what became of instances in quarantine, each with the patient of its study."""
    rows: Mapping[int, Instance] = {}
    with contextlib.suppress(LedgerError), contextlib.closing(Ledger(config.ledger_url)) as ledger:
        rows = ledger.instances.find_by_ids([each.id for each in results])
    for each in results:
        row = rows.get(each.id)
        record_action(
            config,
            user,
            address,
            action,
            f"instance/{each.id}",
            succeeded=each.outcome != "failed",
            details={"outcome": each.outcome},
            study_uid=(row.study_uid or None) if row else None,
        )


def record_query(config: Config, user: str, address: str, subject: str, criteria: Mapping[str, Any]) -> None:
    """Record a search. The log gets the names of its criteria only."""
    log.info("console_query", user=user, address=address, subject=subject, fields=sorted(criteria))
    recorder.record_query(config, user, address, subject=subject, query=json.dumps(criteria, default=str))
