"""What a model with SMAT layers holds, adapter by adapter: layers, gates, router, and how sparse they are.

Functions of any model, whichever way its layers came: `peft.get_peft_model`, or transformers' `add_adapter` and
`load_adapter`. [`SMATModel`] has some as methods.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from smat_peft.errors import ConfigurationError
from smat_peft.experts.counting import expected_open_gates
from smat_peft.experts.router import Router
from smat_peft.tuner.config import SMATConfig
from smat_peft.tuner.layer import SMATLayer, adapted_by
from smat_peft.tuner.packed import refuse_training
from smat_peft.tuner.routing import SMATRouter
from smat_peft.tuner.state import SharedState
from smat_peft.tuner.targets import base_parameter_names


def find_router(model: nn.Module) -> SMATRouter | None:
    """The layer that holds a model's routers, or None where no adapter has one."""
    state = _find_state(model)
    return None if state is None else getattr(state.root, SMATRouter.CHILD, None)


def has_experts(model: nn.Module) -> bool:
    """Whether a model holds SMAT layers."""
    return _find_state(model) is not None


def smat_layers(model: nn.Module) -> list[SMATLayer]:
    """All SMAT layers of a model."""
    state = _find_state(model)
    return [] if state is None else list(state.layers)


def active_adapter(model: nn.Module) -> str:
    """Name of the one adapter in force.

    Raises:
        ConfigurationError: Where the model has no SMAT layers, or not exactly one adapter is active.
    """
    active = state_of(model).layers[0].active_adapters
    if len(active) != 1:
        raise ConfigurationError(f"a task needs exactly one active adapter, got {active}; choose one with set_adapter")
    return active[0]


def adapter_config(model: nn.Module, adapter_name: str | None = None) -> SMATConfig:
    """The configuration of an adapter; of the one in force where none is named."""
    adapter_name = active_adapter(model) if adapter_name is None else adapter_name
    return state_of(model).configs[adapter_name]


def active_feature(model: nn.Module) -> str:
    """Which feature of the backbone the active adapters are for; `"auto"` where none is active.

    Raises:
        ConfigurationError: Where they are for different ones.
    """
    state = state_of(model)
    wanted = sorted({state.configs[name].feature for name in state.layers[0].active_adapters})
    if len(wanted) > 1:
        raise ConfigurationError(f"the active adapters are for different features, {' and '.join(wanted)}")
    return wanted[0] if wanted else "auto"


def adapter_router(model: nn.Module, adapter_name: str | None = None) -> Router | None:
    """The router of an adapter, or None where it mixes its experts evenly; of the one in force where none is named."""
    adapter_name = active_adapter(model) if adapter_name is None else adapter_name
    layer = find_router(model)
    return None if layer is None else layer.router(adapter_name)


def thaw_router(model: nn.Module, adapter_name: str) -> None:
    """Let the router of an adapter be trained, where it has one.

    Raises:
        ConfigurationError: The adapter is packed.
    """
    if adapter_config(model, adapter_name).packed is not None:
        refuse_training(adapter_name)
    layer = find_router(model)
    if layer is not None:
        layer.thaw(adapter_name)


def adapter_gates(model: nn.Module, adapter_name: str) -> Iterator[tuple[SMATLayer, str, Tensor]]:
    """The gates of an adapter, one parameter after another: its layer, its name in the module, and its gates.

    Raises:
        ConfigurationError: The adapter is packed: it has no gate logits.
    """
    if adapter_config(model, adapter_name).packed is not None:
        refuse_training(adapter_name)
    for layer, name in adapted_parameters(model, adapter_name):
        yield layer, name, layer.smat_gates[adapter_name][name]


def adapted_parameters(model: nn.Module, adapter_name: str) -> Iterator[tuple[SMATLayer, str]]:
    """The parameters that an adapter adapts: the layer of each, and its name in the module."""
    return adapted_by(smat_layers(model), adapter_name)


def sparsity(model: nn.Module, *, training: bool | None = None) -> Tensor:
    """Share of gates that are exactly 0, by expert, `[M]` (METHOD 2); of evaluation's or training's gates by mode."""
    adapter_name = active_adapter(model)
    training = model.training if training is None else training
    counts: Any = sum(
        layer.open_gates(adapter_name, name, training) * layer.covered(adapter_name, name)
        for layer, name in adapted_parameters(model, adapter_name)
    )
    return 1 - counts / adapted_size(model)


@torch.no_grad()
def merged_sparsity(model: nn.Module) -> float:
    """Share of scalars that no expert of the active adapter changes, by the gates of evaluation (METHOD 4)."""
    adapter_name = active_adapter(model)
    reached = sum(
        layer.open_somewhere(adapter_name, name) * layer.covered(adapter_name, name)
        for layer, name in adapted_parameters(model, adapter_name)
    )
    return 1 - reached / adapted_size(model)


def expected_l0(model: nn.Module) -> Tensor:
    """Expected share of open gates, by expert, `[M]`, differentiable (METHOD 2)."""
    adapter_name = active_adapter(model)
    counts: Any = sum(
        expected_open_gates(gates) * layer.covered(adapter_name, name)
        for layer, name, gates in adapter_gates(model, adapter_name)
    )
    return counts / adapted_size(model)


def unadapted_parameters(model: nn.Module) -> list[str]:
    """Names of the base model's own parameters that the active adapter does not reach.

    Heads are among them, what `target_modules` leaves out, modules that are trained whole (`modules_to_save`), and tied
    parameters.
    """
    reached = {layer.full_name(name) for layer, name in adapted_parameters(model, active_adapter(model))}
    return [name for name in base_parameter_names(state_of(model).root) if name not in reached]


def adapted_size(model: nn.Module) -> int:
    """Number P of scalars that the active adapter adapts."""
    adapter_name = active_adapter(model)
    parameters = adapted_parameters(model, adapter_name)
    return sum(getattr(layer.get_base_layer(), name).numel() for layer, name in parameters)


def _find_state(model: nn.Module) -> SharedState | None:
    """What the layers of a model share, which any of them knows."""
    return next((module.state for module in model.modules() if isinstance(module, SMATLayer)), None)


def state_of(model: nn.Module) -> SharedState:
    """What the layers of a model share.

    Raises:
        ConfigurationError: The model has no SMAT layers.
    """
    state = _find_state(model)
    if state is None:
        raise ConfigurationError(
            f"{type(model).__name__} has no SMAT layers; make them with get_peft_model(model, SMATConfig(...))"
        )
    return state


def unmerged_state(model: nn.Module) -> SharedState:
    """The same, of a model that can take on a task.

    Raises:
        ConfigurationError: An adapter is merged: a task's weights are made of the backbone's own.
    """
    state = state_of(model)
    for layer in state.layers:
        layer.recover()
    merged = sorted({name for layer in state.layers for name in layer.merged_adapters})
    if merged:
        raise ConfigurationError(f"adapters {merged} are merged; unmerge_adapter() before using a task")
    return state
