"""Gates that are not learned: the hand-designed sparsity patterns that learned gates are compared with, by name.

A pattern is expressed as gate logits at one of their two limits, whose values are exactly 0 and 1 in training and in
evaluation alike, so everything that works with learned gates works with these.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from smat_peft.experts.gates import GATE_LIMIT

Pattern = Callable[[Tensor, int, float, torch.Size], Tensor]


def dense(
    base: Float[Tensor, "*shape"], num_experts: int, density: float, shape: torch.Size
) -> Bool[Tensor, "M *gate_shape"]:
    """Every gate of every expert open."""
    return torch.ones((num_experts, *shape), dtype=torch.bool, device=base.device)


def random(
    base: Float[Tensor, "*shape"], num_experts: int, density: float, shape: torch.Size
) -> Bool[Tensor, "M *gate_shape"]:
    """Each expert opens its own random share `density` of the gates (torch's global generator)."""
    return torch.rand((num_experts, *shape), device=base.device) < density


def magnitude(
    base: Float[Tensor, "*shape"], num_experts: int, density: float, shape: torch.Size
) -> Bool[Tensor, "M *gate_shape"]:
    """Every expert opens the gates over the share `density` of largest pre-trained weights of this parameter."""
    size = base.detach().float().abs().sum_to_size(shape)
    count = round(density * size.numel())
    mask = torch.zeros(size.numel(), dtype=torch.bool, device=base.device)
    mask[size.flatten().topk(count).indices] = True
    return mask.view(1, *shape).expand(num_experts, *shape)


PATTERNS: dict[str, Pattern] = {"dense": dense, "random": random, "magnitude": magnitude}


def pattern_logits(
    name: str, base: Float[Tensor, "*shape"], num_experts: int, density: float, shape: torch.Size
) -> Float[Tensor, "M *gate_shape"]:
    """Gate logits of the pattern called `name` over the parameter `base`.

    Args:
        name: A key of [`PATTERNS`].
        base: The pre-trained parameter that is gated.
        num_experts: M.
        density: Share of the gates to open, 1 - target sparsity; a dense pattern opens all.
        shape: Shape of one expert's gates.
    """
    is_open = PATTERNS[name](base, num_experts, density, shape)
    return torch.where(is_open, GATE_LIMIT, -GATE_LIMIT).to(torch.float32)
