"""Samples of counters and gauges in the ledger, and the series that charts show."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.config.model import Config, LedgerSettings, NodeSettings
from ingest.ledger import Ledger
from ingest.ledger.samples import NAMES_MAX, StoredSample
from ingest.metrics import families
from ingest.metrics.board import MetricsBoard
from ingest.metrics.board_file import BoardFile, read_boards
from ingest.operations.charts import estimate_quantile, find_sample_source, read_charts
from ingest.workers.monitor.sampling import Sampler, compose_counters
from tests.support.nodes import eventually

NOW = 1_800_000_000_000


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'ledger.db'}"
    else:
        url = request.getfixturevalue("postgresql_url")
    with contextlib.closing(Ledger(url)) as made:
        made.migrate()
        yield made


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "run").mkdir()
    return Config(node=NodeSettings(data_dir=tmp_path))


def counted(board: MetricsBoard) -> dict[str, object]:
    return compose_counters({"node": board})


def sampled(ledger: Ledger, config: Config, ages_seconds: range, board: MetricsBoard) -> None:
    """Ten instances between two samples."""
    board.add_names(families.CALLING_AE, ["CT1"])
    for age in ages_seconds:
        at_ms = NOW - age * 1000
        content = counted(board) | {"queue_entries": age, "backlogs": {"pacs": [7, 1.5]}}
        ledger.samples.add_sample(
            find_sample_source(config), StoredSample(at_ms, content), is_minute=age % 60 == 0
        )
        for _ in range(10):
            board.add(families.INSTANCES, "CT1")
            board.observe(families.COMMIT_SECONDS, 0.004)


def test_rates_gauges_and_quantiles_come_from_neighbouring_samples(ledger: Ledger, config: Config) -> None:
    sampled(ledger, config, range(4000, -1, -20), MetricsBoard.create())
    charts = read_charts(config, ledger, "hour", NOW)
    assert charts.times[0] == (NOW // 1000) - 3600 + 30
    assert charts.times[-1] == NOW // 1000
    assert set(charts.series["received_per_second"]) == {0.5}
    assert set(charts.callers["CT1"]) == {0.5}
    assert charts.series["queue_entries"][-1] == 0
    assert charts.backlogs == {"pacs": [7] * 120}
    medians = set(charts.series["commit_p50_seconds"])
    assert all(0.0025 < each <= 0.005 for each in medians if each is not None)
    assert {len(column) for column in charts.series.values()} == {len(charts.times)} == {120}


def test_old_samples_are_thinned_to_minutes_and_then_removed(ledger: Ledger, config: Config) -> None:
    sampled(ledger, config, range(26 * 3600, -1, -20), MetricsBoard.create())
    kept = ledger.samples.read_samples(find_sample_source(config), 0)
    ages = [(NOW - sample.at_ms) // 1000 for sample in kept]
    assert max(ages) == 25 * 3600
    assert [age for age in ages if age > 3900] == list(range(25 * 3600, 3900, -60))
    assert [age for age in ages if age <= 3900] == list(range(3900, -1, -20))
    charts = read_charts(config, ledger, "day", NOW)
    assert set(charts.series["received_per_second"]) == {0.5}, "no instance is lost by thinning"


def test_a_restart_a_gap_and_a_clock_that_was_set_back_give_no_wrong_rate(
    ledger: Ledger, config: Config
) -> None:
    sampled(ledger, config, range(3600, 1800, -20), MetricsBoard.create())
    sampled(ledger, config, range(1200, -1, -20), MetricsBoard.create())
    charts = read_charts(config, ledger, "hour", NOW)
    rates = charts.series["received_per_second"]
    assert all(rate is None or 0 <= rate <= 0.5 for rate in rates)
    assert rates.count(None) == 600 // 30
    ledger.samples.add_sample(find_sample_source(config), StoredSample(NOW - 3_000_000, {}), is_minute=True)
    left = ledger.samples.read_samples(find_sample_source(config), 0)
    assert max(sample.at_ms for sample in left) <= NOW - 3_000_000 + 60_000


def test_nodes_that_share_a_ledger_have_samples_of_their_own(ledger: Ledger, config: Config) -> None:
    ledger.samples.add_sample("other:/var", StoredSample(NOW, {"backlog": 3}), is_minute=True)
    assert read_charts(config, ledger, "hour", NOW).series == {}


def test_a_sample_is_bounded_whatever_the_number_of_callers(config: Config) -> None:
    board = MetricsBoard.create()
    names = [f"CT{number}" for number in range(255)]
    board.add_names(families.CALLING_AE, names)
    for number, name in enumerate(names):
        board.add(families.INSTANCES, name, value=number + 1)
    callers = counted(board)["callers"]
    assert isinstance(callers, dict)
    assert len(callers) == NAMES_MAX
    assert min(callers.values()) == 255 - NAMES_MAX + 1


def test_the_sampler_keeps_what_can_be_read(tmp_path: Path, config: Config) -> None:
    """Redis is away here: its gauges are missing, and nothing else is."""
    with_url = config.model_copy(update={"ledger": LedgerSettings(url=f"sqlite:///{tmp_path / 'l.db'}")})
    pid = os.fork()  # a supervisor: a record lock does not exclude its own process
    if pid == 0:
        board = MetricsBoard.create()
        board.add(families.INSTANCES, "other", value=5)
        file = BoardFile(board, config.run_dir, "node")
        file.write()
        signal.pause()
    with contextlib.closing(Ledger(with_url.ledger_url)) as ledger:
        ledger.migrate()
        eventually(lambda: read_boards(config.run_dir))
        Sampler(with_url, ledger).take_sample()
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        (sample,) = ledger.samples.read_samples(find_sample_source(config), 0)
    assert sample.content["received"] == 5
    assert sample.content["spool_entries"] == 0
    assert sample.content["free"]["data"] > 0
    assert "queue_entries" not in sample.content


@pytest.mark.parametrize(("counts", "expected"), [([0, 4] + [0] * 19, 0.000175), ([0] * 20 + [1], 3600.0)])
def test_quantiles_lie_within_their_bucket(counts: list[int], expected: float) -> None:
    assert estimate_quantile(counts, 0.5) == pytest.approx(expected)
    assert estimate_quantile([0] * 21, 0.5) is None
