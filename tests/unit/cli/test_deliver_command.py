"""`ingest deliver`, with a real worker and remote: what came before its route, what a remote has lost."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.forwarding import Forwarding
from tests.support.instances import Made
from tests.support.peers import CT, EXPLICIT, PynetdicomRemote
from tests.support.ports import free_port
from tests.support.servers import Valkey
from tests.unit.cli.test_cli_ledger import ask


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.log.configure_logging", lambda *_: None)


@pytest.fixture
def site(tmp_path: Path, redis_server: Valkey) -> Iterator[Forwarding]:
    made = Forwarding(tmp_path / "var", redis_server)
    yield made
    made.ledger.close()


def test_images_that_came_before_their_route_are_delivered_and_again_if_the_remote_lost_them(
    site: Forwarding,
) -> None:
    made = site.record(Made(sop="1.1"), Made(sop="1.2", study="1.9"), to=())
    site.add(free_port())
    with PynetdicomRemote([(CT, [EXPLICIT])], port=site.destinations[0].port) as remote, site.worker():
        result = ask(site, "deliver", "--to", "pacs", "--all")
        assert (result.exit_code, result.stdout) == (0, "pacs: 2 to be delivered\n")
        site.wait({"delivered": 2})
        assert sorted(one.data_set for one in remote.stored) == sorted(one.data_set for one in made)
        result = ask(site, "deliver", "--to", "pacs", "--all")
        assert result.stdout == "pacs: 2 delivered already; --again delivers them again\n"
        result = ask(site, "deliver", "--to", "pacs", "--study", "1.9", "--again")
        assert result.stdout == "pacs: 1 to be delivered again\n"
        site.wait({"delivered": 2})
        assert [one.sop_instance for one in remote.stored][2:] == ["1.2"]


def test_what_is_left_alone_is_said_with_the_command_for_it(site: Forwarding) -> None:
    site.add(free_port())
    site.many(4)
    with site.ledger.database.begin_write() as connection:
        for number, state in enumerate(("dead", "dropped", "retry"), 1):
            connection.exec_driver_sql(
                f"UPDATE deliveries SET state = '{state}', next_at = 9000000000000 WHERE id = {number}"
            )
    result = ask(site, "deliver", "--to", "pacs", "--all")
    assert result.stdout.splitlines() == [
        "pacs: 1 waiting already",
        "pacs: 1 to be retried already",
        "pacs: 1 dead; `ingest retry --destination pacs` sends them again",
        "pacs: 1 dropped; `ingest retry --destination pacs --state dropped` sends them again",
    ]


def test_several_destinations_are_counted_as_json(site: Forwarding) -> None:
    site.add(free_port())
    site.add(free_port(), "ai")
    site.many(2)
    result = ask(site, "deliver", "--to", "pacs", "--to", "ai", "--all", "--dry-run", "--json")
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"destination": "pacs", "new": 0, "again": 0, "left": {"waiting": 2}},
        {"destination": "ai", "new": 2, "again": 0, "left": {}},
    ]
    assert (site.states(), site.states("ai")) == ({"waiting": 2}, {})


def test_nothing_is_delivered_where_nothing_or_nobody_is_named(site: Forwarding) -> None:
    site.add(free_port())
    site.many(1, to=())
    result = ask(site, "deliver", "--to", "pacs")
    assert (result.exit_code, "--all" in result.output) == (2, True)
    assert ask(site, "deliver", "--all").exit_code == 2
    result = ask(site, "deliver", "--to", "pasc", "--all")
    assert result.exit_code == 1
    assert 'no destination "pasc"; did you mean "pacs"? the configuration has pacs' in result.output
    assert site.states() == {}


def test_deliveries_are_made_while_the_queue_is_away(site: Forwarding) -> None:
    site.add(free_port())
    site.many(1, to=())
    site.server.kill()
    result = ask(site, "deliver", "--to", "pacs", "--all")
    assert (result.exit_code, site.states()) == (0, {"waiting": 1})
