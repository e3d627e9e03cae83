"""Statistics of the benchmarks."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import pairs

COSTS = st.lists(st.floats(0.001, 1000), min_size=1, max_size=30)


def test_the_median_of_paired_ratios_is_immune_to_weather_that_both_see():
    weather = [1.0, 2.0, 0.5, 4.0, 1.5, 3.0, 1.0, 2.5, 0.7, 1.1]
    found = pairs.ratio([1.2 * w for w in weather], weather)
    assert found.median == pytest.approx(1.2)
    assert found.low == pytest.approx(1.2)
    assert found.high == pytest.approx(1.2)
    assert found.pairs == 10


def test_the_interval_holds_the_true_ratio_about_as_often_as_it_says():
    rng = random.Random(4)
    held = 0
    for _ in range(60):
        theirs = [rng.uniform(0.5, 2) for _ in range(12)]
        ours = [0.9 * cost * rng.lognormvariate(0, 0.1) for cost in theirs]
        found = pairs.ratio(ours, theirs)
        held += found.low <= 0.9 <= found.high
    assert held >= 50


@given(COSTS)
def test_an_interval_surrounds_its_median(costs):
    found = pairs.ratio(costs, list(reversed(costs)))
    assert found.low <= found.median <= found.high


def test_the_same_runs_give_the_same_interval():
    ours, theirs = [1.0, 1.3, 0.9, 1.1], [1.0, 1.0, 1.1, 0.8]
    assert pairs.ratio(ours, theirs) == pairs.ratio(ours, theirs)


@pytest.mark.parametrize(
    ("low", "median", "high", "at_most", "verdict"),
    [
        (0.8, 0.9, 1.0, True, "yes"),
        (0.8, 0.9, 1.1, True, "likely"),
        (0.9, 1.1, 1.2, True, "no"),
        (1.0, 1.1, 1.2, False, "yes"),
        (0.9, 1.1, 1.2, False, "likely"),
        (0.8, 0.9, 1.2, False, "no"),
    ],
)
def test_a_limit_is_kept_only_where_the_whole_interval_keeps_it(low, median, high, at_most, verdict):
    assert pairs.Ratio(median, low, high, 10).verdict(1.0, at_most=at_most) == verdict


@pytest.mark.parametrize(("ours", "theirs"), [([1.0], [1.0, 2.0]), ([], []), ([1.0], [0.0])])
def test_what_cannot_be_paired_is_refused(ours, theirs):
    with pytest.raises(ValueError, match=r"pair|zero"):
        pairs.ratio(ours, theirs)


def test_a_percentile_is_one_of_the_values():
    assert pairs.percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.0
    assert pairs.percentile([1.0] * 99 + [7.0], 0.99) == 1.0
    assert pairs.percentile([1.0] * 99 + [7.0], 1.0) == 7.0


def test_a_spread_needs_a_run():
    assert pairs.spread([3.0, 1.0, 2.0]) == pairs.Spread(2.0, 1.0, 3.0, 3)
    with pytest.raises(ValueError, match="no run"):
        pairs.spread([])
