"""Temperature, log loss and calibration error against closed forms, scikit-learn and simulation."""

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st

from smat_peft.errors import DataError
from smat_peft.evaluation.calibration import Calibration, Reliability, fit_temperature, log_loss


def drawn(temperature, ways=(5, 7, 20), queries=2000, seed=0):
    """Logits, and labels drawn from their softmax at a temperature."""
    generator = torch.Generator().manual_seed(seed)
    logits = [3 * torch.randn(queries, number, generator=generator) for number in ways]
    labels = [torch.multinomial((each / temperature).softmax(-1), 1, generator=generator)[:, 0] for each in logits]
    return logits, labels


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_that_labels_were_drawn_at_is_found_again(temperature):
    assert fit_temperature(*drawn(temperature)) == pytest.approx(temperature, rel=0.05)


def test_no_other_temperature_has_a_smaller_loss():
    logits, labels = drawn(2.5, ways=(6,))
    best = fit_temperature(logits, labels)
    least = log_loss(logits[0], labels[0], best)
    assert all(log_loss(logits[0], labels[0], best * factor) > least for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2))


def test_answers_that_are_all_right_have_a_temperature_above_0():
    assert 0 < fit_temperature([5 * torch.eye(4)], [torch.arange(4)]) < 0.2


def test_a_temperature_needs_episodes():
    with pytest.raises(DataError, match="no validation episodes"):
        fit_temperature([], [])


def test_the_log_loss_is_scikit_learns():
    logits, labels = drawn(1.0, ways=(4,), queries=50)
    expected = sklearn.metrics.log_loss(labels[0], (logits[0].double() / 2).softmax(-1), labels=range(4))
    assert log_loss(logits[0], labels[0], 2.0) == pytest.approx(expected)


def test_the_calibration_error_is_the_mean_gap_of_the_bins():
    # confidences 0.55 and 0.57 (one right of two), 0.95 (right), 0.85 (wrong)
    probabilities = torch.tensor([[0.55, 0.45], [0.57, 0.43], [0.95, 0.05], [0.15, 0.85]])
    reliability = Reliability.of(probabilities.log(), torch.tensor([0, 1, 0, 0]))
    assert reliability.bins[0].tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 1, 1]
    assert reliability.error == pytest.approx((abs(0.55 + 0.57 - 1) + 0.05 + 0.85) / 4)


def test_probabilities_that_are_true_have_little_error_and_a_temperature_mends_others():
    (logits,), (labels,) = drawn(3.0, ways=(5,), queries=20_000)
    assert Reliability.of(logits, labels).error > 0.1
    assert Reliability.of(logits, labels, 3.0).error < 0.02


@given(st.integers(1, 40), st.integers(0, 5))
def test_the_error_of_parts_is_pooled_over_their_queries(cut, seed):
    (logits,), (labels,) = drawn(2.0, ways=(5,), queries=41, seed=seed)
    parts = Reliability.of(logits[:cut], labels[:cut]) + Reliability.of(logits[cut:], labels[cut:])
    np.testing.assert_allclose(parts.bins, Reliability.of(logits, labels).bins)


def test_a_part_without_a_temperature_leaves_the_whole_without():
    (logits,), (labels,) = drawn(1.0, ways=(5,), queries=4)
    one = Reliability.of(logits, labels)
    assert (Calibration(one, one) + Calibration(one)).after is None
    assert (Calibration(one, one) + Calibration(one, one)).after.bins.sum() == pytest.approx(2 * one.bins.sum())
