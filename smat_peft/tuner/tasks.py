"""Tasks of a model with SMAT layers: from a support set to expert weights to task weights, and running with them.

Functions of any model that holds SMAT layers, whichever way they came: `peft.get_peft_model`, or transformers'
`add_adapter` and `load_adapter`. [`SMATModel`] has them as methods. [`features`] takes a plain backbone, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from smat_peft.errors import ConfigurationError
from smat_peft.experts.compiled import COUNTS, Count, Merge, compile_passes
from smat_peft.experts.counting import expected_open_gates
from smat_peft.experts.prototypes import class_means
from smat_peft.experts.router import ExpertWeights, Router, even_weights
from smat_peft.tuner.config import SMATConfig
from smat_peft.tuner.features import extract_features
from smat_peft.tuner.layer import SMATLayer
from smat_peft.tuner.merging import interpolate_layers, merge_layers
from smat_peft.tuner.packed import refuse_training
from smat_peft.tuner.recompute import recompute_with_task
from smat_peft.tuner.routing import SMATRouter
from smat_peft.tuner.state import SharedState, Task
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
    active = _state_of(model).layers[0].active_adapters
    if len(active) != 1:
        raise ConfigurationError(f"a task needs exactly one active adapter, got {active}; choose one with set_adapter")
    return active[0]


def adapter_config(model: nn.Module, adapter_name: str | None = None) -> SMATConfig:
    """The configuration of an adapter; of the one in force where none is named."""
    adapter_name = active_adapter(model) if adapter_name is None else adapter_name
    return _state_of(model).configs[adapter_name]


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
    return ((layer, name) for layer in smat_layers(model) for name in layer.adapted(adapter_name))


def features(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """Features `[N, D]` of images `[N, 3, H, W]` with the weights in force; a plain backbone's with its own."""
    if not has_experts(model):
        return extract_features(model, pixel_values)
    return extract_features(_state_of(model).root, pixel_values, adapter_config(model).feature)


def even_mix(model: nn.Module) -> ExpertWeights:
    """The active adapter's experts mixed evenly, on the model's device."""
    device = next(_state_of(model).root.parameters()).device
    return even_weights(adapter_config(model).num_experts, device)


