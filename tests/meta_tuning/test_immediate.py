"""Immediate losses have the gradients of ordinary ones, whatever is asked for, and no graph."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

from smat_peft.meta_tuning.immediate import immediate


def losses(tensors: list[Tensor]) -> Tensor:
    first, second = tensors
    return torch.stack([(first * second).sin().sum(), second.exp().sum(), first.square().sum()])


def leaves() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(5, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]


@pytest.mark.parametrize("outgoing", [(1.0, 1.0, 1.0), (0.25, 0.25, 0.25), (0.0, 1.0, 0.0), (1.0, -2.0, 3.0)])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_any_combination_of_losses_has_its_gradient(outgoing: tuple[float, ...], scale: float) -> None:
    tensors = leaves()
    weights = torch.tensor(outgoing, dtype=torch.float64)
    values = immediate(losses, tensors, lambda: tensors, scale)
    torch.testing.assert_close(values, losses(tensors))
    found = torch.autograd.grad(values @ weights, tensors)
    for ours, theirs in zip(found, torch.autograd.grad(losses(tensors) @ weights, tensors), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_sum_of_the_losses_is_differentiated_once_and_another_time_where_asked_again() -> None:
    tensors, calls = leaves(), []

    def counted(leaves: list[Tensor]) -> Tensor:
        calls.append(1)
        return losses(leaves)

    total = immediate(counted, tensors, lambda: tensors, 1.0).sum()
    first = torch.autograd.grad(total, tensors, retain_graph=True)
    assert len(calls) == 1
    again = torch.autograd.grad(total, tensors)
    assert len(calls) == 2
    for one, other in zip(first, again, strict=True):
        torch.testing.assert_close(one, other)


def test_a_later_gradient_is_taken_under_the_autocast_of_the_first() -> None:
    tensors, types = [torch.randn(4, 4).requires_grad_() for _ in range(2)], []

    def product(leaves: list[Tensor]) -> Tensor:
        result = leaves[0] @ leaves[1]
        types.append(result.dtype)
        return torch.stack([result.sum(), result.square().sum()])

    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = immediate(product, tensors, lambda: tensors, 1.0)
    values[1].backward()
    assert types == [torch.bfloat16] * 2


def test_no_leaf_outlives_its_losses_under_autocast() -> None:
    alive = []

    def product(leaves: list[Tensor]) -> Tensor:
        alive.extend(weakref.ref(leaf) for leaf in leaves)
        return (leaves[0] @ leaves[1]).sum()[None]

    tensors = [torch.randn(4, 4).requires_grad_() for _ in range(2)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = immediate(product, tensors, lambda: tensors, 1.0)
        assert [leaf() for leaf in alive] == [None, None]
    values.sum().backward()


def test_losses_of_other_weights_are_not_rounded_under_autocast() -> None:
    tensors, weights = [tensor.detach().float().requires_grad_() for tensor in leaves()], torch.tensor([0.3, 0.7, 0.1])
    expected = torch.autograd.grad(losses(tensors) @ weights, tensors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = immediate(losses, tensors, lambda: tensors, 1.0)
    for found, wanted in zip(torch.autograd.grad(values, tensors, weights), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_tensor_that_no_loss_depends_on_has_a_gradient_of_zero() -> None:
    tensors = leaves()
    immediate(lambda leaves: leaves[0].sum()[None], tensors, lambda: tensors, 1.0).sum().backward()
    assert torch.equal(tensors[1].grad, torch.zeros(5, dtype=torch.float64))


def test_tensors_that_share_a_gradient_are_scaled_once() -> None:
    tensors = leaves()
    total = immediate(lambda leaves: sum(leaves).square().sum()[None], tensors, lambda: tensors, 4.0).sum()
    (3 * total).backward()
    for tensor in tensors:
        torch.testing.assert_close(tensor.grad, 6 * sum(tensors).detach())
