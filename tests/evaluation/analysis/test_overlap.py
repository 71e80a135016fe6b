"""Capacities and overlaps of experts' open gates, and overlaps that chance would give."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st

from smat_peft.evaluation.analysis.capacity import capacities
from smat_peft.evaluation.analysis.gates import OpenGates
from smat_peft.evaluation.analysis.overlap import measure_overlap


def gates_of(mask):
    """Gates of a parameter, from masks `[M, n]`."""
    return OpenGates("layers.0.weight", "Linear", mask.shape[1], mask.astype(float) @ mask.T.astype(float))


@st.composite
def adapters(draw):
    """Gates of a few parameters for a few experts, and their masks, `[M, n]` of all together."""
    experts = draw(st.integers(1, 4))
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    masks = [draw(np_st.arrays(bool, (experts, size))) for size in sizes]
    return [gates_of(mask) for mask in masks], np.concatenate(masks, axis=1)


@given(adapters(), st.data())
def test_capacities_average_to_the_share_of_open_gates(adapter, data):
    gates, masks = adapter
    parts = data.draw(st.lists(st.sampled_from("abc"), min_size=len(gates), max_size=len(gates)))
    found = capacities(gates, parts)
    assert [capacity.part for capacity in found] == list(dict.fromkeys(parts))
    sizes = np.array([capacity.size for capacity in found])
    average = sizes @ np.stack([capacity.shares for capacity in found]) / sizes.sum()
    np.testing.assert_allclose(average, masks.mean(1))


@given(adapters())
def test_overlap_is_intersection_over_union(adapter):
    gates, masks = adapter
    found = measure_overlap(gates).measured
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_array_equal(found.diagonal(), 1)
    for i, one in enumerate(masks):
        for j, other in enumerate(masks):
            union = (one | other).sum()
            assert found[i, j] == pytest.approx((one & other).sum() / union if union else 1)


@given(adapters())
def test_random_overlap_is_symmetric_with_ones_on_the_diagonal_and_at_most_one(adapter):
    overlap = measure_overlap(adapter[0])
    for found in (overlap.random, overlap.random_by_parameter):
        np.testing.assert_allclose(found, found.T)
        np.testing.assert_allclose(found.diagonal(), 1)
        assert found.max() <= 1 + 1e-12


def test_overlaps_by_hand():
    both = gates_of(np.array([[1, 1, 0, 0], [1, 0, 1, 0]], dtype=bool))  # half open, 1 of 3 in common
    second = gates_of(np.array([[1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]], dtype=bool))
    overlap = measure_overlap([both, second])
    assert overlap.measured[0, 1] == pytest.approx(2 / 4)
    chance = 3 * 3 / 10  # 3 of 10 open in each
    assert overlap.random[0, 1] == pytest.approx(chance / (6 - chance))
    by_parameter = 2 * 2 / 4 + 1 * 1 / 6
    assert overlap.random_by_parameter[0, 1] == pytest.approx(by_parameter / (6 - by_parameter))


def test_random_overlap_is_what_random_masks_have():
    random = np.random.default_rng(0)
    equal = [gates_of(random.random((2, 200_000)) < [[0.2], [0.5]]) for _ in range(2)]
    overlap = measure_overlap(equal)
    assert overlap.measured[0, 1] == pytest.approx(overlap.random[0, 1], rel=0.01)
    uneven = [gates_of(random.random((2, 200_000)) < densities) for densities in ([[0.1], [0.3]], [[0.6], [0.4]])]
    overlap = measure_overlap(uneven)
    assert overlap.measured[0, 1] == pytest.approx(overlap.random_by_parameter[0, 1], rel=0.01)
    assert overlap.measured[0, 1] > 1.1 * overlap.random[0, 1]
