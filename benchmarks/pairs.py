"""Statistics of runs that were made in turn: spreads, paired ratios and their bootstrap intervals.

On a shared machine the same program can cost twice as much a minute later. Runs made in turn (A B A B …) see
the same weather, so each A is divided by the B beside it, and only those ratios are summed up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95

Verdict = Literal["yes", "likely", "no"]


@dataclass(frozen=True, slots=True)
class Spread:
    """A measure over several runs.

    Attributes:
        median: Of all runs.
        least: Of all runs.
        most: Of all runs.
        runs: How many.
    """

    median: float
    least: float
    most: float
    runs: int


@dataclass(frozen=True, slots=True)
class Ratio:
    """One receiver's measure over another's, pair by pair.

    Attributes:
        median: Of the pairs' ratios.
        low: Lower end of the 95% bootstrap interval of that median.
        high: Its upper end.
        pairs: How many.
    """

    median: float
    low: float
    high: float
    pairs: int

    def verdict(self, limit: float, *, at_most: bool) -> Verdict:
        """Is the limit kept? "likely" where the median keeps it and the interval reaches across."""
        middle, worst = (self.median, self.high) if at_most else (-self.median, -self.low)
        bound = limit if at_most else -limit
        if worst <= bound:
            return "yes"
        return "likely" if middle <= bound else "no"


def spread(values: Sequence[float]) -> Spread:
    """Median and range.

    Raises:
        ValueError: There is no value.
    """
    if not values:
        raise ValueError("no run to sum up")
    return Spread(float(np.median(values)), float(min(values)), float(max(values)), len(values))


def both_measured(ours: Sequence[float], theirs: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return the pairs of which neither is zero.

    A run can be too short for the clock of the kernel, which counts CPU time in ticks.
    """
    kept = [pair for pair in zip(ours, theirs, strict=True) if min(pair) > 0]
    return [one for one, _ in kept], [other for _, other in kept]


def ratio(ours: Sequence[float], theirs: Sequence[float], *, seed: int = 1) -> Ratio:
    """Median of `ours[i] / theirs[i]` and its interval, by resampling the pairs.

    The seed is fixed, so that the same runs always give the same interval.

    Raises:
        ValueError: The two are not of one length, are empty, or a divisor is not positive.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} runs cannot be paired with {len(theirs)}")
    if not ours:
        raise ValueError("no pair to sum up")
    divisors = np.asarray(theirs, dtype=float)
    if not (divisors > 0).all():
        raise ValueError("a measure of the other receiver is zero or less")
    ratios = np.asarray(ours, dtype=float) / divisors
    random = np.random.default_rng(seed)
    drawn = random.integers(0, len(ratios), size=(RESAMPLES, len(ratios)))
    medians = np.median(ratios[drawn], axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(medians, (tail, 1 - tail))
    return Ratio(float(np.median(ratios)), float(low), float(high), len(ratios))


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` (0 to 1) of all values do not exceed.

    Raises:
        ValueError: There is no value.
    """
    if not values:
        raise ValueError("no value to rank")
    return float(np.quantile(np.asarray(values, dtype=float), share, method="inverted_cdf"))
