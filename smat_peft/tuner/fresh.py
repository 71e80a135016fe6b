"""The tensors of a new adapter over the parameters that one module owns."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from smat_peft.experts.gates import gate_shape, initialise_gates_
from smat_peft.experts.patterns import pattern_logits
from smat_peft.tuner.config import SMATConfig
from smat_peft.tuner.packed import PackedParameter

RANDOM_DELTA_STD = 0.1  # of `init_weights=False`; large enough to be seen in half precision


class Gates(nn.ParameterDict):
    """The gate logits `[M, *gate_shape]` of parameters by name; they move and change type with the model."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Gates:
        """As one row an expert: a convolution's gates have a rank that no `memory_format` is for."""
        super()._apply(lambda gates: fn(gates.reshape(len(gates), -1)).view(gates.shape), recurse)
        return self


def fresh_tensors(
    owner: nn.Module, names: list[str], config: SMATConfig
) -> tuple[nn.ParameterDict, Gates, nn.ModuleDict]:
    """The delta and the gates over each of the named parameters; or, of a packed adapter, where it will be loaded."""
    delta, gates, packed = nn.ParameterDict(), Gates(), nn.ModuleDict()
    for name in names:
        parameter = getattr(owner, name)
        shape = gate_shape(parameter.shape, config.gate_granularity)  # type: ignore[arg-type]
        if config.packed is not None:
            packed[name] = PackedParameter(parameter.shape, shape, config.num_experts)
            continue
        delta[name] = nn.Parameter(torch.zeros(parameter.shape))
        if not config.init_weights:
            nn.init.normal_(delta[name], std=RANDOM_DELTA_STD)
        gates[name] = nn.Parameter(_initial_gates(config, parameter, shape))
    return delta, gates, packed


def _initial_gates(config: SMATConfig, parameter: Tensor, shape: torch.Size) -> Tensor:
    gates = torch.empty(config.num_experts, *shape)
    if config.sparsity_pattern == "learned":
        return initialise_gates_(gates, config.gate_init_std)
    if parameter.is_meta:  # loaded later: there are no values yet to choose a pattern by
        return gates.zero_()
    density = 1 - config.target_sparsity
    return pattern_logits(config.sparsity_pattern, parameter, config.num_experts, density, shape)
