"""Task weights: theta0 + (sum over experts of w * z) * delta, as one differentiable operation (METHOD 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from smat_peft.experts import kernels
from smat_peft.experts.compiled import Pass, generated
from smat_peft.experts.gates import by_expert, gate_values


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
    kind: Pass = "merge_values" if temperature is None else "merge"
    with torch.no_grad(), torch.autocast(base.device.type, enabled=False):
        fused = generated(kind, weights, base.dtype, delta, gates)
        if fused is None:
            kernels.merge(out, base, delta, gates, weights, temperature)
            return
        flat = list(map(_flat, out)), _flat(base), _flat(delta), by_expert(gates).data, weights.data
        fused(*flat) if temperature is None else fused(*flat, temperature)


def mixed_gates(gate_logits: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """The merged mask `sum_m weights[m] * gate_values(gate_logits[m])`, in the shape of one expert's gates."""
    return torch.tensordot(weights, gate_values(gate_logits, temperature), dims=1)


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
                fused = generated("gradients", weights, ctx.base_dtype, delta, gates) if needs_gates else None
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


def _flat(tensor: Tensor) -> Tensor:
    """A tensor as a vector that is neither a view nor asks for a gradient: generated code is made for such alone."""
    return tensor.reshape(-1).data
