"""The interpolation's two passes over the gates: task weights forward, gradients backward (METHOD 4).

Each reads the gates once for all tasks that are merged together. Element gates are worked through in blocks that stay
in the processor's cache. The passes have no gradients of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from smat_peft.experts.gates import BLOCK, STRETCH_HIGH, STRETCH_LOW, by_expert, gate_sigmoid, stretch

EXPERTS_AT_ONCE = 8  # in `mix`: as many as there are bits in a byte
SUMMED_AT_ONCE = 4096  # terms in float32


def merge(
    out: Sequence[Float[Tensor, "*shape"]],
    base: Float[Tensor, "*shape"],
    delta: Float[Tensor, "*shape"],
    gates: Float[Tensor, "M *gate_shape"],
    weights: Float[Tensor, "E M"],
    temperature: float | None,
) -> None:
    """Write `base + (sum_m weights[e, m] * z[m]) * delta` to `out[e]`, for each task e.

    Args:
        out: Task weights of E tasks, in `base`'s type, contiguous.
        base: Pre-trained parameter.
        delta: The shared delta; everything is computed in its type.
        gates: Gate logits, or the gate values z where `temperature` is None.
        weights: Expert weights.
        temperature: Temperature of the gates.
    """
    for (bases, deltas, *tasks), (logits,) in _blocks([base, delta, *out], [gates]):
        if temperature is None:
            values = logits.to(deltas.dtype)
        else:
            values = stretch(gate_sigmoid(logits, temperature)).clamp_(0.0, 1.0)
        masks = [mix(weights[0], values)] if len(weights) == 1 else _mix(weights, values)
        for task, mask in zip(tasks, masks, strict=True):
            task.copy_(torch.addcmul(bases.to(deltas.dtype), mask, deltas))


def mix(weights: Float[Tensor, " M"], values: Float[Tensor, "M *shape"]) -> Float[Tensor, "*shape"]:
    """`weights` times `values`, element by element, summed over experts.

    A matrix product may round its last columns otherwise. Here equal gates give equal bits, wherever they are: from one
    parameter or from many laid end to end, from gate logits or from packed gates, which are read eight experts at once.
    """
    mixed: Tensor | None = None
    for some_weights, some_values in zip(weights.split(EXPERTS_AT_ONCE), values.split(EXPERTS_AT_ONCE), strict=True):
        some = some_values[0] * some_weights[0]
        for weight, value in zip(some_weights[1:], some_values[1:], strict=True):
            some.addcmul_(value, weight)
        mixed = some if mixed is None else mixed.add_(some)
    assert mixed is not None
    return mixed


def gradients(
    delta: Float[Tensor, "*shape"],
    gates: Float[Tensor, "M *gate_shape"],
    weights: Float[Tensor, "E M"],
    outgoing: Sequence[Float[Tensor, "*shape"]],
    temperature: float,
    *,
    needs_gates: bool = True,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "M *gate_shape"] | None, Float[Tensor, "E M"]]:
    """Gradients of delta, gate logits and expert weights, from those of the task weights that [`merge`] wrote.

    Args:
        delta: As in [`merge`]; so are `gates`, `weights` and `temperature`.
        gates: Gate logits.
        weights: Expert weights.
        outgoing: Gradients of the loss by the E task weights.
        temperature: Temperature of the gates.
        needs_gates: Whether to compute the gates' gradient, by far the largest.
    """
    grad_delta = delta.new_empty(delta.shape)
    grad_weights = torch.zeros_like(weights, dtype=_exact_type(weights))
    grad_gates = [gates.new_empty(gates.shape)] if needs_gates else []
    for (deltas, into_delta, *tasks), (logits, *into_gates) in _blocks(
        [delta, grad_delta, *outgoing], [gates, *grad_gates]
    ):
        sigmoid = gate_sigmoid(logits, temperature)
        stretched = stretch(sigmoid)
        values = stretched.clamp(0.0, 1.0)
        by_task = torch.stack([task.to(deltas.dtype) for task in tasks])
        into_delta.copy_((_mix(weights, values) * by_task).sum(0))
        per_gate = (by_task * deltas).sum_to_size(len(by_task), *values.shape[1:])
        grad_weights += _dot(by_expert(per_gate), by_expert(values))
        if into_gates:
            through_clip = torch.ops.aten.hardtanh_backward(_mix(weights.T, per_gate), stretched, 0.0, 1.0)
            through_sigmoid = torch.ops.aten.sigmoid_backward(through_clip, sigmoid)
            torch.mul(through_sigmoid, (STRETCH_HIGH - STRETCH_LOW) / temperature, out=into_gates[0])
    return grad_delta, grad_gates[0] if needs_gates else None, grad_weights.to(weights.dtype)


def _mix(weights: Float[Tensor, "A B"], values: Float[Tensor, "B *shape"]) -> Float[Tensor, "A *shape"]:
    return (weights @ by_expert(values)).view(len(weights), *values.shape[1:])


def _dot(left: Float[Tensor, "A n"], right: Float[Tensor, "B n"]) -> Float[Tensor, "A B"]:
    """`left` times `right.T`, sums of few terms added in float64: many terms cancel."""
    parts = zip(left.split(SUMMED_AT_ONCE, dim=1), right.split(SUMMED_AT_ONCE, dim=1), strict=True)
    return torch.stack([a @ b.T for a, b in parts]).sum(0, dtype=_exact_type(left))


def _exact_type(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64  # Apple's GPUs have no float64


def _blocks(
    like_parameter: list[Tensor], like_gates: list[Tensor]
) -> Iterator[tuple[Sequence[Tensor], Sequence[Tensor]]]:
    """Corresponding parts of tensors of a parameter's shape and of its gates'; the whole where gates cover several."""
    shape, gate_shape = like_parameter[0].shape, like_gates[0].shape[1:]
    if gate_shape != shape or torch.compiler.is_compiling():
        yield like_parameter, like_gates
        return
    flat = [tensor.reshape(-1) for tensor in like_parameter], [by_expert(tensor) for tensor in like_gates]
    yield from zip(
        zip(*(tensor.split(BLOCK) for tensor in flat[0]), strict=True),
        zip(*(tensor.split(BLOCK, dim=1) for tensor in flat[1]), strict=True),
        strict=True,
    )
