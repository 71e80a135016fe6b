"""Task weights: theta0 + (sum over experts of w * z) * delta, as one differentiable operation (METHOD 4)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from smat_peft.experts.gates import STRETCH_HIGH, STRETCH_LOW, by_expert, gate_values, stretch


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
    result: Tensor = _Interpolate.apply(base, delta, gate_logits, weights, temperature)
    return result


def mixed_gates(gate_logits: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """The merged mask `sum_m weights[m] * gate_values(gate_logits[m])`, in the shape of one expert's gates."""
    return torch.tensordot(weights, gate_values(gate_logits, temperature), dims=1)


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, base: Tensor, delta: Tensor, gate_logits: Tensor, weights: Tensor, temperature: float
    ) -> Tensor:
        ctx.save_for_backward(delta, gate_logits, weights)
        ctx.temperature, ctx.base_dtype = temperature, base.dtype
        with torch.autocast(base.device.type, enabled=False):
            mixed = mixed_gates(gate_logits, weights, temperature)
            return torch.addcmul(base.to(delta.dtype), mixed, delta).to(base.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        delta, gate_logits, weights = ctx.saved_tensors
        needs_base, needs_delta, needs_gates, needs_weights, _ = ctx.needs_input_grad
        grad_base = gradients[0] if needs_base else None
        grad_delta = grad_gates = grad_weights = None
        with torch.autocast(delta.device.type, enabled=False):  # a backward pass may be called under autocast
            gradient = gradients[0].to(delta.dtype)
            sigmoid = torch.sigmoid(gate_logits / ctx.temperature)
            values = stretch(sigmoid)
            if needs_delta:
                grad_delta = torch.tensordot(weights, values, dims=1) * gradient
            if needs_gates or needs_weights:
                per_gate = (delta * gradient).sum_to_size(gate_logits.shape[1:])
            if needs_weights:
                grad_weights = by_expert(values) @ per_gate.flatten()
            if needs_gates:
                # d value / d logit, zero where the stretched sigmoid is clipped
                slope = (sigmoid * (1 - sigmoid)).mul_((STRETCH_HIGH - STRETCH_LOW) / ctx.temperature)
                slope.mul_((values > 0) & (values < 1))
                grad_gates = slope.mul_(per_gate).mul_(weights.view(-1, *(1 for _ in per_gate.shape)))
        return grad_base, grad_delta, grad_gates, grad_weights, None
