"""Intervals against closed forms and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smat_peft.errors import DataError
from smat_peft.evaluation.statistics import (
    Estimate,
    average_over_domains,
    estimate_difference,
    estimate_mean,
    proportion_interval,
)

accuracies = st.lists(st.floats(0, 1), min_size=2, max_size=50)


@given(accuracies)
def test_the_half_width_is_1_96_unbiased_standard_errors(values):
    estimate = estimate_mean(values)
    assert estimate.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert estimate.half_width == pytest.approx(1.96 * np.std(values, ddof=1) / math.sqrt(len(values)), abs=1e-9)
    assert estimate.count == len(values)
    assert estimate.low <= estimate.mean <= estimate.high


def test_the_interval_covers_the_truth_95_times_in_a_hundred():
    draws = np.random.default_rng(0).normal(0.6, 0.2, size=(2000, 100))
    covered = [(e := estimate_mean(list(row))).low <= 0.6 <= e.high for row in draws]
    assert 0.935 < np.mean(covered) < 0.965


def test_a_single_value_has_no_interval():
    estimate = estimate_mean([0.5])
    assert estimate.mean == 0.5
    assert math.isnan(estimate.half_width)


@given(accuracies, st.floats(-0.5, 0.5))
def test_a_constant_gain_is_certain_however_much_episodes_differ(values, gain):
    difference = estimate_difference([value + gain for value in values], values)
    assert difference.mean == pytest.approx(gain, abs=1e-9)
    assert difference.half_width == pytest.approx(0, abs=1e-9)


def test_a_paired_difference_refuses_unequal_lengths():
    with pytest.raises(DataError, match="same episodes"):
        estimate_difference([0.1, 0.2], [0.1])


def test_domains_weigh_the_same_whatever_their_number_of_episodes():
    average = average_over_domains([Estimate(0.9, 0.03, 1000), Estimate(0.5, 0.04, 10)])
    assert average.mean == pytest.approx(0.7)
    assert average.half_width == pytest.approx(0.05 / 2)
    assert average.count == 1010


def test_the_average_does_not_count_the_spread_between_domains():
    average = average_over_domains([Estimate(0.1, 0.0, 5), Estimate(0.9, 0.0, 5)])
    assert average.half_width == 0


@pytest.mark.parametrize("function", [estimate_mean, average_over_domains])
def test_nothing_to_average_is_an_error(function):
    with pytest.raises(DataError, match="there are no"):
        function([])


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_of_a_proportion_holds_it_and_stays_within_0_and_1(counts):
    successes, trials = counts
    low, high = proportion_interval(successes, trials)
    assert 0 <= low <= successes / trials + 1e-12
    assert successes / trials - 1e-12 <= high <= 1
    assert high - low > 0.01


def test_the_interval_of_a_proportion_equals_the_published_example():
    # Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662 by the score method without continuity correction
    assert proportion_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 2)])
def test_an_impossible_proportion_is_an_error(successes, trials):
    with pytest.raises(DataError, match="not a proportion"):
        proportion_interval(successes, trials)
