"""Means with 95 % intervals: over episodes, paired differences, averages over domains."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from smat_peft.errors import DataError

NORMAL_QUANTILE = 1.96  # two-sided 95 %, the number METHOD 11 uses


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval.

    Attributes:
        mean: In the unit of the values it was made from.
        half_width: Half the interval's width; NaN where a single value tells nothing about the spread.
        count: How many values it was made from.
    """

    mean: float
    half_width: float
    count: int

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.half_width


def estimate_mean(values: Sequence[float]) -> Estimate:
    """Mean ± 1.96 std / sqrt(n) with the unbiased standard deviation (METHOD 11)."""
    if not values:
        raise DataError("there are no values to average")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Estimate(mean, math.nan, 1)
    return Estimate(mean, NORMAL_QUANTILE * statistics.stdev(values) / math.sqrt(len(values)), len(values))


def estimate_difference(values: Sequence[float], baseline: Sequence[float]) -> Estimate:
    """Mean of `values - baseline`, pair by pair: both were measured on the same episodes in the same order."""
    if len(values) != len(baseline):
        raise DataError(f"a paired difference needs the same episodes twice, got {len(values)} and {len(baseline)}")
    return estimate_mean([value - base for value, base in zip(values, baseline, strict=True)])


def average_over_domains(estimates: Sequence[Estimate]) -> Estimate:
    """Mean of per-domain means, every domain weighing the same.

    The domains are fixed, not drawn: the interval speaks of other episodes from these very domains. Domains draw
    their episodes independently, so the variances of their means add up.
    """
    if not estimates:
        raise DataError("there are no domains to average over")
    half_width = math.hypot(*(estimate.half_width for estimate in estimates)) / len(estimates)
    return Estimate(
        statistics.fmean(estimate.mean for estimate in estimates),
        half_width,
        sum(estimate.count for estimate in estimates),
    )


def proportion_interval(successes: float, trials: int) -> tuple[float, float]:
    """Lower and upper end of the 95 % interval of a proportion (Wilson's score interval, 1927).

    Unlike mean ± 1.96 std / sqrt(n) it stays within 0 and 1 and does not shrink to nothing when all trials agree.
    Successes may be a mean over repetitions, no whole number.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise DataError(f"{successes} of {trials} is not a proportion")
    share, squared, shrinkage = successes / trials, NORMAL_QUANTILE**2, 1 / (1 + NORMAL_QUANTILE**2 / trials)
    centre = shrinkage * (share + squared / (2 * trials))
    half_width = shrinkage * math.sqrt(share * (1 - share) * squared / trials + (squared / (2 * trials)) ** 2)
    return max(0.0, centre - half_width), min(1.0, centre + half_width)
