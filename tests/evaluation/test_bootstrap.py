"""Paired differences: intervals against simulation, and what they must not depend on."""

import dataclasses
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smat_peft.errors import DataError
from smat_peft.evaluation.bootstrap import Interval, pair_records, verdict
from smat_peft.evaluation.records import Record

ROLES = {"a": "id", "b": "id", "c": "test_ood"}


def records(accuracies, predictor="SMAT", seeds=(0, 1, 2)):
    """Records of `accuracies[domain][seed, episode]`."""
    return [
        Record(predictor, domain, ROLES[domain], episode, 5, 25, 50, float(value), seed=seed)
        for domain, of_domain in accuracies.items()
        for seed, of_seed in zip(seeds, of_domain, strict=True)
        for episode, value in enumerate(of_seed)
    ]


def drawn(seed=0):
    generator = np.random.default_rng(seed)
    return {domain: generator.uniform(0, 1, (3, 40)) for domain in ROLES}


@given(st.integers(0, 20))
def test_equal_methods_have_an_interval_with_0_in_it(seed):
    differences = pair_records(records(drawn(seed=seed)), records(drawn(seed=seed), "dense"))
    interval = differences.interval(["a", "b"], draws=200)
    assert (interval.low, interval.mean, interval.high) == (0, 0, 0)


@given(st.floats(-0.5, 0.5), st.integers(0, 5))
def test_a_shift_of_all_accuracies_shifts_the_interval(shift, seed):
    baseline = records(drawn(seed=seed), "dense")
    ours = drawn(seed=seed + 100)
    shifted = {domain: values + shift for domain, values in ours.items()}
    before, after = (pair_records(records(each), baseline).interval(["a", "c"], draws=200) for each in (ours, shifted))
    for part in ("low", "mean", "high"):
        assert getattr(after, part) == pytest.approx(getattr(before, part) + shift, abs=1e-9)
    assert after.per_seed == pytest.approx([value + shift for value in before.per_seed])


@given(st.randoms(use_true_random=False))
def test_the_order_of_records_and_domains_does_not_matter(shuffle: random.Random):
    ours, baseline = records(drawn(seed=1)), records(drawn(seed=2), "dense")
    expected = pair_records(ours, baseline).interval(["a", "c"], draws=100)
    shuffle.shuffle(ours)
    shuffle.shuffle(baseline)
    assert pair_records(ours, baseline).interval(["c", "a"], draws=100) == expected


def test_the_differences_of_each_seed_are_shown():
    values = {"a": np.array([[0.6, 0.8], [0.5, 0.5]]), "b": np.array([[0.1, 0.1], [0.9, 0.9]])}
    none = {domain: np.zeros((1, 2)) for domain in values}
    differences = pair_records(records(values, seeds=(3, 7)), records(none, "backbone", seeds=(None,)))
    assert differences.seeds == (3, 7)
    assert differences.interval("a").per_seed == pytest.approx((0.7, 0.5))
    assert differences.interval(differences.domains("id")).per_seed == pytest.approx((0.4, 0.7))
    assert differences.interval("a").mean == pytest.approx(0.6)


def test_a_baseline_of_several_seeds_is_paired_seed_by_seed():
    ours = drawn(seed=1)
    theirs = {domain: values - np.array([[0.1], [0.2], [0.3]]) for domain, values in ours.items()}
    interval = pair_records(records(ours), records(theirs, "dense")).interval("a")
    assert interval.per_seed == pytest.approx((0.1, 0.2, 0.3))


def covered(draw, seeds, episodes):
    """How often the interval holds the true difference, 0, where `draw` gives differences `[seeds, episodes]`."""
    generator, times = np.random.default_rng(0), 0
    for _ in range(400):
        values = draw(generator)
        none = {domain: np.zeros((1, episodes)) for domain in values}
        pair = records(values, seeds=range(seeds)), records(none, "backbone", seeds=(None,))
        interval = pair_records(*pair).interval(list(values), draws=400)
        times += interval.low <= 0 <= interval.high
    return times / 400


