"""Which gates of an adapter are open, parameter by parameter, as they are evaluated (METHOD 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smat_peft.evaluation.analysis.pictures import Array
from smat_peft.experts.counting import are_open
from smat_peft.tuner.adapters import active_adapter, adapter_gates


@dataclass(frozen=True)
class OpenGates:
    """The gates of one parameter of the backbone.

    Attributes:
        name: Full name of the parameter.
        owner: Class of the module that owns it.
        size: Number of its scalars.
        together: How many scalars are open in expert i and in expert j, `[M, M]`; on the diagonal, open in expert i.
    """

    name: str
    owner: str
    size: int
    together: Array


@torch.no_grad()
def read_open_gates(model: nn.Module) -> list[OpenGates]:
    """The active adapter's gates, in the backbone's order."""
    adapter, found = active_adapter(model), []
    for layer, name, gates in adapter_gates(model, adapter):
        owner = layer.get_base_layer()
        together = open_together(gates, layer.gate_temperature(adapter, training=False)) * layer.covered(adapter, name)
        found.append(OpenGates(layer.full_name(name), type(owner).__name__, getattr(owner, name).numel(), together))
    return found


def open_together(logits: Tensor, temperature: float) -> Array:
    """How many gates `[M, *gate_shape]` are above 0 in expert i and in expert j, `[M, M]`."""
    together = torch.zeros(len(logits), len(logits), dtype=torch.float64)
    for block in are_open(logits, temperature):
        is_open = block.float()  # sums of a block are exact in 32 bits
        together += (is_open @ is_open.T).cpu()
    return together.numpy()
