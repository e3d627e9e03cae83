"""`ingest retention` and `work retain` on a real store and ledger."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ingest.cli import main
from ingest.ledger import DeliveryState
from tests.support.persisting import Site
from tests.support.retaining import deliver, fill, left, made, remover


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.log.configure_logging", lambda *_: None)


def ask(site: Site, *arguments: str, command: tuple[str, ...] = ("retention",), **limits: Any) -> Result:
    path: Path = site.config.data_dir / "node.toml"
    section = "".join(f"{key} = {str(value).lower()}\n" for key, value in limits.items())
    path.write_text(f'[node]\ndata_dir = "."\n[retention]\n{section}')
    return CliRunner().invoke(main, [*command, "-c", str(path), *arguments], env={"COLUMNS": "250"})


def plan_of(site: Site, **limits: Any) -> dict[str, Any]:
    result = ask(site, "--dry-run", "--json", **limits)
    assert result.exit_code == 0
    plan: dict[str, Any] = json.loads(result.output)
    return plan


def test_dry_run_names_what_would_go_and_what_is_held_back_and_removes_nothing(site: Site) -> None:
    for study in (1, 2, 3):
        fill(site, made(study, 1), made(study, 2))
    deliver(site, DeliveryState.DELIVERED)
    deliver(site, DeliveryState.DEAD, 1)
    size = {row.study_uid: 2 * row.size for row in site.instances()}
    kept = sum(size.values())
    plan = plan_of(site, max_bytes=kept - 1)
    assert [one["study_uid"] for one in plan["held"]] == ["2.1"]
    (goes,) = plan["go"]
    assert (goes["study_uid"], goes["instances"], goes["size"], goes["owed"]) == ("2.2", 2, size["2.2"], 0)
    assert goes["reason"] == "max_bytes"
    assert goes["newest_at"].endswith("+00:00")
    assert (plan["kept_bytes"], plan["left_bytes"]) == (kept, kept - size["2.2"])
    text = ask(site, "--dry-run", max_bytes=kept - 1).output
    for line in (
        "would be removed: 1 study, 2 instances",
        "held back, because a destination does not have them yet: 1 study",
    ):
        assert line in text
    assert text.index("2.2") < text.index("2.1 ")
    assert left(site) == ["2.1", "2.2", "2.3"]


def test_dry_run_says_that_what_comes_is_refused(site: Site) -> None:
    fill(site, made(1), made(2))
    deliver(site, DeliveryState.DELIVERED)
    kept = sum(row.size for row in site.instances())
    refuse = {"at_max_bytes": '"refuse"'}
    plan = plan_of(site, max_bytes=1, **refuse)
    assert (plan["go"], plan["held"], plan["left_bytes"]) == ([], [], kept)
    assert "the node refuses instances" in ask(site, "--dry-run", max_bytes=kept, **refuse).output
    assert "the node refuses instances" not in ask(site, "--dry-run", max_bytes=kept + 1, **refuse).output
    assert ask(site, max_bytes=1, **refuse).exit_code == 0
    assert left(site) == ["2.1", "2.2"]


def test_command_removes_once_and_says_what(site: Site) -> None:
    fill(site, made(1), made(2))
    deliver(site, DeliveryState.DELIVERED)
    result = ask(site, "--json", max_bytes=1)
    assert result.exit_code == 0
    done = json.loads(result.output)
    assert (done["studies"], done["instances"], done["held"], done["kept_bytes"]) == (2, 2, 0, 0)
    assert left(site) == []
    assert "removed 0 studies, 0 instances, 0 bytes; 0 bytes left" in ask(site, max_bytes=1).output


def test_many_studies_are_cut_off_for_people_only(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.cli.retention.MAX_STUDIES", 2)
    fill(site, made(1), made(2), made(3))
    deliver(site, DeliveryState.DELIVERED)
    assert "and 1 more; --json lists all of them" in ask(site, "--dry-run", max_bytes=1).output
    assert len(plan_of(site, max_bytes=1)["go"]) == 3


def test_what_is_not_set_removes_nothing_and_says_so(site: Site) -> None:
    fill(site, made(1))
    result = ask(site, "--dry-run")
    assert result.exit_code == 0
    assert "[retention] is not set" in result.output
    assert "removed 0 studies" in ask(site).output
    alone = ask(site, command=("work", "retain"))
    assert alone.exit_code == 2
    assert "retention: nothing is ever removed with it; set keep_days" in alone.output


def test_who_removes_is_not_disturbed(site: Site) -> None:
    fill(site, made(1))
    with remover(site) as other, other._exclude_other_runs():
        result = ask(site, max_bytes=1)
        assert result.exit_code == 1
        assert "another process removes from this store" in result.output
        assert ask(site, "--dry-run", max_bytes=1).exit_code == 0


def test_store_that_is_not_there_is_named(site: Site) -> None:
    with site.ledger():
        pass
    for arguments in ([], ["--dry-run"]):
        result = ask(site, *arguments, max_bytes=1)
        assert result.exit_code == 1
        assert "store" in result.output
