"""List studies, instances and the quarantine."""

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from ingest.clock import unix_ms
from ingest.config.model import Config
from ingest.errors import NotIndexedError
from ingest.ledger import Instance, InstanceState, Ledger
from ingest.ledger.instance_filter import InstanceFilter
from ingest.ledger.instance_lists import FoundInstance
from ingest.ledger.study_filter import StudyFilter
from ingest.ledger.study_lists import FoundSeries, FoundStudy, StudySort
from ingest.operations.times import format_iso_time

STUDY_FIELDS: Final = tuple(field.name for field in fields(FoundStudy))
"""Names of the fields of `study_to_json`."""

_ROW_FIELDS: Final = ("id", *(field.name for field in fields(Instance) if field.name != "id"))
INSTANCE_FIELDS: Final = (*_ROW_FIELDS, "deliveries")
"""Names of the fields of `instance_to_json`."""

QUARANTINE_FIELDS: Final = (*_ROW_FIELDS, "kind", "file")
"""Names of the fields of `quarantined_to_json`."""


@dataclass(frozen=True, slots=True)
class StudyDetails:
    """A study with its series and the first of its instances, the newest first.

    Attributes:
        study, series, instances: As the index describes them.
        deliveries: Number of deliveries of all its instances, by destination and state.
    """

    study: FoundStudy
    series: Sequence[FoundSeries]
    instances: Sequence[FoundInstance]
    deliveries: Mapping[str, Mapping[str, int]]

    def to_json(self) -> dict[str, Any]:
        """Return the values for JSON."""
        return {
            **study_to_json(self.study),
            "series": [asdict(one) for one in self.series],
            "found": [instance_to_json(one) for one in self.instances],
        }


def list_studies(
    config: Config,
    which: InstanceFilter,
    limit: int,
    *,
    stable: bool | None = None,
    sort: StudySort = "received",
    ascending: bool = False,
    after: tuple[int, str] | None = None,
) -> list[FoundStudy]:
    """Return studies that match, by default the one with the newest instance first.

    Args:
        config: The configuration.
        which: The conditions. Each one holds for an instance of the study.
        limit: Maximum number of studies.
        stable: Only stable studies, or only unstable ones; None returns both.
        sort: The order.
        ascending: Whether the order begins with the smallest.
        after: `last_at` and `study_uid` of the last study of the previous page.

    Raises:
        NotIndexedError: `[ledger] index` does not keep an attribute that is asked for.
    """
    require_indexed(config, which)
    stable_since_ms = unix_ms() - config.node.stable_seconds * 1000
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        return ledger.study_lists.find_studies(
            which,
            limit,
            lately=stable_since_ms,
            stable=stable,
            sort=sort,
            ascending=ascending,
            after=after,
        )


def find_study(
    config: Config, study_uid: str, limit: int = 100, *, before: int | None = None
) -> StudyDetails | None:
    """Return a study with its series and its newest instances; None if the ledger does not know it.

    Args:
        config: The configuration.
        study_uid: Its Study Instance UID.
        limit: Maximum number of instances.
        before: Only instances with ids below this one; the last id of the previous page.
    """
    which = InstanceFilter(study_uid=study_uid)
    found = list_studies(config, which, 1)
    if not found:
        return None
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        series = ledger.study_lists.find_series(study_uid)
        instances = ledger.instance_lists.find_instances(which, limit, before=before)
        return StudyDetails(found[0], series, instances, ledger.study_lists.count_deliveries(study_uid))


def require_indexed(config: Config, which: StudyFilter) -> None:
    """Make sure that the ledger keeps the attributes that a filter compares.

    Raises:
        NotIndexedError: `[ledger] index` does not keep one.
    """
    if which.needs_index and config.ledger.index == "none":
        raise NotIndexedError(
            'accession number, patient, date and modality are not indexed: [ledger] index is "none"; set '
            '"identifiers", then `ingest reload` and `ingest ledger reindex`'
        )
    if which.patient_name is not None and config.ledger.index != "full":
        raise NotIndexedError(
            f'names of patients are not indexed: [ledger] index is "{config.ledger.index}"; search by '
            'patient ID or accession number, or set "full", then `ingest reload` and `ingest ledger reindex`'
        )


def list_instances(
    config: Config, which: InstanceFilter, limit: int, before: int | None
) -> list[FoundInstance]:
    """Return instances, the newest first.

    Raises:
        NotIndexedError: `[ledger] index` does not keep an attribute that is asked for.
    """
    require_indexed(config, which)
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        return ledger.instance_lists.find_instances(which, limit, before=before)


def find_instance(config: Config, number: int) -> Instance | None:
    """Return the instance of an id; None if there is none."""
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        return ledger.instances.find_by_ids([number]).get(number)


def name_quarantine_kind(row: Instance) -> str:
    """Return "refused" if the sender knows that the instance is not stored, otherwise "conflict"."""
    return "refused" if row.refused_status else "conflict"


def study_to_json(study: FoundStudy) -> dict[str, Any]:
    """Return the values of a study for JSON."""
    times = {name: format_iso_time(getattr(study, name)) for name in ("first_at", "last_at")}
    return asdict(study) | times


def instance_to_json(found: FoundInstance) -> dict[str, Any]:
    """Return the values of an instance, with the state of each delivery, for JSON."""
    return {**_row_to_json(found.instance), "deliveries": dict(found.deliveries)}


def quarantined_to_json(row: Instance, folder: Path) -> dict[str, Any]:
    """Return the values of an instance in quarantine for JSON; `folder` is that of the quarantine."""
    return {**_row_to_json(row), "kind": name_quarantine_kind(row), "file": str(folder / row.store_key)}


def _row_to_json(row: Instance) -> dict[str, Any]:
    times = {name: format_iso_time(getattr(row, name)) for name in ("received_at", "stored_at")}
    return {"id": row.id} | asdict(row) | times


def count_quarantined(config: Config, ids: Collection[int]) -> int:
    """Return how many of these instances are in quarantine."""
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        ledger.require_schema()
        rows = ledger.instances.find_by_ids(set(ids)).values()
    return sum(row.state is InstanceState.QUARANTINED for row in rows)
