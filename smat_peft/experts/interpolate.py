"""Task weights: theta0 + (sum over experts of w * z) * delta, as one differentiable operation (METHOD 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from smat_peft.experts import kernels
from smat_peft.experts.compiled import Merge, generated
from smat_peft.experts.gates import by_expert

SMALL = 32_768  # scalars of a parameter; below, a call costs more than the work


def interpolate(
    base: Float[Tensor, "*shape"],
    delta: Float[Tensor, "*shape"],
    gate_logits: Float[Tensor, "M *gate_shape"],
    weights: Float[Tensor, " M"],
    temperature: float,
) -> Float[Tensor, "*shape"]:
    """Mix the gated deltas of M experts into one set of weights.

    Args:
        base: Pre-trained parameter, of any floating type.
        delta: The delta that all experts share.
        gate_logits: Gate logits, experts first; the trailing dimensions broadcast to the parameter's.
        weights: Weight of each expert.
        temperature: Temperature of the gates (training 2/3, reference evaluation 1).

    Returns:
        `base + (sum_m weights[m] * gate_values(gate_logits[m])) * delta` in `base`'s type, computed in that of `delta`.
        Differentiable once in every tensor. The backward pass recomputes the gate values: nothing of the size of the
        gates is kept for it.
    """
    return interpolate_tasks(base, delta, gate_logits, weights[None], temperature)[0]


def interpolate_tasks(
    base: Float[Tensor, "*shape"],
    delta: Float[Tensor, "*shape"],
    gate_logits: Float[Tensor, "M *gate_shape"],
    weights: Float[Tensor, "E M"],
    temperature: float,
) -> tuple[Float[Tensor, "*shape"], ...]:
    """[`interpolate`] for E tasks, whose merges share one read of the gates, forward and backward."""
    result: tuple[Tensor, ...] = _Interpolate.apply(base, delta, gate_logits, weights, temperature)
    return result


def interpolate_many(
    bases: Sequence[Tensor],
    deltas: Sequence[Tensor],
    gate_logits: Sequence[Tensor],
    weights: Float[Tensor, "E M"],
    temperature: float,
) -> list[tuple[Tensor, ...]]:
    """[`interpolate_tasks`] for many parameters; small ones are laid end to end and go through as one."""
    small = _small(bases, deltas, gate_logits)
    result: list[tuple[Tensor, ...]] = [() for _ in bases]
    if small:
        flat = end_to_end(small, bases), end_to_end(small, deltas), end_to_end(small, gate_logits, gates=True)
        packed = interpolate_tasks(*flat, weights.to(flat[1]), temperature)
        sizes = [bases[i].numel() for i in small]
        for i, *tasks in zip(small, *(task.split(sizes) for task in packed), strict=True):
            result[i] = tuple(task.view(bases[i].shape) for task in tasks)
    for i, base in enumerate(bases):
        if not result[i]:
            result[i] = interpolate_tasks(base, deltas[i], gate_logits[i], weights.to(deltas[i]), temperature)
    return result


def merge_many_into(
    out: Sequence[Tensor],
    bases: Sequence[Tensor],
    deltas: Sequence[Tensor],
    gates: Sequence[Tensor],
    weights: Float[Tensor, " M"],
    temperature: float | None,
) -> None:
    """[`interpolate_many`] for one task without gradient, written to tensors that are there already.

    Args:
        out: Where to, in the shapes and types of `bases`, contiguous.
        bases: Pre-trained parameters.
        deltas: Their deltas.
        gates: Their gate logits; with `temperature` None, the gates' values.
        weights: Weight of each expert.
        temperature: Temperature of the gates.
    """
    small = _small(bases, deltas, gates)
    if small:
        flat = end_to_end(small, bases), end_to_end(small, deltas), end_to_end(small, gates, gates=True)
        packed = torch.empty_like(flat[0])
        merge_into([packed], *flat, weights.to(flat[1])[None], temperature)
        parts = packed.split([bases[i].numel() for i in small])
        torch._foreach_copy_([out[i].view(-1) for i in small], list(parts))
    for i in set(range(len(bases))).difference(small):
        merge_into([out[i]], bases[i], deltas[i], gates[i], weights.to(deltas[i])[None], temperature)


def merge_into(
    out: Sequence[Float[Tensor, "*shape"]],
    base: Float[Tensor, "*shape"],
    delta: Float[Tensor, "*shape"],
    gates: Float[Tensor, "M *gate_shape"],
    weights: Float[Tensor, "E M"],
    temperature: float | None,
) -> None:
    """[`interpolate_tasks`] without gradient, written to tensors that are there already.

    Args:
        out: Where to, in `base`'s shape and type, contiguous.
        base: As in [`interpolate`]; so is `delta`.
        delta: The shared delta.
        gates: Gate logits; with `temperature` None, the gates' values.
        weights: Weight of each expert in each task.
        temperature: Temperature of the gates.
    """
    kind: Merge = "merge_values" if temperature is None else "merge"
    with torch.no_grad(), torch.autocast(base.device.type, enabled=False):
        fused = generated(kind, gates, base.dtype, delta=delta, weights=weights)
        if fused is None:
            kernels.merge(out, base, delta, gates, weights, temperature)
            return
        flat = list(map(_flat, out)), _flat(base), _flat(delta), by_expert(gates).data, weights.data
        fused(*flat) if temperature is None else fused(*flat, temperature)


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, base: Tensor, delta: Tensor, gate_logits: Tensor, weights: Tensor, temperature: float
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(delta, gate_logits, weights)
        ctx.temperature, ctx.base_dtype = temperature, base.dtype
        out = tuple(base.new_empty(base.shape) for _ in weights)
        merge_into(out, base, delta, gate_logits, weights, temperature)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outgoing: Tensor) -> tuple[Tensor | None, ...]:
        delta, gates, weights = ctx.saved_tensors
        needs_base, needs_delta, needs_gates, needs_weights, _ = ctx.needs_input_grad
        grad_base = torch.stack(outgoing).sum(0) if needs_base else None
        grad_delta = grad_gates = grad_weights = None
        if needs_delta or needs_gates or needs_weights:
            with torch.autocast(delta.device.type, enabled=False):  # a backward pass may be called under autocast
                fused = None
                if needs_gates:
                    fused = generated("gradients", gates, ctx.base_dtype, delta=delta, weights=weights)
                if fused is not None:
                    flat = _flat(delta), by_expert(gates).data, weights.data, list(map(_flat, outgoing))
                    grad_delta, grad_gates, grad_weights = fused(*flat, ctx.temperature)
                    grad_delta, grad_gates = grad_delta.view(delta.shape), grad_gates.view(gates.shape)
                else:
                    grad_delta, grad_gates, grad_weights = kernels.gradients(
                        delta, gates, weights, outgoing, ctx.temperature, needs_gates=needs_gates
                    )
        return (
            grad_base,
            grad_delta if needs_delta else None,
            grad_gates if needs_gates else None,
            grad_weights if needs_weights else None,
            None,
        )


def _small(bases: Sequence[Tensor], deltas: Sequence[Tensor], gates: Sequence[Tensor]) -> list[int]:
    """Which parameters go through as one: small ones with a gate for each element, alike in type and device."""
    small = [
        i
        for i, base in enumerate(bases)
        if base.numel() <= SMALL and gates[i].shape[1:] == base.shape and not torch.compiler.is_compiling()
    ]

    def kind(i: int) -> tuple[Any, ...]:
        return bases[i].dtype, deltas[i].dtype, gates[i].dtype, bases[i].device

    return [i for i in small if kind(i) == kind(small[0])]


def end_to_end(chosen: list[int], tensors: Sequence[Tensor], *, gates: bool = False) -> Tensor:
    """Some of these tensors as one vector; `gates` `[M, *gate_shape]` as a matrix with one row an expert."""
    if gates:
        return torch.cat([by_expert(tensors[i]) for i in chosen], dim=1)
    return torch.cat([tensors[i].reshape(-1) for i in chosen])


def _flat(tensor: Tensor) -> Tensor:
    """A tensor as a vector that is neither a view nor asks for a gradient: generated code is made for such alone."""
    return tensor.reshape(-1).data
