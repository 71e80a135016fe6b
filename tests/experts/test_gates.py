"""Gate values, their thresholds, their limits, and how many are open (METHOD 2)."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from smat_peft.experts.gates import (
    EVAL_TEMPERATURE,
    GATE_LIMIT,
    TRAIN_TEMPERATURE,
    GateGranularity,
    clamp_gates_,
    gate_shape,
    gate_values,
    initialise_gates_,
)

THRESHOLDS = {TRAIN_TEMPERATURE: 1.5986, EVAL_TEMPERATURE: 2.3979}  # beta ln 11, METHOD 2
temperatures = pytest.mark.parametrize("temperature", THRESHOLDS)
logits = st.floats(-GATE_LIMIT, GATE_LIMIT)


def value(logit: float, temperature: float) -> float:
    return float(gate_values(torch.tensor([[logit]]), temperature))


@temperatures
def test_the_limits_of_the_logits_give_exactly_0_and_1(temperature: float) -> None:
    assert value(-GATE_LIMIT, temperature) == 0.0
    assert value(GATE_LIMIT, temperature) == 1.0


@temperatures
@given(beyond=st.floats(1e-4, 10))
def test_gates_are_exactly_0_and_1_beyond_the_threshold_and_between_before_it(
    temperature: float, beyond: float
) -> None:
    threshold = THRESHOLDS[temperature]
    assert threshold == pytest.approx(temperature * math.log(11), abs=1e-4)
    assert value(-threshold - beyond, temperature) == 0.0
    assert value(threshold + beyond, temperature) == 1.0
    inside = max(threshold - beyond, 0.0)
    assert 0.0 < value(-inside, temperature) <= 0.5 <= value(inside, temperature) < 1.0


@temperatures
@given(logit=logits)
def test_a_gate_and_its_mirror_image_sum_to_1(temperature: float, logit: float) -> None:
    assert value(logit, temperature) + value(-logit, temperature) == pytest.approx(1.0, abs=1e-6)


@temperatures
def test_a_gate_has_no_gradient_where_it_is_clipped(temperature: float) -> None:
    threshold = THRESHOLDS[temperature]
    gates = torch.tensor([[-threshold - 0.01, 0.0, threshold + 0.01]], requires_grad=True)
    gate_values(gates, temperature).sum().backward()
    assert gates.grad is not None
    assert gates.grad[0].tolist() == pytest.approx([0.0, 0.3 / temperature, 0.0])  # 1.2 times a sigmoid's slope of 1/4


@pytest.mark.parametrize(
    ("shape", "granularity", "expected"),
    [
        ((5, 4), "element", (5, 4)),
        ((5, 4), "structured", (1, 4)),  # input columns
        ((6, 3, 2, 2), "structured", (6, 1, 1, 1)),  # output channels
        ((6, 3, 2), "structured", (6, 1, 1)),
        ((5,), "structured", (5,)),
        ((), "structured", ()),
        ((1, 7, 4), "structured", (1, 7, 4)),  # a position embedding
        ((1, 4), "structured", (1, 4)),
    ],
)
def test_shape_of_the_gates_over_a_parameter(
    shape: tuple[int, ...], granularity: GateGranularity, expected: tuple[int, ...]
) -> None:
    assert gate_shape(torch.Size(shape), granularity) == expected


def test_clamping_keeps_what_is_within_the_limits() -> None:
    gates = torch.tensor([[-1e6, -GATE_LIMIT, 1.5, 1e6]], requires_grad=True)
    assert clamp_gates_(gates) is gates
    assert gates[0].tolist() == pytest.approx([-GATE_LIMIT, -GATE_LIMIT, 1.5, GATE_LIMIT])


def test_initial_gates_have_the_standard_deviation_asked_for_within_the_limits() -> None:
    torch.manual_seed(0)
    assert initialise_gates_(torch.empty(4, 5000), 0.5).std().item() == pytest.approx(0.5, rel=0.02)
    assert initialise_gates_(torch.empty(4, 5000), 50.0).abs().max().item() == pytest.approx(GATE_LIMIT)