def coverage(seeds, episodes, seed_spread, episode_spread):
    """The same of one domain, where episodes' luck is shared by the seeds."""

    def draw(generator):
        luck = generator.normal(0, episode_spread, (1, episodes)) + generator.normal(0, seed_spread, (seeds, 1))
        return {"a": luck + generator.normal(0, 0.02, (seeds, episodes))}

    return covered(draw, seeds, episodes)


def test_the_interval_covers_the_truth_where_all_seeds_share_the_luck_of_episodes():
    assert 0.91 < coverage(seeds=5, episodes=60, seed_spread=0.0, episode_spread=0.2) < 0.98


def test_the_interval_covers_the_truth_where_seeds_differ():
    assert 0.90 < coverage(seeds=20, episodes=20, seed_spread=0.05, episode_spread=0.02) < 0.98


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_few_seeds_are_not_taken_for_many(seeds):
    assert 0.91 < coverage(seeds=seeds, episodes=20, seed_spread=0.05, episode_spread=0.02) < 0.99


@pytest.mark.parametrize("episodes", [3, 5, 20])
def test_few_episodes_are_not_taken_for_many(episodes):
    def draw(generator):
        return {domain: generator.normal(0, 0.2, (1, episodes)) for domain in ROLES}

    assert 0.92 < covered(draw, 1, episodes) < 0.985


def test_another_value_than_accuracy_may_be_compared():
    ours = [dataclasses.replace(each, log_loss=0.5) for each in records(drawn())]
    theirs = [dataclasses.replace(each, log_loss=0.75) for each in records(drawn(), "dense")]
    assert pair_records(ours, theirs, "log_loss").interval("a").mean == pytest.approx(-0.25)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ours: ours[1:], "the same episodes: a 0 is not in all"),
        (lambda ours: [each for each in ours if each.seed != 2], "training seeds differ: 0, 1 and 0, 1, 2"),
        (lambda ours: [*ours, ours[0]], "two records of SMAT on a 0, seed 0"),
        (lambda ours: [*ours, dataclasses.replace(ours[0], predictor="even mix")], "one predictor and adaptation"),
        (lambda ours: [dataclasses.replace(each, accuracy=math.nan) for each in ours], "SMAT has no accuracy on a 0"),
        (lambda ours: [], "got none at all"),
    ],
)
def test_records_that_cannot_be_paired_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        pair_records(change(records(drawn())), records(drawn(), "dense"))


@pytest.mark.parametrize("domains", [[], ["a", "z"], "z"])
def test_an_interval_needs_domains_that_were_measured(domains):
    with pytest.raises(DataError, match="no differences on"):
        pair_records(records(drawn()), records(drawn(), "dense")).interval(domains)


@pytest.mark.parametrize(
    ("low", "high", "margin", "expected"),
    [
        (0.01, 0.03, 0.0, "holds"),
        (-0.01, 0.03, 0.0, "undecided"),
        (-0.03, -0.01, 0.0, "does not hold"),
        (0.0, 0.0, 0.0, "does not hold"),
        (-0.008, 0.01, -0.01, "holds"),
        (-0.03, -0.011, -0.01, "does not hold"),
    ],
)
def test_a_claim_holds_where_the_whole_interval_is_above_its_margin(low, high, margin, expected):
    assert verdict(Interval((low + high) / 2, low, high, (0.0, 0.0)), margin) == expected
    assert verdict(Interval((low + high) / 2, low, high, (0.0,)), margin) == "undecided"


def test_an_interval_does_not_depend_on_those_that_were_asked_for_before():
    ours, baseline = records(drawn(seed=1)), records(drawn(seed=2), "dense")
    alone = pair_records(ours, baseline).interval(["a", "c"])
    differences = pair_records(ours, baseline)
    assert differences.interval("c", draws=100) != differences.interval("c")
    assert differences.interval("a") != differences.interval("c")
    assert differences.interval(["a", "c"]) == alone
