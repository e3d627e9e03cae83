"""`ingest studies`, `instances` and `quarantine`: what was received, as people and programs read it."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import update

from ingest.cli import main
from ingest.cli._options import INSTANCE_STATES
from ingest.ledger import DeliveryResult, DeliveryState, InstanceState, Ledger, instance_lists
from ingest.ledger.instance_filter import InstanceFilter
from ingest.ledger.schema import studies
from tests.support.instances import Made
from tests.support.ledgers import row
from tests.support.persisting import Site

STORED, QUARANTINED, VARIANT = InstanceState.STORED, InstanceState.QUARANTINED, InstanceState.VARIANT


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.log.configure_logging", lambda *_: None)


def ask(site: Site, *arguments: str, stdin: str = "") -> Result:
    path = site.config.data_dir.parent / "node.toml"
    path.write_text(
        f'[node]\ndata_dir = "{site.config.data_dir}"\n[queue]\nurl = "{site.config.queue.url}"\n'
        '[[destinations]]\nname = "pacs"\nae_title = "PACS"\nhost = "127.0.0.1"\ntls = false\n'
        '[[routes]]\nto = ["pacs"]\n'
    )
    return CliRunner().invoke(main, [*arguments, "-c", str(path)], input=stdin, env={"COLUMNS": "300"})


def lines(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.output.splitlines()]


def collided(site: Site) -> None:
    for made in (Made(), Made(pixels=b"other"), Made(sop="1.7.1", study="1.8", calling="MR1")):
        site.receive(made)
    site.receive(Made(sop_in_data_set="1.2.3.5"), suffix=".A900")
    site.receive(b"no DICOM at all", suffix=".C000")
    site.work()


# --- what a ledger finds


def test_instances_are_found_by_what_is_known_of_them(ledger: Ledger) -> None:
    ledger.instances.record(
        [
            row(1),
            row(2, study_uid="2", series_uid="2.1", calling_ae="MR1", received_at=50),
            row(3, state=QUARANTINED, store_key="q", destinations=(), received_at=60),
            row(4, state=InstanceState.VARIANT, destinations=(), sop_instance_uid="1.2.1"),
        ]
    )
    for which, expected in (
        (InstanceFilter(), [4, 3, 2, 1]),
        (InstanceFilter(study_uid="2"), [2]),
        (InstanceFilter(series_uid="2.1"), [2]),
        (InstanceFilter(sop_instance_uid="1.2.1"), [4, 1]),
        (InstanceFilter(sop_instance_uid="1.2.1", states=(STORED,)), [1]),
        (InstanceFilter(states=(STORED,)), [2, 1]),
        (InstanceFilter(states=(QUARANTINED, STORED)), [3, 2, 1]),
        (InstanceFilter(study_uid="1", states=(QUARANTINED, STORED)), [3, 1]),
        (InstanceFilter(calling_ae="MR1"), [2]),
        (InstanceFilter(since=50), [3, 2]),
        (InstanceFilter(since=50, until=60), [2]),
        (InstanceFilter(until=50, states=(STORED,)), [1]),
        (InstanceFilter(study_uid="nobody's"), []),
    ):
        assert [one.instance.id for one in ledger.instance_lists.find_instances(which)] == expected, which
        assert [one.instance.id for one in ledger.instance_lists.find_instances(which, 2)] == expected[:2], (
            which
        )
        if expected:
            rest = ledger.instance_lists.find_instances(which, before=expected[0])
            assert [one.instance.id for one in rest] == expected[1:], which
    found = {
        one.instance.id: one.deliveries for one in ledger.instance_lists.find_instances(InstanceFilter())
    }
    assert found[1] == found[2] == {"pacs": DeliveryState.WAITING}
    assert found[3] == found[4] == {}


def test_studies_are_summed_the_newest_first(ledger: Ledger) -> None:
    ledger.instances.record(
        [
            row(1, received_at=10, destinations=("pacs", "ai")),
            row(2, study_uid="2", received_at=30),
            row(3, received_at=20),
            row(4, study_uid="3", received_at=40, calling_ae="MR1", state=QUARANTINED, destinations=()),
            row(5, study_uid="2", received_at=50, state=InstanceState.VARIANT, destinations=()),
            row(6, study_uid="4", received_at=5),
            row(7, study_uid="4", received_at=5, sop_instance_uid="1.2.6", copy_digest="a"),
            row(8, study_uid="4", received_at=5, sop_instance_uid="1.2.6", copy_digest="b"),
        ]
    )
    [leased] = ledger.deliveries.lease_due("ai", "w", 1, 100, 1000)
    ledger.deliveries.record_results(
        "ai", [DeliveryResult(id=leased.id, owner="w", state=DeliveryState.DEAD)], 100
    )
    two, three, one, copied = ledger.study_lists.find_studies(InstanceFilter())
    assert [copied.study_uid, two.study_uid, three.study_uid, one.study_uid] == ["4", "2", "3", "1"]
    assert (copied.instances, copied.copies, copied.size) == (1, 2, 3000)
    assert (one.instances, one.size, one.first_at, one.last_at) == (2, 2000, 10, 20)
    assert one.deliveries == {DeliveryState.WAITING: 2, DeliveryState.DEAD: 1}
    assert two.states == {STORED: 1, InstanceState.VARIANT: 1}
    assert (two.instances, two.first_at, two.last_at) == (1, 30, 50)
    assert (three.instances, three.size, three.deliveries) == (0, 0, {})
    for which, expected in (
        (InstanceFilter(study_uid="1"), ["1"]),
        (InstanceFilter(calling_ae="MR1"), ["3"]),
        (InstanceFilter(since=40), ["2", "3"]),
        (InstanceFilter(until=40), ["2", "1", "4"]),
        (InstanceFilter(since=35, until=45), ["3"]),
        (InstanceFilter(since=60), []),
    ):
        assert [study.study_uid for study in ledger.study_lists.find_studies(which)] == expected, which
    assert [study.study_uid for study in ledger.study_lists.find_studies(InstanceFilter(), 2)] == ["2", "3"]


@pytest.mark.parametrize(
    ("stable", "which", "limit", "expected"),
    [
        (None, InstanceFilter(), 9, ["4", "1", "3", "2"]),
        (True, InstanceFilter(), 9, ["4", "2"]),
        (True, InstanceFilter(), 1, ["4"]),
        (False, InstanceFilter(), 9, ["1", "3"]),
        (False, InstanceFilter(), 1, ["1"]),
        (False, InstanceFilter(study_uid="2"), 9, []),
        (True, InstanceFilter(study_uid="2"), 9, ["2"]),
        (False, InstanceFilter(calling_ae="MR1"), 9, ["3"]),
    ],
)
def test_studies_are_stable_that_got_nothing_for_long(
    ledger: Ledger,
    stable: bool | None,
    which: InstanceFilter,
    limit: int,
    expected: list[str],
) -> None:
    ledger.instances.record(
        [
            row(1, study_uid="1", stored_at=100, received_at=1),
            row(2, study_uid="2", stored_at=499, received_at=2),
            row(
                3, study_uid="3", received_at=3, stored_at=500, state=InstanceState.VARIANT, calling_ae="MR1"
            ),
            row(4, study_uid="1", stored_at=900, received_at=4),
            # The store holds nothing of it.
            row(5, study_uid="4", received_at=5, stored_at=900, state=QUARANTINED, destinations=()),
        ]
    )
    found = ledger.study_lists.find_studies(which, limit, lately=500, stable=stable)
    assert [one.study_uid for one in found] == expected
    assert {one.study_uid: one.stable for one in found} == {uid: uid in {"2", "4"} for uid in expected}


@pytest.mark.parametrize(
    ("which", "access"),
    [
        (InstanceFilter(study_uid="1", states=(STORED,)), "instances_study_uid"),
        (InstanceFilter(sop_instance_uid="1", states=(STORED,)), "instances_sop_instance_uid"),
        (InstanceFilter(states=(QUARANTINED,)), "instances_state"),
        (InstanceFilter(states=(STORED, QUARANTINED)), "instances_state"),
        (InstanceFilter(), "SCAN instances"),
    ],
)
def test_listing_reads_the_newest_first_without_sorting(
    tmp_path: Path, which: InstanceFilter, access: str
) -> None:
    opened = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    opened.migrate()
    with opened.database.begin_read() as connection:
        for query in instance_lists._select_by_state(which, which.build_clauses()):
            text = query.limit(5).compile(connection, compile_kwargs={"literal_binds": True})
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}").all()
            said = " ".join(str(step) for step in plan)
            assert access in said
            assert "TEMP B-TREE" not in said
    opened.close()


# --- what commands print


def test_quarantine_is_listed_with_reason_kind_and_file(site: Site) -> None:
    collided(site)
    listed = lines(ask(site, "quarantine", "list", "--json"))
    assert [one["kind"] for one in listed] == ["refused", "refused", "conflict"]
    conflict = listed[-1]
    assert conflict["note"].startswith("another object of its SOP instance UID, with other content")
    assert conflict["size"] == len(Made(pixels=b"other").file)
    assert Path(conflict["file"]).read_bytes() == Made(pixels=b"other").file
    assert conflict["received_at"].endswith("+00:00")
    assert "refused with C000H: its data set cannot be read" in listed[0]["note"]
    table = ask(site, "quarantine", "list", "--sop", "1.2.3.4").output
    assert "conflict" in table
    assert "refused with A900H" in table
    assert len(lines(ask(site, "quarantine", "list", "--study", "1.2.3", "--json"))) == 2
    assert lines(ask(site, "quarantine", "list", "--until", "1h", "--json")) == []
    of_sender = lines(ask(site, "quarantine", "list", "--calling", "CT1", "--json"))
    assert [one["kind"] for one in of_sender] == ["refused", "conflict"]
    assert lines(ask(site, "quarantine", "list", "--accession", "A1", "--json")) == []
    [first] = lines(ask(site, "quarantine", "list", "--limit", "1", "--json"))
    assert len(lines(ask(site, "quarantine", "list", "--before", str(first["id"]), "--json"))) == 2
    assert f"more: --before {first['id']}" in ask(site, "quarantine", "list", "--limit", "1").output


def test_quarantine_is_decided_about_from_the_command_line(site: Site) -> None:
    collided(site)
    broken, _, conflict = [str(one["id"]) for one in lines(ask(site, "quarantine", "list", "--json"))]
    unsure = ask(site, "quarantine", "drop", broken, stdin="n\n")
    assert unsure.exit_code == 1
    assert len(site.quarantined()) == 3
    assert ask(site, "quarantine", "drop", broken, stdin="y\n").exit_code == 0
    assert len(site.quarantined()) == 2
    result = ask(site, "quarantine", "release", conflict, "777")
    assert result.exit_code == 1
    assert f"{conflict}: released; to pacs" in result.output
    assert "777: there is no instance with this id" in result.output
    assert ask(site, "quarantine", "drop", "--yes", "777").exit_code == 1
    assert ask(site, "quarantine", "release").exit_code == 2
    kinds = [one["note"] for one in lines(ask(site, "quarantine", "list", "--sop", "1.2.3.4", "--json"))]
    assert kinds[0] == f"was stored; gave way to instance {conflict}, which was released from quarantine"


def test_instances_and_studies_are_listed_with_their_deliveries(site: Site) -> None:
    collided(site)
    stored = lines(ask(site, "instances", "--state", "stored", "--json"))
    assert [one["sop_instance_uid"] for one in stored] == ["1.7.1", "1.2.3.4"]
    assert stored[0]["deliveries"] == {"pacs": "waiting"}
    assert (stored[0]["calling_ae"], stored[0]["routed"]) == ("MR1", "routes[0]")
    assert stored[0]["received_at"].endswith("+00:00")
    assert "pacs waiting" in ask(site, "instances", "--calling", "MR1", "--since", "1h").output
    studies = {one["study_uid"]: one for one in lines(ask(site, "studies", "--json"))}
    assert studies["1.2.3"]["states"] == {"stored": 1, "quarantined": 2}
    assert studies["1.8"]["deliveries"] == {"waiting": 1}
    assert studies["1.8"]["first_at"] == studies["1.8"]["last_at"]
    table = ask(site, "studies").output
    assert "waiting 1" in table
    assert "(none)" in table
    assert "more: --limit" in ask(site, "studies", "--limit", "1").output
    assert [one["study_uid"] for one in lines(ask(site, "studies", "--calling", "MR1", "--json"))] == ["1.8"]


def test_commands_tell_stable_studies_from_those_that_grow(site: Site) -> None:
    for study in ("1.7", "1.8"):
        site.receive(Made(sop=f"{study}.1", study=study))
    site.work()
    with site.ledger() as ledger, ledger.database.begin_write() as connection:
        long_ago = update(studies).where(studies.c.study_uid == "1.7")
        connection.execute(long_ago.values(last_stored_at=studies.c.last_stored_at - 61_000))
    stable = {one["study_uid"]: one["stable"] for one in lines(ask(site, "studies", "--json"))}
    assert stable == {"1.7": True, "1.8": False}
    for option, expected in (("--stable", "1.7"), ("--unstable", "1.8")):
        assert [one["study_uid"] for one in lines(ask(site, "studies", "--json", option))] == [expected]
    table = ask(site, "studies", "--unstable").output
    assert "stable" in table
    assert " no " in table


def test_nothing_that_a_peer_chose_is_taken_for_markup(site: Site) -> None:
    site.receive(Made(sop="1.7.1", study="[bold]1[/bold]", calling="[/red]"))
    site.work()
    for command in (("instances",), ("studies",)):
        result = ask(site, *command)
        assert result.exit_code == 0
        assert "[bold]1[/bold]" in result.output


def test_every_state_of_an_instance_can_be_asked_for() -> None:
    assert tuple(state.value for state in InstanceState) == INSTANCE_STATES
