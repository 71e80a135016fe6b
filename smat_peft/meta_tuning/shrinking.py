"""What can be done to a dense delta after training: mix it with nothing (WiSE-FT), or keep its largest values alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from smat_peft.tuner.adapters import active_adapter, adapter_gates

SHARES = tuple(n / 10 for n in range(11))  # of the delta, as in Wortsman et al. 2022


@torch.no_grad()
def scale_delta_(model: nn.Module, score: Callable[[], float]) -> float:
    """Multiply the active adapter's delta by the share of it that scores best, the smallest of equals.

    The weights are then `theta0 + share * delta`: WiSE-FT (Wortsman et al. 2022), a straight line from the backbone to
    what was trained.

    Args:
        model: A model with SMAT layers.
        score: Says how good the model is as it stands.
    """
    deltas = list(_deltas(model))
    whole = [delta.clone() for delta in deltas]
    scores = {}
    for share in SHARES:
        torch._foreach_copy_(deltas, torch._foreach_mul(whole, share))
        scores[share] = score()
    best = max(SHARES, key=lambda share: scores[share])
    torch._foreach_copy_(deltas, torch._foreach_mul(whole, best))
    return best


@torch.no_grad()
def prune_delta_(model: nn.Module, density: float) -> None:
    """Set all but the share `density` of largest values of the active adapter's delta to 0, over all parameters."""
    deltas = list(_deltas(model))
    sizes = torch.cat([delta.abs().flatten() for delta in deltas])
    kept = round(density * len(sizes))
    mask = torch.zeros_like(sizes, dtype=torch.bool)
    mask[sizes.topk(kept).indices] = True
    for delta, part in zip(deltas, mask.split([delta.numel() for delta in deltas]), strict=True):
        delta *= part.view_as(delta)


def _deltas(model: nn.Module) -> Iterator[Tensor]:
    adapter = active_adapter(model)
    return (layer.smat_delta[adapter][name] for layer, name, _ in adapter_gates(model, adapter))
