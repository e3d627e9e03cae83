"""Each way of a list through the indexes finds what a search of all rows finds, in the same order."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select, update

from benchmarks.scale import fill_ledger, list_conditions, list_samples
from ingest.ledger import DeliveryState, Ledger, delivery_lists, instance_lists, newest_first, study_lists
from ingest.ledger.delivery_filter import DeliveryFilter
from ingest.ledger.instance_filter import InstanceFilter
from ingest.ledger.schema import deliveries, instances, studies

INSTANCES = 1000
SAMPLES = list_samples(INSTANCES)
PAGE = 400


@pytest.fixture(params=[20_000, 0], ids=["few", "many"])
def filled(ledger: Ledger, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """A ledger whose conditions all seem to match few rows, or all many."""
    for module, name in (
        (delivery_lists, "FEW"),
        (instance_lists, "RARE_STATES"),
        (study_lists, "RARE"),
        (study_lists, "RARE_ROWS"),
    ):
        monkeypatch.setattr(module, name, request.param)
    monkeypatch.setattr(newest_first, "FIRST_STUDIES", 2)
    fill_ledger(ledger, INSTANCES, lambda _: None)
    return ledger


def list_delivery_conditions() -> Iterator[dict[str, Any]]:
    for conditions in list_conditions(DeliveryFilter, SAMPLES | {"states": SAMPLES["delivery_states"]}):
        yield conditions
        if "states" not in conditions:
            yield conditions | {"states": (DeliveryState.DEAD, DeliveryState.WAITING)}


def test_deliveries_are_found_by_each_condition_in_pages(filled: Ledger) -> None:
    order = (deliveries.c.instance_id.desc(), deliveries.c.id.desc())
    joined = select(deliveries.c.id).join(instances, instances.c.id == deliveries.c.instance_id)
    for conditions in list_delivery_conditions():
        which = DeliveryFilter(**conditions)
        with filled.database.begin_read() as connection:
            query = joined.where(*which.build_clauses()).order_by(*order).limit(3 * PAGE)
            expected = connection.execute(query).scalars().all()
        found: list[int] = []
        while len(found) < len(expected):
            before = found[-1] if found else None
            page = filled.delivery_admin.find_deliveries(which, PAGE, before=before)
            assert page, conditions
            found += [one.id for one in page]
        assert found == expected, conditions
        if len(expected) < 3 * PAGE:
            before = found[-1] if found else None
            assert filled.delivery_admin.find_deliveries(which, PAGE, before=before) == [], conditions


def test_instances_are_found_by_each_condition_in_pages(filled: Ledger) -> None:
    for conditions in list_conditions(InstanceFilter, SAMPLES):
        which = InstanceFilter(**conditions)
        with filled.database.begin_read() as connection:
            clauses = [*which.build_clauses(), *which.build_state_clauses()]
            query = select(instances.c.id).where(*clauses).order_by(instances.c.id.desc()).limit(3 * PAGE)
            expected = connection.execute(query).scalars().all()
        found: list[int] = []
        while page := filled.instance_lists.find_instances(which, PAGE, before=found[-1] if found else None):
            found += [one.instance.id for one in page]
            if len(found) >= 3 * PAGE:
                break
        assert found == expected, conditions


def test_studies_are_found_by_each_condition_while_they_overlap(
    filled: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given studies that came at the same time, so that deliveries of others are between theirs.
    monkeypatch.setattr(study_lists, "EXAMINED", 2)
    with filled.database.begin_write() as connection:
        connection.execute(
            update(studies).values(first_id=studies.c.first_id - 300, last_id=studies.c.last_id + 300)
        )
    for conditions in list_conditions(InstanceFilter, SAMPLES):
        which = InstanceFilter(**conditions)
        with filled.database.begin_read() as connection:
            clauses = [*which.build_clauses(), *which.build_state_clauses()]
            matching = select(instances.c.study_uid).where(*clauses)
            query = select(studies.c.study_uid).where(studies.c.study_uid.in_(matching))
            expected = connection.execute(query.order_by(studies.c.last_at.desc())).scalars().all()
        found = [one.study_uid for one in filled.study_lists.find_studies(which)]
        assert found == expected, conditions
