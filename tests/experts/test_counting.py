"""Open gates are counted, and expected, as METHOD 2 says."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from smat_peft.experts.counting import expected_open_gates, open_gates, open_somewhere
from smat_peft.experts.gates import EVAL_TEMPERATURE, GATE_LIMIT, TRAIN_TEMPERATURE, gate_values

temperatures = pytest.mark.parametrize("temperature", [TRAIN_TEMPERATURE, EVAL_TEMPERATURE])
logits = st.floats(-GATE_LIMIT, GATE_LIMIT)


def value(logit: float, temperature: float) -> float:
    return float(gate_values(torch.tensor([[logit]]), temperature))


@temperatures
def test_open_gates_are_those_above_0(temperature: float) -> None:
    gates = torch.linspace(-GATE_LIMIT, GATE_LIMIT, 2 * 3 * 5).view(2, 3, 5)
    counted = [sum(value(float(x), temperature) > 0 for x in expert.flatten()) for expert in gates]
    assert open_gates(gates, temperature).tolist() == counted


@given(st.lists(logits, min_size=1, max_size=6))
def test_the_expected_number_of_open_gates_is_the_formulas(values: list[float]) -> None:
    gates = torch.tensor([values, values[::-1]], dtype=torch.float64)
    epsilon = 1e-6
    closed = (1 / (1 + (gates - 2 / 3 * math.log(1 / 11)).exp())).clamp(epsilon, 1 - epsilon)  # q of METHOD 2
    torch.testing.assert_close(expected_open_gates(gates), (1 - closed).sum(1))


def test_the_expected_number_of_open_gates_has_a_gradient_where_gates_are_clipped() -> None:
    gates = torch.tensor([[-GATE_LIMIT, GATE_LIMIT]], requires_grad=True)
    expected_open_gates(gates).sum().backward()
    assert gates.grad is not None
    assert (gates.grad > 0).all()


def test_gates_of_a_scalar_parameter_are_counted_too() -> None:
    gates = torch.tensor([-GATE_LIMIT, GATE_LIMIT, 0.0])
    assert open_gates(gates, TRAIN_TEMPERATURE).tolist() == [0, 1, 1]
    assert open_somewhere(gates, TRAIN_TEMPERATURE) == 1
    assert expected_open_gates(gates).shape == (3,)


@temperatures
def test_counts_do_not_depend_on_blocks(temperature: float) -> None:
    gates = torch.randn(2, 3, 50_000, generator=torch.Generator().manual_seed(0)).mul(2).requires_grad_()
    values = gate_values(gates, temperature)
    assert torch.equal(open_gates(gates, temperature), torch.count_nonzero(values.flatten(1), dim=1))
    assert open_somewhere(gates, temperature) == int((values > 0).any(0).sum())
    expected, formula = expected_open_gates(gates), torch.sigmoid(gates + 2 / 3 * math.log(11)).flatten(1).sum(1)
    torch.testing.assert_close(expected, formula)
    ours, theirs = (torch.autograd.grad(total[0] + 3 * total[1], gates)[0] for total in (expected, formula))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gates_in_half_precision_are_counted_as_exactly_as_others(dtype: torch.dtype) -> None:
    gates = torch.full((2, 70_001), GATE_LIMIT, dtype=dtype).requires_grad_()
    assert open_gates(gates, EVAL_TEMPERATURE).tolist() == [70_001, 70_001]
    expected = expected_open_gates(gates)
    torch.testing.assert_close(expected, expected_open_gates(gates.float()), rtol=5e-3, atol=0)  # of each sigmoid
    expected.sum().backward()
    assert gates.grad is not None
    assert gates.grad.dtype == dtype
