"""The fused interpolation equals the plain formula, in values and gradients (METHOD 4)."""

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from smat_peft.experts import interpolate as module
from smat_peft.experts.gates import (
    EVAL_TEMPERATURE,
    GATE_LIMIT,
    TRAIN_TEMPERATURE,
    GateGranularity,
    gate_shape,
)
from smat_peft.experts.interpolate import (
    interpolate,
    interpolate_many,
    interpolate_tasks,
    merge_many_into,
)

SHAPES = [(), (7,), (1, 3, 4), (5, 4), (6, 3, 2, 2)]
every_shape = pytest.mark.parametrize("shape", SHAPES)
every_granularity = pytest.mark.parametrize("granularity", ["element", "structured"])


def inputs(
    shape: tuple[int, ...],
    granularity: GateGranularity = "element",
    num_experts: int = 3,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Base, delta, gate logits (a third of them beyond each threshold) and weights, all leaves with gradient."""
    generator = torch.Generator().manual_seed(seed)
    gates = (num_experts, *gate_shape(torch.Size(shape), granularity))
    tensors = (
        torch.randn(shape, generator=generator, dtype=dtype),
        torch.randn(shape, generator=generator, dtype=dtype),
        (torch.rand(gates, generator=generator, dtype=dtype) * 2 - 1) * GATE_LIMIT,
        torch.rand(num_experts, generator=generator, dtype=dtype),
    )
    return tuple(tensor.requires_grad_() for tensor in tensors)  # type: ignore[return-value]


def plain(base: Tensor, delta: Tensor, gate_logits: Tensor, weights: Tensor, temperature: float) -> Tensor:
    values = (1.2 * torch.sigmoid(gate_logits / temperature) - 0.1).clamp(0, 1)
    mixed = sum(weight * value for weight, value in zip(weights, values, strict=True))
    return base + mixed * delta


def result_and_gradients(
    function: Callable[..., Tensor], tensors: tuple[Tensor, ...], temperature: float
) -> list[Tensor]:
    result = function(*tensors, temperature)
    seen = torch.randn(result.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(result)
    return [result, *torch.autograd.grad(result, tensors, seen)]


@every_granularity
@every_shape
@given(
    num_experts=st.integers(1, 4),
    temperature=st.sampled_from([TRAIN_TEMPERATURE, EVAL_TEMPERATURE]),
    seed=st.integers(0, 99),
)
def test_values_and_gradients_equal_the_plain_formulas(
    shape: tuple[int, ...], granularity: GateGranularity, num_experts: int, temperature: float, seed: int
) -> None:
    tensors = inputs(shape, granularity, num_experts, seed=seed)
    expected = result_and_gradients(plain, tensors, temperature)
    for ours, theirs in zip(result_and_gradients(interpolate, tensors, temperature), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@every_granularity
def test_gradients_equal_numerical_ones(granularity: GateGranularity) -> None:
    tensors = inputs((2, 3), granularity)
    assert torch.autograd.gradcheck(lambda *t: interpolate(*t, TRAIN_TEMPERATURE), tensors)


@pytest.mark.parametrize("alone", range(4))
def test_a_single_tensor_may_be_the_one_that_needs_a_gradient(alone: int) -> None:
    tensors = inputs((5, 4))
    expected = result_and_gradients(plain, tensors, 1.0)[1 + alone]
    detached = [tensor.detach().requires_grad_(i == alone) for i, tensor in enumerate(tensors)]
    seen = torch.randn(5, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    interpolate(*detached, 1.0).backward(seen)
    torch.testing.assert_close(detached[alone].grad, expected)
    assert all(tensor.grad is None for i, tensor in enumerate(detached) if i != alone)


@every_shape
def test_a_zero_delta_gives_the_base_to_the_bit(shape: tuple[int, ...]) -> None:
    base, delta, gates, weights = inputs(shape, dtype=torch.float32)
    assert torch.equal(interpolate(base, torch.zeros_like(delta), gates, weights, 1.0), base)


@every_granularity
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_base_is_computed_in_the_deltas_precision(
    dtype: torch.dtype, granularity: GateGranularity
) -> None:
    base, delta, gates, weights = inputs((5, 4), granularity, dtype=torch.float32)
    base = base.detach().to(dtype).requires_grad_()
    result, *gradients = result_and_gradients(interpolate, (base, delta, gates, weights), 1.0)
    exact = plain(base.float(), delta, gates, weights, 1.0)
    assert result.dtype == gradients[0].dtype == dtype
    assert [gradient.dtype for gradient in gradients[1:]] == [torch.float32] * 3
    assert torch.equal(result, interpolate(base.float(), delta, gates, weights, 1.0).to(dtype))

    seen = gradients[0].float()
    for ours, theirs in zip(gradients[1:], torch.autograd.grad(exact, (delta, gates, weights), seen), strict=True):
        torch.testing.assert_close(ours, theirs)


@every_granularity
def test_autocast_changes_neither_values_nor_gradients(granularity: GateGranularity) -> None:
    tensors = inputs((5, 4), granularity, dtype=torch.float32)
    outside = result_and_gradients(interpolate, tensors, 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = result_and_gradients(interpolate, tensors, 1.0)
    for ours, theirs in zip(inside, outside, strict=True):
        assert torch.equal(ours, theirs)


def test_nothing_but_the_inputs_themselves_is_kept_for_the_backward_pass() -> None:
    tensors = inputs((5, 4))
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        interpolate(*tensors, 1.0)
    assert kept
    assert {tensor.data_ptr() for tensor in kept} <= {tensor.data_ptr() for tensor in tensors}


def test_many_parameters_at_once_are_each_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALL", 20)
    parameters = [
        inputs(shape, granularity, dtype=dtype)
        for shape in [*SHAPES, (3, 9)]  # the last one is above the limit
        for granularity in ("element", "structured")
        for dtype in (torch.float32, torch.float64)
    ]
    weights = torch.rand(2, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    bases, deltas, gates, _ = (list(tensors) for tensors in zip(*parameters, strict=True))
    many = interpolate_many(bases, deltas, gates, weights, 1.0)
    for tasks, base, delta, logits in zip(many, bases, deltas, gates, strict=True):
        for task, expected in zip(tasks, interpolate_tasks(base, delta, logits, weights.to(delta), 1.0), strict=True):
            torch.testing.assert_close(task, expected)
            leaves = (base, delta, logits, weights)
            ours, theirs = (torch.autograd.grad(t.square().sum(), leaves, retain_graph=True) for t in (task, expected))
            for gradient, wanted in zip(ours, theirs, strict=True):
                torch.testing.assert_close(gradient, wanted)

    out = [torch.empty_like(base) for base in bases]
    merge_many_into(out, bases, deltas, gates, weights[0].detach(), 1.0)
    for merged, tasks in zip(out, many, strict=True):
        torch.testing.assert_close(merged, tasks[0])


@every_granularity
def test_tasks_that_are_merged_together_are_each_on_its_own(granularity: GateGranularity) -> None:
    base, delta, gates, _ = inputs((3, 70_000), granularity)  # several blocks, the last one smaller
    weights = torch.rand(2, 3, dtype=torch.float64).requires_grad_()
    together = interpolate_tasks(base, delta, gates, weights, 1.0)
    alone = tuple(interpolate(base, delta, gates, own, 1.0) for own in weights)
    torch.testing.assert_close(together, alone)
    ours, theirs = (
        torch.autograd.grad(first.sin().sum() + 2 * second.sum(), (base, delta, gates, weights))
        for first, second in (together, alone)
    )
    for gradient, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, wanted)
