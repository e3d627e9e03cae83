"""Trace a study or an instance: what happened to it here, in order, and what happens next."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from ingest.clock import unix_ms
from ingest.config.model import Config
from ingest.dicom.uids import is_valid_uid
from ingest.errors import UnknownObjectError
from ingest.ledger import DeliveryRow, Instance, Ledger
from ingest.ledger.callers import CallerCertificate
from ingest.ledger.instances import CHUNK
from ingest.operations.deliveries import combine_all_circuits
from ingest.operations.times import format_iso_time
from ingest.operations.trace_events import (
    TraceContext,
    TracedDelivery,
    TracedInstance,
    TraceEvent,
    make_events,
    merge_events,
)
from ingest.operations.trace_steps import NextStep, make_steps, merge_steps
from ingest.operations.waiting import SpoolSearch, WaitingInstance, find_waiting

STUDIES_MAX: Final = 20
"""Studies of one accession number that a trace reads, the last received first."""

EVENTS_MAX: Final = 1_000
"""Completions of a study that a trace reads, the newest first."""

INSTANCES_MAX: Final = 5_000
"""Instances of a study that a trace reads, the oldest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """The way of a study or of the objects of one SOP instance UID.

    Attributes:
        wanted: The UID or accession number that was asked for.
        kind: Kind of `wanted`: "study", "series", "instance" or "accession number".
        study_uids: Study instance UIDs that were found.
        instances: Rows of the ledger, oldest first.
        waiting: Instances in the spool that no worker has recorded yet.
        events: What happened, oldest first; events without a time come last.
        next_steps: What happens next.
        certificates: Caller certificates by fingerprint.
        notes: What the trace leaves out.
    """

    wanted: str
    kind: str
    study_uids: tuple[str, ...]
    instances: Sequence[TracedInstance]
    waiting: Sequence[WaitingInstance] = ()
    events: Sequence[TraceEvent] = ()
    next_steps: Sequence[NextStep] = ()
    certificates: Mapping[str, CallerCertificate] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the trace for JSON."""
        return {
            "wanted": self.wanted,
            "kind": self.kind,
            "study_uids": list(self.study_uids),
            "events": [event.to_json() for event in self.events],
            "next_steps": [step.to_json() for step in self.next_steps],
            "instances": [each.to_json() for each in self.instances],
            "waiting": [_waiting_to_json(each) for each in self.waiting],
            "certificates": [certificate_to_json(each) for each in self.certificates.values()],
            "notes": list(self.notes),
        }


def trace(config: Config, wanted: str, search: SpoolSearch | None = None) -> Trace:
    """Trace a study, a series, or the objects of a SOP instance UID.

    Args:
        config: The configuration.
        wanted: A study, series or SOP instance UID, or an accession number.
        search: What an earlier search of the spool has found; None searches it now.

    Raises:
        UnknownObjectError: Neither ledger nor spool knows it.
        LedgerError: The ledger is away.
    """
    wanted = wanted.strip()
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        ledger.require_schema()
        # The spool first: an entry that is recorded between both looks is seen at least once.
        search = search or find_waiting(config.spool_dir, wanted)
        kind, rows = _find_rows(ledger, wanted)
        recorded = {row.spool_ref.partition(":")[2] for row in rows}
        waiting = tuple(each for each in search.found if each.location not in recorded)
        if not rows and not waiting:
            raise UnknownObjectError(_explain_unknown(config, wanted, search))
        if not rows:
            kind = waiting[0].name_kind(wanted)
        notes = _list_notes(rows, search)
        traced = _read_deliveries(ledger, rows[:INSTANCES_MAX])
        series = {row.series_uid for row in rows} | {""}
        completions = [
            event
            for uid in dict.fromkeys(row.study_uid for row in rows)
            for event in ledger.receptions.list_events(EVENTS_MAX, study_uid=uid)
            if event.series_uid in series
        ]
        circuits = ledger.circuits.read_circuits()
        circuits |= combine_all_circuits(config, circuits)
        certificates = ledger.callers.find_certificates(_list_fingerprints(rows, waiting))
    context = TraceContext(config, circuits, certificates, unix_ms())
    studies = {row.study_uid: None for row in rows} | {each.header.study_uid: None for each in waiting}
    return Trace(
        wanted=wanted,
        kind=kind,
        study_uids=tuple(studies),
        instances=traced,
        waiting=waiting,
        events=merge_events(make_events(context, traced, waiting, completions)),
        next_steps=merge_steps(make_steps(context, traced, waiting)),
        certificates=certificates,
        notes=notes,
    )


def _find_rows(ledger: Ledger, wanted: str) -> tuple[str, Sequence[Instance]]:
    """Find the rows of a UID or an accession number, and tell which of both it is."""
    most = INSTANCES_MAX + 1
    if rows := ledger.instances.find_by_sop_instance_uid(wanted):
        return "instance", rows[:most]
    if rows := ledger.instances.find_by_study_uid(wanted, most):
        return "study", rows
    of_studies = _find_rows_of_studies(ledger, ledger.study_lists.find_studies_of_series(wanted, STUDIES_MAX))
    if rows := [row for row in of_studies if row.series_uid == wanted]:
        return "series", rows
    numbered = ledger.study_lists.find_studies_by_accession(wanted, STUDIES_MAX) if wanted else []
    return "accession number", _find_rows_of_studies(ledger, numbered)


def _find_rows_of_studies(ledger: Ledger, uids: Iterable[str]) -> list[Instance]:
    return [row for uid in uids for row in ledger.instances.find_by_study_uid(uid, INSTANCES_MAX + 1)]


def certificate_to_json(certificate: CallerCertificate) -> dict[str, Any]:
    """Return a caller certificate for JSON."""
    times = ("not_before", "not_after", "first_at", "last_at")
    titles = {title: format_iso_time(at) for title, at in certificate.titles.items()}
    return (
        asdict(certificate)
        | {name: format_iso_time(getattr(certificate, name)) for name in times}
        | {"titles": titles}
    )


def _waiting_to_json(waiting: WaitingInstance) -> dict[str, Any]:
    header = waiting.header
    names = ("sop_instance_uid", "sop_class_uid", "study_uid", "series_uid", "transfer_syntax_uid")
    more = ("calling_ae", "called_ae", "source", "size")
    return {name: getattr(header, name) for name in (*names, *more)} | {
        "certificate": header.fingerprint,
        "received_at": format_iso_time(waiting.received_at),
        "spool_entry": waiting.location,
    }


def _explain_unknown(config: Config, wanted: str, search: SpoolSearch) -> str:
    days = config.retention.ledger_keep_days
    hints = [
        "see `ingest studies --since 1d` for what came",
        "`ingest refusals` for senders that were refused",
    ]
    if not search.is_complete:
        hints.append("the spool has more entries than were looked at: try again when it is shorter")
    if days:
        hints.append(f"rows of removed instances are forgotten after {days:g} days (ledger_keep_days)")
    if config.ledger.index == "none":
        hints.append('accession numbers are not indexed ([ledger] index is "none")')
    # INVARIANT 9: an accession number is patient data, and an error may reach a log.
    name = f'"{wanted}"' if is_valid_uid(wanted) else "with this accession number"
    return f"no study or instance {name} in ledger or spool; {'; '.join(hints)}"


def _list_notes(rows: Sequence[Instance], search: SpoolSearch) -> tuple[str, ...]:
    notes = []
    if len(rows) > INSTANCES_MAX:
        notes.append(f"only the first {INSTANCES_MAX} instances are traced")
    if not search.is_complete:
        notes.append("the spool has more entries than were looked at")
    if search.found and not search.is_fresh:
        notes.append("what waits in the spool is as of the last search; load the page again to search anew")
    return tuple(notes)


def _list_fingerprints(rows: Iterable[Instance], waiting: Iterable[WaitingInstance]) -> set[str]:
    found = {row.certificate for row in rows} | {each.header.fingerprint for each in waiting}
    return found - {""}


def _read_deliveries(ledger: Ledger, rows: Sequence[Instance]) -> list[TracedInstance]:
    deliveries: dict[int, list[DeliveryRow]] = {}
    for start in range(0, len(rows), CHUNK):
        ids = [row.id for row in rows[start : start + CHUNK]]
        deliveries |= ledger.deliveries.find_by_instances(ids)
    all_ids = [each.id for of_instance in deliveries.values() for each in of_instance]
    attempts = ledger.attempts.find_by_deliveries(all_ids)
    return [
        TracedInstance(
            row,
            [TracedDelivery(each, attempts.get(each.id, ())) for each in deliveries.get(row.id, ())],
        )
        for row in rows
    ]
