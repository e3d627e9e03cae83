"""A ledger of ten million instances: how long each list and page waits for it, and what recording costs.

The rows are made by the database itself, in bulk. They look like those of a hospital: a hundred instances a
study, two series, one destination that has nearly everything and one that waits for the newest. The triggers
that count rows are off meanwhile, and the counters are made afterwards.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import make_url, text

from ingest.ledger import DeliveryState, InstanceState, Ledger, NewInstance
from ingest.ledger.delivery_admin import DeliveryFilter
from ingest.ledger.index import InstanceFilter

INSTANCES_PER_STUDY: Final = 100
CHUNK: Final = 500_000
"""Rows of one statement."""

REPEATS: Final = 5
RECORDED: Final = 20_000
"""Instances that are recorded to compare the rate with that of an empty ledger."""

BATCH: Final = 100
ROOT: Final = "1.2.826.0.1.3680043.10.1338"
FIRST_MS: Final = 1_700_000_000_000
STEP_MS: Final = 2_000
"""Time between two instances: ten million arrive within eight months."""

_NUMBERS: Final = {
    "sqlite": (
        "WITH RECURSIVE numbers(i) AS (SELECT :first UNION ALL SELECT i + 1 FROM numbers WHERE i < :last) "
    ),
    "postgresql": (
        "WITH numbers AS ("
        "SELECT i FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS numbers(i)) "
    ),
}
_STATE: Final = (
    "CASE WHEN i % 5000 = 0 THEN 'quarantined' WHEN i % 5000 = 1 THEN 'replaced' ELSE 'stored' END"
)
_STUDY: Final = f"((i - 1) / {INSTANCES_PER_STUDY} + 1)"
_ARRIVED: Final = f"({FIRST_MS} + i * {STEP_MS})"


@dataclass(frozen=True, slots=True)
class Timing:
    """The time of one function: milliseconds of the median and of the slowest call."""

    name: str
    median_ms: float
    slowest_ms: float


@dataclass(frozen=True, slots=True)
class RecordingRate:
    """Instances a second that are recorded, in a ledger of this size and in an empty one."""

    full: float
    empty: float


@dataclass(frozen=True, slots=True)
class ScaleResult:
    """The figures of one ledger."""

    dialect: str
    instances: int
    fill_seconds: float
    timings: list[Timing]
    recording: RecordingRate


def measure_scale(url: str | None, folder: Path, count: int, report: Callable[[str], object]) -> ScaleResult:
    """Fill a ledger and measure it.

    Args:
        url: An empty PostgreSQL database; None makes an SQLite file in `folder`.
        folder: Folder for SQLite. The empty ledger of the comparison is there, or a second schema.
        count: Number of instances.
        report: Called with lines about the progress.
    """
    full = Ledger(url or f"sqlite:///{folder / 'full.db'}")
    empty = Ledger(_make_empty_url(full, url, folder))
    try:
        for ledger in (full, empty):
            ledger.migrate()
        begun = time.perf_counter()
        fill_ledger(full, count, lambda share: report(f"filled: {share:.0%}"))
        fill_seconds = time.perf_counter() - begun
        timings = time_calls(list_calls(full, count), report)
        recording = measure_recording(full, empty, count)
    finally:
        full.close()
        empty.close()
    return ScaleResult(full.database.dialect, count, fill_seconds, timings, recording)


def _make_empty_url(full: Ledger, url: str | None, folder: Path) -> str:
    if url is None:
        return f"sqlite:///{folder / 'empty.db'}"
    with full.database.begin_write() as connection:
        connection.exec_driver_sql("CREATE SCHEMA empty")
    return make_url(url).update_query_dict({"options": "-csearch_path=empty"}).render_as_string(False)


def fill_ledger(ledger: Ledger, count: int, report_progress: Callable[[float], object]) -> None:
    """Fill an empty ledger with `count` instances, their studies, series and deliveries."""
    dialect = ledger.database.dialect
    numbers = _NUMBERS[dialect]
    with _without_triggers(ledger):
        for first in range(1, count + 1, CHUNK):
            last = min(first + CHUNK - 1, count)
            for statement in (_INSTANCES, _DELIVERED, _WAITING):
                values = {"first": first, "last": last, "newest": count - count // 50}
                with ledger.database.begin_write() as connection:
                    used = {
                        name: value for name, value in values.items() if f":{name}" in numbers + statement
                    }
                    target, _, query = statement.partition(" SELECT ")
                    connection.execute(text(f"{target} {numbers}SELECT {query}"), used)
            report_progress(last / count)
        studies = count // INSTANCES_PER_STUDY
        for statement in (_STUDIES, _SERIES, _SENDERS):
            target, _, query = statement.partition(" SELECT ")
            with ledger.database.begin_write() as connection:
                connection.execute(text(f"{target} {numbers}SELECT {query}"), {"first": 1, "last": studies})
    _count_rows(ledger)
    with ledger.database.open_session() as session:
        session.execute(text("ANALYZE"))


def time_calls(calls: dict[str, Callable[[], Any]], report: Callable[[str], object]) -> list[Timing]:
    """Call each function once to warm up, then some times; report and return their times."""
    timings = []
    for name, call in calls.items():
        call()
        seconds: list[float] = []
        for _ in range(REPEATS):
            begun = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - begun)
        timing = Timing(name, statistics.median(seconds) * 1000, max(seconds) * 1000)
        report(f"{timing.name:36}{timing.median_ms:9.1f} ms  at most {timing.slowest_ms:.1f} ms")
        timings.append(timing)
    return timings


def measure_recording(full: Ledger, empty: Ledger, count: int) -> RecordingRate:
    """Record instances in both ledgers by turns, in batches as the persist worker does."""
    seconds = {full: 0.0, empty: 0.0}
    for start in range(0, RECORDED, BATCH):
        rows = [_make_row(count + start + number) for number in range(BATCH)]
        order = (full, empty) if start // BATCH % 2 else (empty, full)
        for ledger in order:
            begun = time.perf_counter()
            ledger.instances.record(rows)
            seconds[ledger] += time.perf_counter() - begun
    return RecordingRate(RECORDED / seconds[full], RECORDED / seconds[empty])


def _make_row(number: int) -> NewInstance:
    study = number // INSTANCES_PER_STUDY
    uid = f"{ROOT}.{study}.1.{number}.9"
    return NewInstance(
        state=InstanceState.STORED,
        sop_instance_uid=uid,
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        study_uid=f"{ROOT}.{study}",
        series_uid=f"{ROOT}.{study}.1",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        store_key=f"{ROOT}.{study}/{uid}.dcm",
        size=525_000,
        data_set_offset=400,
        calling_ae="CT1",
        called_ae="INGEST",
        source="dicoms://192.0.2.7:4000",
        spool_ref=f"new:{number}",
        note="",
        received_at=FIRST_MS + number * STEP_MS,
        stored_at=FIRST_MS + number * STEP_MS + 20,
        routed="all",
        destinations=("pacs",),
    )


@contextlib.contextmanager
def _without_triggers(ledger: Ledger) -> Iterator[None]:
    """Take the triggers away meanwhile; each would run ten million times."""
    if ledger.database.dialect == "postgresql":
        with ledger.database.begin_write() as connection:
            for table in ("instances", "deliveries"):
                connection.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER USER"))
        yield
        with ledger.database.begin_write() as connection:
            for table in ("instances", "deliveries"):
                connection.execute(text(f"ALTER TABLE {table} ENABLE TRIGGER USER"))
        return
    with ledger.database.begin_write() as connection:
        query = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
        triggers = connection.execute(text(query)).all()
        for name, _ in triggers:
            connection.exec_driver_sql(f"DROP TRIGGER {name}")
    yield
    with ledger.database.begin_write() as connection:
        for _, statement in triggers:
            connection.exec_driver_sql(statement)


def _count_rows(ledger: Ledger) -> None:
    with ledger.database.begin_write() as connection:
        connection.execute(text("DELETE FROM row_counts"))
        for table, named, grouping in (
            ("instances", "''", "state"),
            ("deliveries", "destination", "destination, state"),
        ):
            connection.execute(
                text(
                    "INSERT INTO row_counts (counted, destination, state, session, number) "
                    f"SELECT '{table}', {named}, state, 0, count(*) FROM {table} GROUP BY {grouping}"
                )
            )


_INSTANCES: Final = (
    "INSERT INTO instances (id, state, sop_instance_uid, sop_class_uid, study_uid, series_uid, "
    "transfer_syntax_uid, store_key, size, data_set_offset, calling_ae, called_ae, source, spool_ref, note, "
    "received_at, stored_at, routed, content_digest) "
    f"SELECT i, {_STATE}, '{ROOT}.' || {_STUDY} || '.1.' || i, '1.2.840.10008.5.1.4.1.1.2', "
    f"'{ROOT}.' || {_STUDY}, '{ROOT}.' || {_STUDY} || '.' || (i % 2 + 1), '1.2.840.10008.1.2.1', "
    f"'{ROOT}.' || {_STUDY} || '/' || i || '.dcm', 525000, 400, 'CT' || ({_STUDY} % 20), 'INGEST', "
    f"'dicoms://192.0.2.7\\:4000', 's:' || i, '', {_ARRIVED}, {_ARRIVED} + 20, 'all', '' FROM numbers"
)
_DELIVERED: Final = (
    "INSERT INTO deliveries (instance_id, destination, state, attempts, next_at, created_at, updated_at, "
    "last_status, last_error) "
    f"SELECT i, 'pacs', CASE WHEN i % 2000 = 7 THEN 'dead' ELSE 'delivered' END, 1, 0, {_ARRIVED}, "
    f"{_ARRIVED} + 900, CASE WHEN i % 2000 = 7 THEN 43264 ELSE 0 END, "
    "CASE WHEN i % 2000 = 7 THEN 'A900H: data set does not match SOP class' ELSE '' END FROM numbers "
    f"WHERE {_STATE} = 'stored'"
)
_WAITING: Final = (
    "INSERT INTO deliveries (instance_id, destination, state, attempts, next_at, created_at, updated_at) "
    f"SELECT i, 'vna', 'waiting', 0, 0, {_ARRIVED}, {_ARRIVED} FROM numbers "
    f"WHERE i > :newest AND {_STATE} = 'stored'"
)
_OF_STUDY_FIRST: Final = f"((i - 1) * {INSTANCES_PER_STUDY} + 1)"
_OF_STUDY_LAST: Final = f"(i * {INSTANCES_PER_STUDY})"
_DIGITS: Final = "substr('0000000' || {0}, length({0} || '') + 1)"
_STUDIES: Final = (
    "INSERT INTO studies (study_uid, first_at, last_at, first_id, last_id, last_stored_at, calling_ae, "
    "patient_id, patient_name, name_alphabetic, accession_number, study_date, study_time, study_description, "
    "institution_name, indexed_as) "
    f"SELECT '{ROOT}.' || i, {FIRST_MS} + {_OF_STUDY_FIRST} * {STEP_MS}, "
    f"{FIRST_MS} + {_OF_STUDY_LAST} * {STEP_MS}, {_OF_STUDY_FIRST}, {_OF_STUDY_LAST}, "
    f"{FIRST_MS} + {_OF_STUDY_LAST} * {STEP_MS} + 20, 'CT' || (i % 20), "
    f"'P' || {_DIGITS.format('(i % 60000)')}, 'Family' || (i % 9000) || '^Given' || (i % 500), "
    f"'family' || (i % 9000) || '^given' || (i % 500), 'A' || {_DIGITS.format('i')}, "
    "'2026' || substr('0' || (i / 9000 + 1), length((i / 9000 + 1) || '')) || "
    "substr('0' || (i % 28 + 1), length((i % 28 + 1) || '')), '101500', 'CT thorax', 'Hospital', 'full' "
    "FROM numbers"
)
_SERIES: Final = (
    "INSERT INTO series (study_uid, series_uid, modality, series_number, series_description) "
    f"SELECT '{ROOT}.' || i, '{ROOT}.' || i || '.' || j, "
    "CASE WHEN i % 4 = 0 THEN 'MR' ELSE 'CT' END, j, 'axial' "
    "FROM numbers CROSS JOIN (SELECT 1 AS j UNION ALL SELECT 2) AS two"
)
_SENDERS: Final = (
    f"INSERT INTO study_senders (study_uid, calling_ae) SELECT '{ROOT}.' || i, 'CT' || (i % 20) FROM numbers"
)


def list_calls(ledger: Ledger, count: int, limit: int = 100) -> dict[str, Callable[[], Any]]:
    """Return the lists and pages of command line and console, each with the filters that cost most."""
    studies = count // INSTANCES_PER_STUDY
    now_ms = FIRST_MS + count * STEP_MS
    middle = f"{ROOT}.{studies // 2}"
    index, admin = ledger.index, ledger.delivery_admin

    def find_studies(**conditions: Any) -> Callable[[], Any]:
        return lambda: index.find_studies(InstanceFilter(**conditions), limit, lately=now_ms - 60_000)

    def find_instances(**conditions: Any) -> Callable[[], Any]:
        return lambda: index.find_instances(InstanceFilter(**conditions), limit)

    def find_deliveries(**conditions: Any) -> Callable[[], Any]:
        return lambda: admin.find_deliveries(DeliveryFilter(**conditions), limit)

    day = 24 * 3600 * 1000
    return {
        "studies: newest": find_studies(),
        "studies: accession number": find_studies(accession_number=f"A{studies // 2:07}"),
        "studies: patient ID": find_studies(patient_id="P0000042"),
        "studies: patient ID, wildcard": find_studies(patient_id="P00000*"),
        "studies: patient name": find_studies(patient_name="family42^given*"),
        "studies: date": find_studies(date_from="20260501", date_to="20260507"),
        "studies: modality MR": find_studies(modality="MR"),
        "studies: sender": find_studies(calling_ae="CT7"),
        "studies: received on one old day": find_studies(since=FIRST_MS + day, until=FIRST_MS + 2 * day),
        "studies: dead at pacs": find_studies(destination="pacs", delivery_states=(DeliveryState.DEAD,)),
        "studies: delivered to pacs": find_studies(
            destination="pacs", delivery_states=(DeliveryState.DELIVERED,)
        ),
        "studies: waiting at vna": find_studies(destination="vna", delivery_states=(DeliveryState.WAITING,)),
        "study: its series": lambda: index.find_series(middle),
        "instances: newest": find_instances(),
        "instances: of a study": find_instances(study_uid=middle),
        "instances: quarantined": find_instances(states=(InstanceState.QUARANTINED,)),
        "instances: accession number": find_instances(accession_number=f"A{studies // 2:07}"),
        "instances: sender of long ago": find_instances(calling_ae="CT7", until=FIRST_MS + 2 * day),
        "deliveries: newest": find_deliveries(),
        "deliveries: dead at pacs": find_deliveries(destination="pacs", states=(DeliveryState.DEAD,)),
        "deliveries: waiting at vna": find_deliveries(destination="vna", states=(DeliveryState.WAITING,)),
        "deliveries: delivered": find_deliveries(states=(DeliveryState.DELIVERED,)),
        "deliveries: delivered to pacs": find_deliveries(
            destination="pacs", states=(DeliveryState.DELIVERED,)
        ),
        "deliveries: dead, with a text": find_deliveries(states=(DeliveryState.DEAD,), error="A900H"),
        "deliveries: of a study": find_deliveries(study_uid=middle),
        "status: progress of destinations": lambda: ledger.throughput.read_progress(now_ms),
        "status: counts": ledger.count_rows,
        "status: quarantine": ledger.quarantine.count_acknowledged,
    }
