"""The experts of a whole model mixed at once: all its layers' parameters, for one task or several (METHOD 4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from smat_peft.experts.interpolate import SMALL, interpolate_many, merge_many_into
from smat_peft.experts.packed import merge_packed_into
from smat_peft.tuner.kept_gates import KeptGates
from smat_peft.tuner.layer import SMATLayer, adapted_by


def interpolate_layers(
    layers: Sequence[SMATLayer], adapter_name: str, weights: Tensor, training: bool
) -> list[dict[str, Tensor]]:
    """Task weights for expert weights `[E, M]`, one dict a task, by the base model's own parameter names."""
    parameters = list(adapted_by(layers, adapter_name))
    if _is_packed(layers, adapter_name):
        return [_merge_packed(parameters, adapter_name, task, {}) for task in weights]
    merged = interpolate_many(
        [layer.base_parameter(name) for layer, name in parameters],
        [layer.smat_delta[adapter_name][name] for layer, name in parameters],
        [layer.smat_gates[adapter_name][name] for layer, name in parameters],
        weights,
        layers[0].gate_temperature(adapter_name, training),
    )
    names = [layer.full_name(name) for layer, name in parameters]
    return [dict(zip(names, task, strict=True)) for task in zip(*merged, strict=True)]


def merge_layers(
    layers: Sequence[SMATLayer], adapter_name: str, weights: Tensor, reuse: Mapping[str, Tensor], *, keep_gates: bool
) -> dict[str, Tensor]:
    """Task weights for expert weights `[M]`, with evaluation gates and without gradient.

    Args:
        layers: The model's layers.
        adapter_name: The adapter.
        weights: Expert weights.
        reuse: An earlier result, whose tensors are written to where they fit.
        keep_gates: Evaluate the gates once, and keep their values in 16 bits for the next merge. Those of a packed
            adapter are evaluated anyway.
    """
    parameters = list(adapted_by(layers, adapter_name))
    if _is_packed(layers, adapter_name):
        return _merge_packed(parameters, adapter_name, weights, reuse)
    bases = [layer.base_parameter(name) for layer, name in parameters]
    temperature = layers[0].gate_temperature(adapter_name, training=False)
    gates = [layer.smat_gates[adapter_name][name] for layer, name in parameters]
    if keep_gates:
        gates = [
            layer.kept_gates.setdefault(adapter_name, KeptGates()).values(name, logits, temperature, base.dtype)
            for (layer, name), logits, base in zip(parameters, gates, bases, strict=True)
        ]
    else:
        for layer, _ in parameters:
            layer.kept_gates.pop(adapter_name, None)
    merged = _memory_of(parameters, reuse)
    deltas = [layer.smat_delta[adapter_name][name] for layer, name in parameters]
    merge_many_into(list(merged.values()), bases, deltas, gates, weights, None if keep_gates else temperature)
    return merged


@torch.no_grad()
def evaluated_gates(layers: Sequence[SMATLayer], adapter_name: str) -> Iterator[tuple[SMATLayer, str, Tensor]]:
    """The gates' values `[M, *gate_shape]` over each parameter, to the bit those that [`merge_layers`] mixes.

    The last bit of a sigmoid depends on where in a tensor an element is, and merging lays parameters end to end. So the
    values are read off merges themselves, of each expert alone, with a delta of ones onto zeros.
    """
    parameters = list(adapted_by(layers, adapter_name))
    deltas = [layer.smat_delta[adapter_name][name] for layer, name in parameters]
    small = [i for i, delta in enumerate(deltas) if delta.numel() <= SMALL]
    for chosen in (small, *([i] for i in range(len(deltas)) if i not in set(small))):
        gates = [parameters[i][0].smat_gates[adapter_name][parameters[i][1]] for i in chosen]
        ones = [torch.ones_like(deltas[i]) for i in chosen]
        zeros = [torch.zeros_like(deltas[i]) for i in chosen]
        by_expert: list[list[Tensor]] = []
        for expert in torch.eye(len(gates[0]), device=gates[0].device) if chosen else ():
            out = [torch.empty_like(one) for one in ones]
            merge_many_into(out, zeros, ones, gates, expert, layers[0].gate_temperature(adapter_name, training=False))
            by_expert.append([_first(merged, g.shape[1:]) for merged, g in zip(out, gates, strict=True)])
        for i, values in zip(chosen, zip(*by_expert, strict=True), strict=True):
            yield *parameters[i], torch.stack(values)


def _first(merged: Tensor, gate_shape: torch.Size) -> Tensor:
    """One value of each gate, of all the equal ones that it covers."""
    return merged[tuple(map(slice, gate_shape))]


def _merge_packed(
    parameters: Sequence[tuple[SMATLayer, str]], adapter_name: str, weights: Tensor, reuse: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    merged = _memory_of(parameters, reuse)
    bases = [layer.base_parameter(name) for layer, name in parameters]
    packed = [layer.smat_packed[adapter_name][name] for layer, name in parameters]
    merge_packed_into(list(merged.values()), bases, [p.delta for p in packed], [p.gates for p in packed], weights)
    return merged


def _is_packed(layers: Sequence[SMATLayer], adapter_name: str) -> bool:
    return layers[0].state.configs[adapter_name].packed is not None


def _memory_of(parameters: Sequence[tuple[SMATLayer, str]], reuse: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = [layer.full_name(name) for layer, name in parameters]
    bases = (getattr(layer.get_base_layer(), name) for layer, name in parameters)
    return {name: _memory(reuse.get(name), base) for name, base in zip(names, bases, strict=True)}


def _memory(earlier: Tensor | None, base: Tensor) -> Tensor:
    """Where the task weights of a parameter go: to an earlier task's where those can be written to."""
    if (
        earlier is not None
        and (earlier.shape, earlier.dtype, earlier.device) == (base.shape, base.dtype, base.device)
        and (not earlier.is_inference() or torch.is_inference_mode_enabled())
    ):
        return earlier
    return base.new_empty(base.shape)
