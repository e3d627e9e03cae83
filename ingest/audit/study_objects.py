"""Studies for audit messages: the patient as far as the ledger knows it, and may say it.

This module asks the ledger. The supervisor and the listeners do not import it.
"""

import contextlib
from collections.abc import Mapping

from ingest.audit.messages import EventKind, StudyObject
from ingest.audit.recorder import Action, AuditTrail, record_action
from ingest.config.model import Config
from ingest.errors import LedgerError
from ingest.ledger import Ledger


def describe_study(
    config: Config,
    ledger: Ledger,
    study_uid: str,
    *,
    sop_classes: Mapping[str, int] | None = None,
    is_encrypted: bool | None = None,
) -> StudyObject:
    """Return a study with its patient, for a message.

    The level of today counts: an index that was made with a higher level says no more than today's.

    Args:
        config: The configuration.
        ledger: The ledger.
        study_uid: Study Instance UID.
        sop_classes: Number of instances of each SOP class, if the message says it.
        is_encrypted: Whether the instances were encrypted on their way, if the message says it.

    Raises:
        LedgerError: The ledger is away.
    """
    level, found = config.ledger.index, ledger.transfers.find_study(study_uid)
    return StudyObject(
        study_uid,
        patient_id=found.patient_id if level != "none" else "",
        patient_name=found.patient_name if level == "full" else "",
        accession_number=found.accession_number if level != "none" else "",
        sop_classes=sop_classes or {},
        is_encrypted=is_encrypted,
        has_several_patients=found.patients_differ,
    )


def record_study_access(
    config: Config,
    user: str,
    address: str,
    action: Action,
    study_uid: str,
    *,
    target: str = "",
    description: str = "",
    succeeded: bool = True,
) -> bool:
    """Record what a person did with instances of one study, as DICOM Instances Accessed with its patient.

    While the ledger is away, the message names no patient.

    Args:
        config: The configuration.
        user: Name of the user.
        address: IP address of the browser.
        action: The action.
        study_uid: Study Instance UID.
        target: As in `record_action`.
        description: As in `record_action`.
        succeeded: Whether it was done.
    """
    trail = AuditTrail.open(config)
    if trail is None or not trail.wants(EventKind.ACTION):
        return True
    study = StudyObject(study_uid)
    with contextlib.suppress(LedgerError), contextlib.closing(Ledger(config.ledger_url)) as ledger:
        study = describe_study(config, ledger, study_uid)
    return record_action(
        config,
        user,
        address,
        action,
        target=target,
        description=description,
        succeeded=succeeded,
        studies=[study],
    )
