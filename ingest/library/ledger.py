"""The reader of a ledger: lists instances, studies and deliveries, and traces one of them."""

import os
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from typing import Final, Self

from ingest.config.model import Config
from ingest.config.reader import load_config
from ingest.ledger import DeliveryState, InstanceState
from ingest.ledger import Ledger as LedgerDatabase
from ingest.ledger.delivery_filter import DeliveryFilter
from ingest.ledger.instance_filter import InstanceFilter
from ingest.library import records
from ingest.library.records import DeliveryRecord, InstanceRecord, StudyRecord, TraceRecord
from ingest.operations.deliveries import explain_waiting
from ingest.operations.instances import require_indexed
from ingest.operations.trace import trace

PAGE: Final = 500
"""Rows that one query reads."""


class Ledger:
    """A read-only view of the ledger of a node, in SQLite or PostgreSQL.

    The node may run meanwhile, on this host or another one. The database itself refuses every write. A ledger
    is a context manager; otherwise call `close`. One ledger serves one thread at a time.

    Iterators read rows when they are asked for them, 500 with each query. Rows that are recorded meanwhile do
    not appear twice.

    Every method raises `LedgerError` while the database is away, or if it has another schema version than
    this release needs.

    Example:
        with ingest.Ledger("/etc/dicom-ingest/ingest.toml") as ledger:
            for study in ledger.studies(accession_number="A123"):
                print(study.study_uid, study.instances)
    """

    def __init__(self, config: Config | str | os.PathLike[str]) -> None:
        """Open the ledger of a configuration.

        Args:
            config: The configuration, or its file.

        Raises:
            ConfigError: The file has faults.
            LedgerError: The ledger is away, or it has another schema version.
        """
        self._config = config if isinstance(config, Config) else load_config(config)
        self._database = LedgerDatabase(self._config.ledger_url, is_read_only=True)
        try:
            self._database.require_schema()
        except BaseException:
            self._database.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the database. A second call does nothing."""
        self._database.close()

    def instances(
        self,
        *,
        study_uid: str | None = None,
        series_uid: str | None = None,
        sop_instance_uid: str | None = None,
        calling_ae: str | None = None,
        states: Collection[InstanceState] = (),
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Iterator[InstanceRecord]:
        """Yield instances, the newest first. A condition that is None or empty does not apply.

        Args:
            study_uid: Study Instance UID.
            series_uid: Series Instance UID.
            sop_instance_uid: SOP Instance UID.
            calling_ae: AE title of the sender.
            states: States of the instance.
            since: Earliest time of arrival. A time without a zone is UTC.
            until: Time of arrival that is excluded.
        """
        which = InstanceFilter(
            study_uid=study_uid,
            series_uid=series_uid,
            sop_instance_uid=sop_instance_uid,
            calling_ae=calling_ae,
            states=states,
            since=_to_unix_ms(since),
            until=_to_unix_ms(until),
        )
        before: int | None = None
        while True:
            page = self._database.instance_lists.find_instances(which, PAGE, before=before)
            for found in page:
                yield records.make_instance_record(self._config, found)
            if len(page) < PAGE:
                return
            before = page[-1].instance.id

    def studies(
        self,
        *,
        accession_number: str | None = None,
        patient_id: str | None = None,
        calling_ae: str | None = None,
        modality: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Iterator[StudyRecord]:
        """Yield studies, the one with the newest instance first. Conditions hold for one of its instances.

        Args:
            accession_number: Accession number; `*` and `?` are wildcards.
            patient_id: Patient ID; `*` and `?` are wildcards.
            calling_ae: AE title of the sender.
            modality: Modality of a series.
            since: Earliest time of arrival. A time without a zone is UTC.
            until: Time of arrival that is excluded.

        Raises:
            IngestError: `[ledger] index` does not keep an attribute that is asked for.
        """
        which = InstanceFilter(
            accession_number=accession_number,
            patient_id=patient_id,
            calling_ae=calling_ae,
            modality=modality,
            since=_to_unix_ms(since),
            until=_to_unix_ms(until),
        )
        require_indexed(self._config, which)
        stable_ms = self._config.node.stable_seconds * 1000
        after: tuple[int, str] | None = None
        while True:
            lately = self._database.unix_ms() - stable_ms
            page = self._database.study_lists.find_studies(which, PAGE, lately=lately, after=after)
            for found in page:
                yield records.make_study_record(found)
            if len(page) < PAGE:
                return
            after = page[-1].last_at, page[-1].study_uid

    def deliveries(
        self,
        *,
        destination: str | None = None,
        states: Collection[DeliveryState] = (),
        study_uid: str | None = None,
        sop_instance_uid: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Iterator[DeliveryRecord]:
        """Yield deliveries, those of the newest instances first. A condition that is None does not apply.

        Neither does an empty one.

        Args:
            destination: Name of the destination.
            states: States of the delivery.
            study_uid: Study Instance UID.
            sop_instance_uid: SOP Instance UID.
            since: Earliest time of the last change. A time without a zone is UTC.
            until: Time of the last change that is excluded.
        """
        which = DeliveryFilter(
            destination=destination,
            states=states,
            study_uid=study_uid,
            sop_instance_uid=sop_instance_uid,
            since=_to_unix_ms(since),
            until=_to_unix_ms(until),
        )
        before: int | None = None
        while True:
            page = self._database.delivery_admin.find_deliveries(which, PAGE, before=before)
            circuits = self._database.circuits.read_circuits() if page else {}
            known = {each.name: each for each in self._config.destinations}
            for row in page:
                name = row.destination
                explained = explain_waiting(row, circuits.get(name), known.get(name))
                yield records.make_delivery_record(explained)
            if len(page) < PAGE:
                return
            before = page[-1].id

    def trace(self, wanted: str) -> TraceRecord:
        """Tell what happened to a study, a series or an instance, and what happens next.

        Args:
            wanted: A study, series or SOP instance UID, or an accession number.

        Raises:
            UnknownObjectError: Neither ledger nor spool knows it.
        """
        return records.make_trace_record(trace(self._config, wanted))


def _to_unix_ms(moment: datetime | None) -> int | None:
    if moment is None:
        return None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
