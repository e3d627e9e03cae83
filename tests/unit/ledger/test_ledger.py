"""Instances in the ledger: idempotent, durable, and the same in SQLite and PostgreSQL."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from ingest.errors import LedgerError
from ingest.ledger import DeliveryState, InstanceState, Ledger, Outcome
from tests.support.ledgers import delivery_states, find_newest_instances, row


def test_instance_and_its_deliveries_are_recorded_together(ledger: Ledger) -> None:
    assert ledger.instances.record([row(1, destinations=("a", "b"))]) == [Outcome.RECORDED]
    [found] = ledger.instances.find_by_sop_instance_uid("1.2.1")
    assert found.store_key == "1/1/1.2.1.dcm"
    assert found.state is InstanceState.STORED
    assert delivery_states(ledger, found.id) == {"a": DeliveryState.WAITING, "b": DeliveryState.WAITING}


def test_same_spool_reference_twice_is_one_row_with_one_set_of_deliveries(ledger: Ledger) -> None:
    assert ledger.instances.record([row(1), row(1)]) == [Outcome.RECORDED, Outcome.KNOWN]
    assert ledger.instances.record([row(1), row(2)]) == [Outcome.KNOWN, Outcome.RECORDED]
    assert ledger.count_rows().instances == {InstanceState.STORED: 2}
    assert ledger.count_rows().deliveries == {"pacs": {DeliveryState.WAITING: 2}}


def test_file_of_the_store_belongs_to_the_first_row_that_names_it(ledger: Ledger) -> None:
    ledger.instances.record([row(1)])
    assert ledger.instances.record([row(2, sop_instance_uid="1.2.1", store_key="1/1/1.2.1.dcm")]) == [
        Outcome.TAKEN
    ]
    assert len(ledger.instances.find_by_sop_instance_uid("1.2.1")) == 1
    assert ledger.spool_references.find_recorded(["s:1", "s:2", "s:3"]) == {"s:1"}


@pytest.mark.parametrize("ask", ["find_store_keys", "mark_replaced"])
def test_what_is_stored_is_found_by_its_uid_however_many_rows_there_are(ask: str, tmp_path: Path) -> None:
    with closing(Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")) as ledger:
        ledger.migrate()
        ledger.instances.record([row(1)])
        said: list[tuple[str, Any]] = []
        event.listen(
            ledger.database._engine,
            "before_cursor_execute",
            lambda _c, _u, text, values, *_: said.append((text, values)),
        )
        if ask == "find_store_keys":
            ledger.instances.find_store_keys(["1.2.1", "1.2.2"])
        else:
            ledger.instances.mark_replaced(["1.2.1", "1.2.2"], 1)
        asked = [(text, values) for text, values in said if "sop_instance_uid" in text]
        assert asked
        with ledger.database.begin_read() as connection:
            for text, values in asked:
                plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values)
                steps = " ".join(str(step[-1]) for step in plan)
                assert "instances_sop_instance_uid" in steps
                assert "instances_state" not in steps
                assert "SCAN instances" not in steps


def test_replacing_row_takes_over_and_drops_what_was_not_delivered(ledger: Ledger) -> None:
    ledger.instances.record([row(1)])
    newer = row(2, sop_instance_uid="1.2.1", store_key="1/1/1.2.1.dcm", replaces=True)
    assert ledger.instances.record([newer]) == [Outcome.RECORDED]
    old, new = ledger.instances.find_by_sop_instance_uid("1.2.1")
    assert (old.state, new.state) == (InstanceState.REPLACED, InstanceState.STORED)
    assert delivery_states(ledger, old.id) == {"pacs": DeliveryState.DROPPED}
    assert delivery_states(ledger, new.id) == {"pacs": DeliveryState.WAITING}


def test_superseded_rows_keep_what_was_delivered(ledger: Ledger) -> None:
    ledger.instances.record([row(1, destinations=("a", "b"))])
    [first] = ledger.deliveries.lease_due("a", "me", 1, 0, 1000)
    ledger.deliveries.record_results("a", [_delivered(first.id)], 5)
    ledger.instances.mark_replaced(["1.2.1"], 6)
    [found] = ledger.instances.find_by_sop_instance_uid("1.2.1")
    assert found.state is InstanceState.REPLACED
    assert delivery_states(ledger, found.id) == {"a": DeliveryState.DELIVERED, "b": DeliveryState.DROPPED}


def test_holdings_leave_out_variants_and_quarantined_ones(ledger: Ledger) -> None:
    ledger.instances.record(
        [
            row(1),
            row(2, state=InstanceState.VARIANT, sop_instance_uid="1.2.1"),
            row(3, state=InstanceState.QUARANTINED),
        ]
    )
    assert ledger.instances.find_store_keys(["1.2.1", "1.2.3", "1.2.4"]).stored == {"1.2.1": "1/1/1.2.1.dcm"}


def test_more_references_than_one_statement_takes_are_looked_up(ledger: Ledger) -> None:
    ledger.instances.record([row(number) for number in range(1300)])
    asked = [f"s:{number}" for number in range(0, 2600, 2)]
    assert ledger.spool_references.find_recorded(asked) == {f"s:{number}" for number in range(0, 1300, 2)}


@pytest.mark.parametrize(
    "value", ["x" * 10_000, "nul\0inside", "\udc80 lone surrogate", "Ünïcödé 漢字" * 300], ids=ascii
)
def test_no_text_of_a_peer_breaks_a_batch(ledger: Ledger, value: str) -> None:
    odd: dict[str, Any] = dict.fromkeys(
        ("sop_instance_uid", "study_uid", "calling_ae", "source", "note"), value
    )
    assert ledger.instances.record([row(1, **odd), row(2)]) == [Outcome.RECORDED, Outcome.RECORDED]
    assert len(ledger.instances.find_by_sop_instance_uid(value)) == 1
    assert value in ledger.instances.find_store_keys([value]).stored


def test_instances_are_listed_newest_first_page_by_page(ledger: Ledger) -> None:
    ledger.instances.record([row(number, study_uid=f"1.{number % 2}") for number in range(5)])
    first = find_newest_instances(ledger, 2)
    assert [found.sop_instance_uid for found in first] == ["1.2.4", "1.2.3"]
    assert [found.sop_instance_uid for found in find_newest_instances(ledger, 2, before=first[-1].id)] == [
        "1.2.2",
        "1.2.1",
    ]
    assert len(find_newest_instances(ledger, study_uid="1.0")) == 3
    assert find_newest_instances(ledger, state=InstanceState.QUARANTINED) == []


def test_failed_batch_leaves_nothing_behind(ledger: Ledger) -> None:
    broken = row(2, destinations=("pacs", None))  # type: ignore[arg-type]
    with pytest.raises(Exception, match=r"(?i)null"):
        ledger.instances.record([row(1), broken])
    assert ledger.count_rows().instances == {}


def test_nothing_to_record_is_no_transaction(tmp_path: Path) -> None:
    assert Ledger(f"sqlite:///{tmp_path}/absent.db").instances.record([]) == []


def test_ledger_that_is_away_is_named_without_its_password() -> None:
    pytest.importorskip("psycopg", exc_type=ImportError)
    away = Ledger("postgresql+psycopg://user:geheim@127.0.0.1:9/none?connect_timeout=2")
    with pytest.raises(LedgerError, match=r"127\.0\.0\.1:9") as raised:
        away.count_rows()
    assert "geheim" not in str(raised.value)


@pytest.mark.parametrize("url", ["nonsense", "oracle+nothing://x", "sqlite+nodriver:///x"])
def test_url_that_cannot_be_used_says_where_it_stands(url: str) -> None:
    with pytest.raises(LedgerError, match="ledger"):
        Ledger(url)


def _delivered(number: int) -> Any:
    from ingest.ledger import DeliveryResult

    return DeliveryResult(id=number, owner="me", state=DeliveryState.DELIVERED)


def test_who_only_asks_makes_no_ledger(tmp_path: Path) -> None:
    with closing(Ledger(f"sqlite:///{tmp_path}/absent.db")) as ledger:
        with pytest.raises(LedgerError, match="not there"):
            ledger.count_rows()
        assert ledger.read_schema_version() is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    [
        "geheim",
        "postgresql+psycopg://u:geheim@h:port/d",
        "postgresql+psycopg://u:ge/heim@127.0.0.1:1/d",
        "postgresql+psycopg:///d?password=geheim&host=127.0.0.1&port=1",
        "postgresql+psycopg:///d?Password=geheim&host=127.0.0.1&port=1",
    ],
)
def test_password_of_a_ledger_that_cannot_be_used_is_told_nowhere(url: str) -> None:
    with pytest.raises(LedgerError) as caught:
        Ledger(url).read_schema_version()
    assert "heim" not in str(caught.value)
