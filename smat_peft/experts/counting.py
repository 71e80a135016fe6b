"""How many gates are open, and how many are expected to be: what the sparsity constraint is made of (METHOD 2)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from smat_peft.experts.compiled import generated
from smat_peft.experts.gates import BLOCK, EXPECTED_L0_SHIFT, by_expert, gate_sigmoid, stretch


@torch.no_grad()
def open_gates(logits: Float[Tensor, "M *gate_shape"], temperature: float) -> Int[Tensor, " M"]:
    """How many gates of each expert are above 0; no gradient."""
    fused = generated("open_gates", logits, logits.dtype)
    if fused is not None:
        return fused(by_expert(logits).data, temperature)
    counts = [_sums(block) for block in are_open(logits, temperature)]
    return torch.stack(counts).sum(0, dtype=torch.int64)


@torch.no_grad()
def open_somewhere(logits: Float[Tensor, "M *gate_shape"], temperature: float) -> int:
    """At how many positions the gate of some expert is above 0."""
    return sum(int(block.amax(0).count_nonzero()) for block in are_open(logits, temperature))


def are_open(logits: Float[Tensor, "M *gate_shape"], temperature: float) -> Iterator[Float[Tensor, "M n"]]:
    """Which gates are above 0, block by block: 1.0, and 0.0 for the others."""
    for block in by_expert(logits).split(BLOCK, dim=1):
        yield stretch(gate_sigmoid(block, temperature)).gt_(0.0)


def expected_open_gates(logits: Float[Tensor, "M *gate_shape"]) -> Float[Tensor, " M"]:
    """Expected number of open gates of each expert under the training noise, differentiable."""
    expected: Tensor = _ExpectedOpenGates.apply(logits)
    return expected


class _ExpectedOpenGates(torch.autograd.Function):
    """`sigmoid(logits + beta ln 11)` summed over gates, with nothing of their size kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        ctx.save_for_backward(logits)
        fused = generated("expected_open_gates", logits, logits.dtype)
        if fused is not None:
            return fused(by_expert(logits).data)
        blocks = by_expert(logits).split(BLOCK, dim=1)
        return torch.stack([_sums(torch.sigmoid(block + EXPECTED_L0_SHIFT)) for block in blocks]).sum(0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outgoing: Tensor) -> Tensor:
        (logits,) = ctx.saved_tensors
        fused = generated("expected_gradient", logits, logits.dtype)
        if fused is not None:
            return fused(by_expert(logits).data, outgoing.data).view(logits.shape)
        result = logits.new_empty(logits.shape)
        both = (by_expert(tensor).split(BLOCK, dim=1) for tensor in (logits, result))
        for block, into in zip(*both, strict=True):
            probability = torch.sigmoid(block + EXPECTED_L0_SHIFT)
            into.copy_(torch.ops.aten.sigmoid_backward(outgoing[:, None].to(block).expand_as(block), probability))
        return result


def _sums(block: Float[Tensor, "M n"]) -> Float[Tensor, " M"]:
    """By expert, in single precision at least: half a precision counts to 2048."""
    return block.sum(1, dtype=torch.promote_types(block.dtype, torch.float32))
