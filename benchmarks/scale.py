"""A ledger of ten million instances: how long each list and page waits for it, and what recording costs.

The rows are made by the database itself, in bulk. They look like those of a hospital: a hundred instances a
study, two series, one destination that has nearly everything and one that waits for the newest. The oldest
tenth has been removed from the store; its sender and its modality are gone. The triggers that count rows are
off meanwhile, and the counters are made afterwards.

`list_calls` makes the lists from the fields of their filters, so that no condition is left out.
"""

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, get_args

from sqlalchemy import make_url, text

from ingest.ledger import DeliveryState, InstanceState, Ledger, NewInstance
from ingest.ledger.delivery_filter import DeliveryFilter
from ingest.ledger.instance_filter import InstanceFilter
from ingest.ledger.study_lists import StudySort

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
    "CASE WHEN i <= :oldest THEN 'removed' WHEN i % 5000 = 0 THEN 'quarantined' "
    "WHEN i % 5000 = 1 THEN 'replaced' ELSE 'stored' END"
)
_STUDY: Final = f"((i - 1) / {INSTANCES_PER_STUDY} + 1)"
_SENDER: Final = f"CASE WHEN i <= :oldest THEN 'OLD' ELSE 'CT' || ({_STUDY} % 20) END"
_STUDY_SENDER: Final = "CASE WHEN i <= :oldest THEN 'OLD' ELSE 'CT' || (i % 20) END"
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
    with _without_triggers(ledger):
        for first in range(1, count + 1, CHUNK):
            last = min(first + CHUNK - 1, count)
            for statement in (_INSTANCES, _DELIVERED, _WAITING):
                values = {"first": first, "last": last, "newest": count - count // 50, "oldest": count // 10}
                _insert(ledger, statement, values)
            report_progress(last / count)
        studies = count // INSTANCES_PER_STUDY
        for statement in (_STUDIES, _SERIES, _SENDERS):
            _insert(ledger, statement, {"first": 1, "last": studies, "oldest": studies // 10})
    _count_rows(ledger)
    if ledger.database.dialect == "postgresql":
        # As its autovacuum does. The node lets SQLite plan without statistics.
        with ledger.database.open_session() as session:
            session.execute(text("ANALYZE"))


def _insert(ledger: Ledger, statement: str, values: dict[str, int]) -> None:
    target, _, query = statement.partition(" SELECT ")
    whole = f"{target} {_NUMBERS[ledger.database.dialect]}SELECT {query}"
    with ledger.database.begin_write() as connection:
        connection.execute(
            text(whole), {name: value for name, value in values.items() if f":{name}" in whole}
        )


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
        report(f"{timing.name:60}{timing.median_ms:9.1f} ms  at most {timing.slowest_ms:.1f} ms")
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
    f"'{ROOT}.' || {_STUDY} || '/' || i || '.dcm', 525000, 400, {_SENDER}, 'INGEST', "
    f"'dicoms://192.0.2.7\\:4000', 's:' || i, '', {_ARRIVED}, {_ARRIVED} + 20, 'all', '' FROM numbers"
)
_DELIVERED: Final = (
    "INSERT INTO deliveries (instance_id, destination, state, attempts, next_at, created_at, updated_at, "
    "last_status, last_error) "
    f"SELECT i, 'pacs', CASE WHEN i % 2000 = 7 THEN 'dead' ELSE 'delivered' END, 1, 0, {_ARRIVED}, "
    f"{_ARRIVED} + 900, CASE WHEN i % 2000 = 7 THEN 43264 ELSE 0 END, "
    "CASE WHEN i % 2000 = 7 THEN 'A900H: data set does not match SOP class' END FROM numbers "
    f"WHERE {_STATE} IN ('stored', 'removed')"
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
    f"{FIRST_MS} + {_OF_STUDY_LAST} * {STEP_MS} + 20, {_STUDY_SENDER}, "
    f"'P' || {_DIGITS.format('(i % 60000)')}, 'Family' || (i % 9000) || '^Given' || (i % 500), "
    f"'family' || (i % 9000) || '^given' || (i % 500), 'A' || {_DIGITS.format('i')}, "
    "'2026' || substr('0' || (i / 9000 + 1), length((i / 9000 + 1) || '')) || "
    "substr('0' || (i % 28 + 1), length((i % 28 + 1) || '')), '101500', 'CT thorax', 'Hospital', 'full' "
    "FROM numbers"
)
_SERIES: Final = (
    "INSERT INTO series (study_uid, series_uid, modality, series_number, series_description) "
    f"SELECT '{ROOT}.' || i, '{ROOT}.' || i || '.' || j, "
    "CASE WHEN i <= :oldest THEN 'XA' WHEN i % 4 = 0 THEN 'MR' ELSE 'CT' END, j, 'axial' "
    "FROM numbers CROSS JOIN (SELECT 1 AS j UNION ALL SELECT 2) AS two"
)
_SENDERS: Final = (
    f"INSERT INTO study_senders (study_uid, calling_ae) SELECT '{ROOT}.' || i, {_STUDY_SENDER} FROM numbers"
)


def list_samples(count: int) -> dict[str, list[Any]]:
    """Return values for each field of a filter: for many, few or old rows. The last one matches none."""
    studies = count // INSTANCES_PER_STUDY
    now_ms, day_ms = FIRST_MS + count * STEP_MS, 24 * 3600 * 1000
    middle = f"{ROOT}.{studies // 2}"
    nothing = "9.9.9"
    return {
        "accession_number": [f"A{studies // 2:07}", f"A{studies // 2:07}"[:-2] + "*", "A*", nothing],
        "patient_id": ["P0000042", "P00000*", "P*", "*7", nothing],
        "patient_name": ["family42^given*", "fam*", nothing],
        "date_from": ["20260901", "20000101", "20991231"],
        "date_to": ["20260103", "20991231", "19000101"],
        "modality": ["CT", "MR", "XA", nothing],
        "study_uid": [middle, nothing],
        "series_uid": [f"{middle}.1", nothing],
        "sop_instance_uid": [f"{middle}.1.{studies // 2 * INSTANCES_PER_STUDY}", nothing],
        "states": [(each,) for each in InstanceState] + [(InstanceState.STORED, InstanceState.QUARANTINED)],
        "calling_ae": ["CT7", "OLD", nothing],
        "since": [FIRST_MS, now_ms - 60_000, now_ms + day_ms],
        "until": [FIRST_MS + 100 * STEP_MS, now_ms + day_ms, FIRST_MS],
        "destination": ["pacs", "vna", nothing],
        "delivery_states": [(each,) for each in DeliveryState]
        + [(DeliveryState.DEAD, DeliveryState.WAITING)],
        "error": ["A900H", nothing],
        "reason": [(0xA900, "A900H: data set does not match SOP class"), (None, nothing)],
    }


def list_conditions(model: type, samples: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Yield no condition, and then one of each field of a filter with each of its values.

    Raises:
        KeyError: A field has no values. Add them to `list_samples`.
    """
    yield {}
    for field in fields(model):
        yield from ({field.name: value} for value in samples[field.name])


def list_calls(
    ledger: Ledger, count: int, limit: int = 100, *, orders_each: int = 10
) -> dict[str, Callable[[], Any]]:
    """Return the lists and pages of command line and console: each filter, and each order of studies.

    Args:
        ledger: A ledger that `fill_ledger` filled.
        count: Its number of instances.
        limit: Length of a list.
        orders_each: In how many of the ten orders studies are listed for each filter.
    """
    samples = list_samples(count)
    middle = samples["study_uid"][0]
    now_ms = FIRST_MS + count * STEP_MS
    return {
        **dict(_list_instance_calls(ledger, samples, limit)),
        **dict(_list_study_calls(ledger, samples, limit, now_ms - 60_000, orders_each)),
        **dict(_list_delivery_calls(ledger, samples, limit)),
        **dict(_list_retry_calls(ledger, samples, now_ms)),
        "study: its series": lambda: ledger.study_lists.find_series(middle),
        "study: its deliveries": lambda: ledger.study_lists.count_deliveries(middle),
        "trace: accession number": lambda: ledger.study_lists.find_studies_by_accession("A0000007", 10),
        "deliveries: the dead by reason": lambda: ledger.delivery_admin.group_dead(("pacs", "vna"), 20_000),
        "deliveries: their attempts": lambda: ledger.attempts.find_by_deliveries(range(count - limit, count)),
        "status: progress of destinations": lambda: ledger.throughput.read_progress(now_ms),
        "status: counts": ledger.count_rows,
        "status: quarantine": ledger.quarantine.count_acknowledged,
    }


_Calls = Iterator[tuple[str, Callable[[], Any]]]


def _list_instance_calls(ledger: Ledger, samples: dict[str, list[Any]], limit: int) -> _Calls:
    def make(title: str, conditions: dict[str, Any]) -> tuple[str, Callable[[], Any]]:
        which = InstanceFilter(**conditions)
        return _name(title, conditions), lambda: ledger.instance_lists.find_instances(which, limit)

    for conditions in list_conditions(InstanceFilter, samples):
        yield make("instances", conditions)
        if "states" not in conditions:
            yield make("quarantine", conditions | {"states": (InstanceState.QUARANTINED,)})


def _list_study_calls(
    ledger: Ledger, samples: dict[str, list[Any]], limit: int, lately: int, orders_each: int
) -> _Calls:
    def make(conditions: dict[str, Any], **order: Any) -> tuple[str, Callable[[], Any]]:
        which = InstanceFilter(**conditions)
        return _name("studies", conditions | order), lambda: ledger.study_lists.find_studies(
            which, limit, lately=lately, **order
        )

    orders = itertools.cycle(itertools.product(get_args(StudySort), (False, True)))
    for conditions in list_conditions(InstanceFilter, samples):
        for sort, ascending in itertools.islice(orders, orders_each if conditions else 10):
            yield make(conditions, sort=sort, ascending=ascending)
    yield make({"since": FIRST_MS + 24 * 3600 * 1000, "until": FIRST_MS + 48 * 3600 * 1000})
    yield make({"destination": "pacs", "delivery_states": (DeliveryState.DEAD,)})


def _list_delivery_calls(ledger: Ledger, samples: dict[str, list[Any]], limit: int) -> _Calls:
    def make(title: str, conditions: dict[str, Any]) -> tuple[str, Callable[[], Any]]:
        which = DeliveryFilter(**conditions)
        return _name(title, conditions), lambda: ledger.delivery_admin.find_deliveries(which, limit)

    for conditions in list_conditions(DeliveryFilter, samples | {"states": samples["delivery_states"]}):
        yield make("deliveries", conditions)
        if "states" not in conditions:
            yield make("dead", conditions | {"states": (DeliveryState.DEAD,)})
            yield make("delivered", conditions | {"states": (DeliveryState.DELIVERED,)})


def _list_retry_calls(ledger: Ledger, samples: dict[str, list[Any]], now_ms: int) -> _Calls:
    """List calls that find nothing to send again, and so change nothing."""

    def make(conditions: dict[str, Any]) -> tuple[str, Callable[[], Any]]:
        which = DeliveryFilter(**conditions)
        return _name("retry", conditions), lambda: ledger.delivery_admin.requeue_deliveries(which, now_ms)

    for field in fields(DeliveryFilter):
        if field.name != "states":
            yield make({field.name: samples[field.name][-1]})


def _name(title: str, conditions: dict[str, Any]) -> str:
    return ", ".join([title, *(f"{field}={_describe(value)}" for field, value in conditions.items())])


def _describe(value: object) -> str:
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)
