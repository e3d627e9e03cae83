"""The study index: what it keeps of patients, studies and series, and how it is searched."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import insert, inspect, text

from ingest.dicom.study_attributes import StudyAttributeReader, StudyAttributes, make_name_keys
from ingest.ledger import (
    DeliveryResult,
    DeliveryState,
    InstanceState,
    Ledger,
    instance_lists,
    newest_first,
    study_lists,
)
from ingest.ledger.instance_filter import InstanceFilter
from ingest.ledger.migrations import configuration
from ingest.ledger.schema import series, studies, study_senders
from ingest.ledger.study_lists import StudySort
from tests.support.ledgers import row

YAMADA = "Yamada^Tarou=山田^太郎=やまだ^たろう"


def attributes(**values: Any) -> StudyAttributes:
    keys = make_name_keys(values.get("patient_name", ""))
    return StudyAttributes(level="full", name_keys=keys, **values)


def read(values: dict[int, bytes], level: Any = "full") -> StudyAttributes:
    found = StudyAttributeReader(level).read_attributes(values)
    assert found is not None
    return found


def uids(ledger: Ledger, **conditions: Any) -> list[str]:
    return [one.study_uid for one in ledger.study_lists.find_studies(InstanceFilter(**conditions))]


# --- decoding


@pytest.mark.parametrize(
    ("character_set", "raw", "name"),
    [
        (b"", b"Doe^John ", "Doe^John"),
        (b"ISO_IR 100", b"M\xfcller^J\xf6rg", "Müller^Jörg"),
        (b"ISO_IR 192", "Müller^Jörg".encode(), "Müller^Jörg"),
        (b"ISO_IR 144", "Люкceмбypг".encode("iso8859_5"), "Люкceмбypг"),
        (b"GB18030", "Wang^XiaoDong=王^小东".encode("gb18030"), "Wang^XiaoDong=王^小东"),
        (b"GBK", "Wang^XiaoDong=王^小东".encode("gbk"), "Wang^XiaoDong=王^小东"),
        # PS3.5 H.3.1 and H.3.2, and I.2
        (
            b"\\ISO 2022 IR 87",
            b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
            "Yamada^Tarou=山田^太郎=やまだ^たろう",
        ),
        (
            b"ISO 2022 IR 13\\ISO 2022 IR 87",
            b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J",
            "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎",
        ),
        (
            b"\\ISO 2022 IR 149",
            b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
            "Hong^Gildong=洪^吉洞=홍^길동",
        ),
        # Undecodable bytes, an unknown set, control characters.
        (b"ISO_IR 192", b"Doe\xff^J", "Doe�^J"),
        (b"ISO_IR 999", b"Doe\xfc", "Doeü"),
        (b"", b"Doe\x1b[31m\n\0", "Doe [31m"),
    ],
)
def test_names_are_decoded_in_their_character_sets(character_set: bytes, raw: bytes, name: str) -> None:
    assert read({0x0008_0005: character_set, 0x0010_0010: raw}).patient_name == name


def test_malformed_values_are_left_out_and_never_fail() -> None:
    found = read(
        {
            0x0008_0020: b"2026.01.31",
            0x0008_0030: b"10:15:00",
            0x0008_0050: b"A" * 5000,
            0x0020_0011: b" 99999999999999 ",
            0x0010_0020: bytes(range(256)),
        }
    )
    assert (found.study_date, found.study_time, found.series_number) == ("20260131", "101500", None)
    assert len(found.accession_number) == 128
    assert found.patient_id.isprintable()
    assert read({0x0008_0020: b"yesterday", 0x0020_0011: b"-7"}).study_date == ""
    assert read({0x0020_0011: b"-7 "}).series_number == -7


def test_level_decides_what_is_read() -> None:
    values = {0x0010_0010: b"Doe^John", 0x0010_0020: b"P1"}
    assert StudyAttributeReader("none").read_attributes(values) is None
    assert StudyAttributeReader("none").tags == frozenset()
    reader = StudyAttributeReader("identifiers")
    found = reader.read_attributes(values)
    assert found is not None
    assert (found.patient_id, found.patient_name, found.name_keys) == ("P1", "", ("", "", ""))
    assert 0x0010_0010 not in reader.tags
    assert read(values).name_keys == ("doe^john", "", "")


# --- rows


def test_newest_values_win_and_different_patients_are_said(ledger: Ledger) -> None:
    old = attributes(patient_id="P1", patient_name="Doe^John", accession_number="A1", modality="CT")
    ledger.instances.record([row(1, attributes=old), row(2, attributes=attributes(study_date="20260101"))])
    [found] = ledger.study_lists.find_studies(InstanceFilter())
    assert (found.patient_id, found.accession_number, found.study_date) == ("P1", "A1", "20260101")
    assert not found.patients_differ
    new = attributes(patient_id="P2", accession_number="A2", modality="MR")
    ledger.instances.record([row(3, attributes=new, series_uid="1.9", calling_ae="MR1")])
    [found] = ledger.study_lists.find_studies(InstanceFilter())
    assert (found.patient_id, found.patient_name, found.accession_number) == ("P2", "", "A2")
    assert (found.patients_differ, found.calling_ae, found.modalities) == (True, "MR1", ("CT", "MR"))
    assert uids(ledger, accession_number="A1") == []
    both = [attributes(patient_id="P3"), attributes(patient_id="P4")]
    ledger.instances.record([row(4 + n, study_uid="2", attributes=one) for n, one in enumerate(both)])
    [found] = ledger.study_lists.find_studies(InstanceFilter(study_uid="2"))
    assert (found.patient_id, found.patients_differ) == ("P4", True)


def test_quarantined_instance_describes_only_a_new_study(ledger: Ledger) -> None:
    wrong = attributes(patient_id="OTHER", modality="OT")
    ledger.instances.record([row(1, attributes=attributes(patient_id="P1", modality="CT"))])
    aside = {"state": InstanceState.QUARANTINED, "destinations": (), "attributes": wrong}
    ledger.instances.record([row(2, store_key="q1", **aside), row(3, study_uid="2", store_key="q2", **aside)])
    first, second = (
        ledger.study_lists.find_studies(InstanceFilter(study_uid="1")),
        uids(ledger, patient_id="OTHER"),
    )
    assert (first[0].patient_id, first[0].modalities, first[0].patients_differ) == ("P1", ("CT",), False)
    assert second == ["2"]
    released = row(3, study_uid="2", attributes=attributes(patient_id="P2"))
    number = ledger.instances.find_by_sop_instance_uid("1.2.3")[0].id
    assert ledger.quarantine.release(number, released)
    assert uids(ledger, patient_id="P2") == ["2"]


def test_study_goes_with_its_last_row(ledger: Ledger) -> None:
    values = {"state": InstanceState.REMOVED, "destinations": ()}
    ledger.instances.record(
        [
            row(1, series_uid="1.1", stored_at=10, attributes=attributes(patient_id="P1"), **values),
            row(2, series_uid="1.2", stored_at=50, attributes=attributes(patient_id="P1"), **values),
        ]
    )
    assert ledger.retention.delete_removed_rows(20) == 1
    with ledger.database.begin_read() as connection:
        assert connection.execute(series.select()).mappings().one()["series_uid"] == "1.2"
    assert uids(ledger, patient_id="P1") == ["1"]
    assert ledger.retention.delete_removed_rows(60) == 1
    with ledger.database.begin_read() as connection:
        for table in (studies, series, study_senders):
            assert connection.execute(table.select()).all() == []


# --- searching


@pytest.fixture
def searched(ledger: Ledger) -> Ledger:
    """Five studies, the fifth the newest."""
    described = (
        {"patient_id": "P1", "patient_name": "Müller^Hans", "accession_number": "A-100", "modality": "CT"},
        {
            "patient_id": "P10",
            "patient_name": "MULLER-Øst^Ida",
            "accession_number": "A-101",
            "modality": "MR",
        },
        {
            "patient_id": "p1",
            "patient_name": YAMADA,
            "accession_number": "B_1",
        },
        {"patient_id": "Q[1]", "patient_name": "van der Berg^Jan", "accession_number": "B%1"},
        {"modality": "SR"},
    )
    for number, values in enumerate(described, 1):
        one = attributes(study_date=f"2026010{number}" if number < 5 else "", **values)
        ledger.instances.record(
            [
                row(
                    number,
                    study_uid=str(number),
                    series_uid=f"{number}.1",
                    received_at=number * 10,
                    calling_ae="CT1" if number % 2 else "MR1",
                    attributes=one,
                )
            ]
        )
    return ledger


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({"accession_number": "A-100"}, "1"),
        ({"accession_number": "A-10*"}, "21"),
        ({"accession_number": "?-10?"}, "21"),
        ({"accession_number": "*1"}, "432"),
        ({"accession_number": "B_*"}, "3"),
        ({"accession_number": "B%?"}, "4"),
        ({"accession_number": "a-100"}, ""),
        ({"patient_id": "P1"}, "1"),
        ({"patient_id": "P*"}, "21"),
        ({"patient_id": "*P1"}, "1"),
        ({"patient_id": "Q[1]"}, "4"),
        ({"patient_id": "?[1*"}, "4"),
        ({"patient_name": "muller"}, "1"),
        ({"patient_name": "MÜLLER*"}, "21"),
        ({"patient_name": "muller-ost"}, "2"),
        ({"patient_name": "Müller, Hans"}, "1"),
        ({"patient_name": "mul*^i?a"}, "2"),
        ({"patient_name": "山田"}, "3"),
        ({"patient_name": "やまだ^た*"}, "3"),
        ({"patient_name": "yamada=山田"}, "3"),
        ({"patient_name": "=山田^太*"}, "3"),
        ({"patient_name": "yamada=鈴木"}, ""),
        ({"patient_name": "Van Der  Berg"}, "4"),
        ({"patient_name": "van"}, ""),
        ({"date_from": "20260102", "date_to": "20260103"}, "32"),
        ({"date_from": "20260103"}, "43"),
        ({"date_to": "20260101"}, "1"),
        ({"modality": "CT"}, "1"),
        ({"modality": "CT", "calling_ae": "MR1"}, ""),
        ({"calling_ae": "MR1"}, "42"),
        ({"series_uid": "3.1"}, "3"),
        ({"sop_instance_uid": "1.2.4"}, "4"),
        ({"since": 30, "until": 50}, "43"),
        ({"destination": "pacs", "states": (InstanceState.STORED,)}, "54321"),
        ({"destination": "ai"}, ""),
        ({"delivery_states": (DeliveryState.DEAD,)}, "2"),
        ({"delivery_states": (DeliveryState.DEAD,), "destination": "ai"}, ""),
        ({"patient_id": "P*", "delivery_states": (DeliveryState.WAITING,)}, "1"),
        ({"states": (InstanceState.QUARANTINED,)}, ""),
    ],
)
@pytest.mark.parametrize("rare", [1000, 0])
def test_studies_and_instances_are_found_by_what_is_known(
    searched: Ledger, conditions: dict[str, Any], expected: str, rare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_lists, "RARE", rare)
    monkeypatch.setattr(study_lists, "RARE_ROWS", rare)
    monkeypatch.setattr(newest_first, "FIRST_STUDIES", 2)
    monkeypatch.setattr(instance_lists, "RARE_STATES", rare)
    leased = searched.deliveries.lease_due("pacs", "w", 10, 100, 1000)
    results = [
        DeliveryResult(id=one.id, owner="w", state=DeliveryState.DEAD)
        if one.sop_instance_uid == "1.2.2"
        else DeliveryResult(id=one.id, owner="w", state=DeliveryState.WAITING)
        for one in leased
    ]
    searched.deliveries.record_results("pacs", results, 200)
    which = InstanceFilter(**conditions)
    assert "".join(uids(searched, **conditions)) == expected
    found = [one.instance.study_uid for one in searched.instance_lists.find_instances(which)]
    assert "".join(found) == expected
    paged: list[str] = []
    before = None
    while page := searched.instance_lists.find_instances(which, 1, before=before):
        paged.append(page[0].instance.study_uid)
        before = page[0].instance.id
    assert paged == found


@pytest.mark.parametrize("sort", ["received", "date", "name", "patient_id", "accession"])
@pytest.mark.parametrize("ascending", [False, True])
def test_pages_follow_each_other_in_every_order(searched: Ledger, sort: StudySort, ascending: bool) -> None:
    how: Any = {"sort": sort, "ascending": ascending}
    whole = [one.study_uid for one in searched.study_lists.find_studies(InstanceFilter(), **how)]
    assert sorted(whole) == ["1", "2", "3", "4", "5"]
    assert (whole[0] == "5") is ((sort == "received") is not ascending)
    paged: list[str] = []
    after = None
    while page := searched.study_lists.find_studies(InstanceFilter(), 2, after=after, **how):
        paged += [one.study_uid for one in page]
        after = page[-1].last_at, page[-1].study_uid
    assert paged == whole


# --- plans

MANY = 100_000


def _fill(ledger: Ledger) -> None:
    with ledger.database.begin_write() as connection:
        connection.execute(
            insert(studies),
            [
                {
                    "study_uid": f"1.{number}",
                    **dict.fromkeys(("first_at", "last_at", "first_id", "last_id", "last_stored_at"), number),
                    "patient_id": f"P{number % 30_000}",
                    "accession_number": f"A{number}",
                    "study_date": f"20{number % 20:02}0{number % 9 + 1}1{number % 7}",
                    "name_alphabetic": f"name{number % 50_000}^x",
                }
                for number in range(MANY)
            ],
        )
        connection.execute(
            insert(series),
            [
                {
                    "study_uid": f"1.{number}",
                    "series_uid": f"2.{number}",
                    "modality": "CT" if number else "OT",
                }
                for number in range(MANY)
            ],
        )
        if connection.dialect.name == "postgresql":
            connection.execute(text("ANALYZE studies, series"))


def _explain(connection: Any, query: Any) -> str:
    compiled = query.compile(connection, compile_kwargs={"literal_binds": True})
    verb = "EXPLAIN" if connection.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
    return "\n".join(str(step) for step in connection.exec_driver_sql(f"{verb} {compiled}").all())


def test_filters_of_a_hundred_thousand_studies_are_ranges_of_an_index(ledger: Ledger) -> None:
    _fill(ledger)
    by_uid = "studies_pkey" if ledger.database.dialect == "postgresql" else "autoindex_studies"
    # PostgreSQL chooses by its statistics.
    by_uid_or_name = "studies_name_alphabetic" if ledger.database.dialect == "postgresql" else by_uid
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "studies_received"),
        ({"accession_number": "A77"}, "studies_accession_number"),
        ({"accession_number": "A777*"}, "studies_accession_number"),
        ({"patient_id": "P77"}, "studies_patient_id"),
        ({"patient_id": "P77*x"}, "studies_patient_id"),
        ({"patient_name": "name77"}, by_uid),
        ({"patient_name": "name77*"}, by_uid_or_name),
        ({"date_from": "20050101", "date_to": "20050115"}, "studies_study_date"),
        ({"since": MANY - 50}, "studies_received"),
        ({"modality": "OT"}, by_uid),
    ]
    with ledger.database.begin_read() as connection:
        for conditions, access in cases:
            clauses = study_lists.build_study_clauses(connection, InstanceFilter(**conditions))
            plan = _explain(connection, study_lists.select_studies(clauses).limit(100))
            assert access in plan, (conditions, plan)
            assert "SCAN studies\n" not in f"{plan}\n", (conditions, plan)
            assert "Seq Scan on studies" not in plan, (conditions, plan)


def test_ledger_without_an_index_gets_studies_from_its_rows(tmp_path: Path) -> None:
    with closing(Ledger(f"sqlite:///{tmp_path}/ledger.db")) as ledger:
        ledger.migrate()
        with ledger.database.begin_write() as connection:
            command.downgrade(configuration(connection), "0011")
            for number, study, at in ((1, "1", 10), (2, "2", 20), (3, "1", 30)):
                values: dict[str, Any] = {
                    column["name"]: 1 if "INT" in str(column["type"]) else str(number)
                    for column in inspect(connection).get_columns("instances")
                }
                values |= {"id": number, "study_uid": study, "state": "stored", "received_at": at}
                values["calling_ae"] = f"CT{number}"
                marks = ", ".join("?" * len(values))
                connection.exec_driver_sql(
                    f"INSERT INTO instances ({', '.join(values)}) VALUES ({marks})", tuple(values.values())
                )
        ledger.migrate()
        first, second = ledger.study_lists.find_studies(InstanceFilter())
        assert (first.study_uid, first.first_at, first.last_at, first.calling_ae) == ("1", 10, 30, "CT3")
        assert (second.study_uid, second.instances) == ("2", 1)
        assert uids(ledger, calling_ae="CT1") == ["1"]
        assert [one.series_uid for one in ledger.study_lists.find_series("1")] == ["1", "3"]
        assert ledger.reindexing.read_progress("none").left == 2


def test_rows_written_a_moment_ago_get_only_new_times(ledger: Ledger) -> None:
    one = attributes(patient_id="P1", accession_number="A1")
    for number, at in ((1, 20), (2, 30), (3, 10)):
        ledger.instances.record([row(number, attributes=one, received_at=at, stored_at=at + 5)])
    [found] = ledger.study_lists.find_studies(InstanceFilter(patient_id="P1"))
    assert (found.first_at, found.last_at, found.instances) == (10, 30, 3)
    with ledger.database.begin_read() as connection:
        stored = connection.execute(studies.select()).mappings().one()
    assert (stored["last_stored_at"], stored["last_id"] - stored["first_id"]) == (35, 2)
    # Somebody deletes the study meanwhile. It is written anew.
    with ledger.database.begin_write() as connection:
        for table in (studies, series, study_senders):
            connection.execute(table.delete())
    ledger.instances.record([row(4, attributes=one)])
    assert uids(ledger, patient_id="P1", calling_ae="CT1", series_uid="1") == ["1"]
    # The same series says something else.
    ledger.instances.record([row(5, attributes=attributes(patient_id="P1", accession_number="A2"))])
    assert uids(ledger, accession_number="A2") == ["1"]