def route(
    model: nn.Module,
    prototypes: Tensor,
    *,
    uniform: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> ExpertWeights:
    """Expert weights for the class prototypes `[C, D]` of a support set's pre-trained features (METHOD 3).

    Args:
        model: A model with SMAT layers.
        prototypes: Class means of features taken under `task(model, {})`.
        uniform: In training mode, the noise `[M]`; drawn where not given.
        generator: In training mode, where to draw it from.

    Returns:
        Logits, scores and weights, `[M]` each; an even mix for an adapter without a router.
    """
    router = adapter_router(model)
    if router is None:
        return even_weights(adapter_config(model).num_experts, prototypes.device)
    weights: ExpertWeights = router(prototypes, uniform=uniform, generator=generator)
    return weights


def interpolate(model: nn.Module, weights: Tensor, *, training: bool | None = None) -> dict[str, Tensor]:
    """The active adapter's task weights for expert weights `[M]`, by the base model's own parameter names.

    Differentiable in delta, gates and `weights`. `training` says whether to use the gates of training; the model's own
    mode where not given.
    """
    return interpolate_tasks(model, weights[None], training=training)[0]


def interpolate_tasks(model: nn.Module, weights: Tensor, *, training: bool | None = None) -> list[dict[str, Tensor]]:
    """[`interpolate`] for the expert weights `[E, M]` of several tasks, whose merges share one read of the gates."""
    adapter_name = active_adapter(model)
    training = model.training if training is None else training
    return interpolate_layers(smat_layers(model), adapter_name, weights, training)


def compile_interpolation(model: nn.Module, *, num_tasks: int = 1, training: bool = False) -> bool:
    """Generate code for the active adapter's merges, which they use from then on; takes up to a minute.

    Args:
        model: A model with SMAT layers.
        num_tasks: How many tasks are merged together; 1 in [`adapt`].
        training: For training, with gradients; else for [`adapt`], with and without `keep_gates`.

    Returns:
        Whether it was possible: where there is no compiler, a warning says so. A packed adapter is merged without.
    """
    if adapter_config(model).packed is not None:
        return False
    layer, name, gates = next(adapter_gates(model, active_adapter(model)))
    base = getattr(layer.get_base_layer(), name)
    kinds: tuple[Merge | Count, ...] = ("merge", "gradients", *COUNTS) if training else ("merge", "merge_values")
    return compile_passes(*kinds, num_experts=len(gates), num_tasks=num_tasks, device=base.device, dtype=base.dtype)


@contextmanager
def task(model: nn.Module, weights: Tensor | Mapping[str, Tensor]) -> Iterator[None]:
    """Run a model with the weights of one task.

    Gradients flow through the weights, also when the backward pass, or a recomputation by activation checkpointing,
    comes after the block.

    Args:
        model: A model with SMAT layers.
        weights: Expert weights `[M]`, or task weights by the base model's parameter names. Parameters that are not
            named keep their pre-trained values: `{}` is the untouched backbone.
    """
    state = _unmerged_state(model)
    previous = state.task
    if isinstance(weights, Tensor):
        weights = interpolate(model, weights)
    else:
        _check_names(model, weights)
    state.task = Task(dict(weights), active_adapter(model))
    try:
        with recompute_with_task(state):
            yield
    finally:
        state.task = previous


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode inside the block, each back in its own mode after it."""
    in_training = [module for module in model.modules() if module.training]
    try:
        for module in in_training:
            module.training = False
        yield
    finally:
        for module in in_training:
            module.training = True


@torch.no_grad()
def adapt(model: nn.Module, pixel_values: Tensor, labels: Tensor, *, keep_gates: bool = False) -> ExpertWeights:
    """Adapt a model to a task: route its support set, merge once, and stay on that task until [`reset_task`].

    The task belongs to the active adapter: it is not in force while another is.

    Args:
        model: A model with SMAT layers, in any mode: evaluation gates and a router without noise are used.
        pixel_values: Support images `[N, 3, H, W]`.
        labels: Their labels `0..C-1`, `[N]`.
        keep_gates: Keep the values of the evaluated gates for the tasks to come, until a call without it. Takes two
            bytes a gate; the task weights then differ by up to 2.5e-4 of the delta.
    """
    state, adapter_name = _state_of(model), active_adapter(model)
    if adapter_router(model) is None:
        weights = even_mix(model)
    else:
        with evaluation_mode(model):
            with task(model, {}):
                frozen = features(model, pixel_values)
            weights = route(model, class_means(frozen.float(), labels))
    earlier = state.task
    reuse = earlier.weights if earlier is not None and earlier.reusable and earlier.adapter == adapter_name else {}
    merged = merge_layers(state.layers, adapter_name, weights.weights, reuse, keep_gates=keep_gates)
    state.task = Task(merged, adapter_name, reusable=True)
    return weights


def reset_task(model: nn.Module) -> None:
    """Leave the task that [`adapt`] set: experts are mixed evenly again."""
    _state_of(model).task = None


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

    Heads are among them, what `target_modules` leaves out, modules that are trained whole (`modules_to_save`), tied
    parameters, and the output projection of torch's MultiheadAttention, which is read without a call of it.
    """
    reached = {layer.full_name(name) for layer, name in adapted_parameters(model, active_adapter(model))}
    return [name for name in base_parameter_names(_state_of(model).root) if name not in reached]


def adapted_size(model: nn.Module) -> int:
    """Number P of scalars that the active adapter adapts."""
    adapter_name = active_adapter(model)
    parameters = adapted_parameters(model, adapter_name)
    return sum(getattr(layer.get_base_layer(), name).numel() for layer, name in parameters)


def _find_state(model: nn.Module) -> SharedState | None:
    """What the layers of a model share, which any of them knows."""
    return next((module.state for module in model.modules() if isinstance(module, SMATLayer)), None)


def _state_of(model: nn.Module) -> SharedState:
    state = _find_state(model)
    if state is None:
        raise ConfigurationError(
            f"{type(model).__name__} has no SMAT layers; make them with get_peft_model(model, SMATConfig(...))"
        )
    return state


def _unmerged_state(model: nn.Module) -> SharedState:
    state = _state_of(model)
    merged = sorted({name for layer in state.layers for name in layer.merged_adapters})
    if merged:
        raise ConfigurationError(f"adapters {merged} are merged; unmerge_adapter() before using a task")
    return state


def _check_names(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    known = {layer.full_name(name) for layer in smat_layers(model) for name in layer.parameter_names()}
    unknown = sorted(set(weights) - known)
    if unknown:
        raise ConfigurationError(f"task weights name parameters that are not adapted: {unknown}")
