"""Which gates of an adapter are open, parameter by parameter."""

from __future__ import annotations

import torch
from torch import nn

from smat_peft.evaluation.analysis import (
    LAYER_TYPES,
    Capacity,
    OpenGates,
    block_labels,
    capacities,
    layer_type,
    open_together,
)
from smat_peft.tuner.tasks import active_adapter, adapter_gates


@torch.no_grad()
def read_open_gates(model: nn.Module) -> list[OpenGates]:
    """The active adapter's gates as they are evaluated (METHOD 2), in the backbone's order."""
    adapter, found = active_adapter(model), []
    for layer, name, gates in adapter_gates(model, adapter):
        size = layer.smat_delta[adapter][name].numel()
        together = open_together(gates, layer.gate_temperature(adapter, training=False))
        covered = size / gates[0].numel()  # scalars by gate
        owner = type(layer.get_base_layer()).__name__
        found.append(OpenGates(layer.full_name(name), owner, size, covered * together))
    return found


def capacity_by_layer_type(gates: list[OpenGates]) -> list[Capacity]:
    """Share of open gates by what parameters are for."""
    found = capacities(gates, [layer_type(each.name, each.owner) for each in gates])
    return sorted(found, key=lambda capacity: LAYER_TYPES.index(capacity.part))


def capacity_by_depth(gates: list[OpenGates]) -> list[Capacity]:
    """Share of open gates by block, from the image to the feature."""
    return capacities(gates, block_labels(each.name for each in gates))
