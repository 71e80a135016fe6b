"""How many gates are open, and how many are expected to be: what the sparsity constraint is made of (METHOD 2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from smat_peft.experts.compiled import generated
from smat_peft.experts.gates import BLOCK, EXPECTED_L0_SHIFT, by_expert, gate_sigmoid, stretch


@torch.no_grad()
def open_gates(logits: Tensor, temperature: float) -> Tensor:
    """How many gates of each expert are above 0, `[M]`; no gradient."""
    fused = generated("open_gates", logits, logits.dtype)
    if fused is not None:
        return fused(by_expert(logits).data, temperature)
    blocks = by_expert(logits).split(BLOCK, dim=1)
    counts = [_sums(stretch(gate_sigmoid(block, temperature)).gt_(0.0)) for block in blocks]  # gt_ leaves 0.0 and 1.0
    return torch.stack(counts).sum(0, dtype=torch.int64)


def expected_open_gates(logits: Tensor) -> Tensor:
    """Expected number of open gates of each expert under the training noise, `[M]`, differentiable."""
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


def _sums(block: Tensor) -> Tensor:
    """By expert, in single precision at least: half a precision counts to 2048."""
    return block.sum(1, dtype=torch.promote_types(block.dtype, torch.float32))
