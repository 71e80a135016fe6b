"""Losses whose gradient is taken at once, so that the graph of one episode is gone before the next one's is built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Losses = Callable[[list[Tensor]], Tensor]


def immediate(losses: Losses, tensors: Sequence[Tensor], again: Callable[[], Sequence[Tensor]], scale: float) -> Tensor:
    """Losses `[T]` of tensors, differentiable as if computed directly, but without a graph behind them.

    Args:
        losses: Computes them; called once, and again in the backward pass only where that does not ask for the
            gradient of their sum, or asks twice.
        tensors: What the losses depend on; nothing else gets a gradient. They are not kept.
        again: Makes them anew for that second call.
        scale: What the losses are multiplied by while the gradient is taken, as a gradient scaler asks for: a gradient
            in half precision would vanish otherwise.
    """
    result: Tensor = _Immediate.apply(losses, again, scale, *tensors)
    return result


class _Immediate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, losses: Losses, again: Callable[[], Sequence[Tensor]], scale: float, *tensors: Tensor
    ) -> Tensor:
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        with torch.enable_grad():
            values = losses(leaves)
            gradients = _gradients(values.sum() * scale, leaves)
        torch.clear_autocast_cache()  # it keeps leaves that were cast, and with them their graph
        if scale != 1:
            gradients = list(torch._foreach_div(gradients, scale))
        ctx.losses, ctx.again, ctx.gradients = losses, again, gradients
        device = values.device.type
        ctx.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        return values.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outgoing: Tensor) -> tuple[Any, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is not None and bool((outgoing == outgoing[0]).all()):
            return None, None, None, *torch._foreach_mul(gradients, outgoing[0])  # not in place: two may be one tensor
        leaves = [tensor.detach().requires_grad_() for tensor in ctx.again()]
        device, dtype, enabled = ctx.autocast
        with torch.enable_grad(), torch.autocast(device, dtype=dtype, enabled=enabled):
            loss = (ctx.losses(leaves) * outgoing).sum()  # autocast would round a dot product
        return None, None, None, *_gradients(loss, leaves)


def _gradients(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))
