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
from smat_peft.experts.gates import expected_open_gates, open_gates
from smat_peft.experts.prototypes import class_means
from smat_peft.experts.router import ExpertWeights, even_weights
from smat_peft.tuner.features import extract_features
from smat_peft.tuner.layer import SMATLayer
from smat_peft.tuner.recompute import recompute_with_task
from smat_peft.tuner.routing import SMATRouter


def find_router(model: nn.Module) -> SMATRouter | None:
    """The router layer of a model, or None where it has no SMAT layers."""
    return next((module for module in model.modules() if isinstance(module, SMATRouter)), None)


def has_experts(model: nn.Module) -> bool:
    """Whether a model holds SMAT layers."""
    return find_router(model) is not None


def smat_layers(model: nn.Module) -> list[SMATLayer]:
    """All SMAT layers of a model, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, SMATLayer)]


def active_adapter(model: nn.Module) -> str:
    """Name of the one adapter in force.

    Raises:
        ConfigurationError: Where the model has no SMAT layers, or not exactly one adapter is active.
    """
    active = _router_of(model).active_adapters
    if len(active) != 1:
        raise ConfigurationError(f"a task needs exactly one active adapter, got {active}; choose one with set_adapter")
    return active[0]


def features(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """Features `[N, D]` of images `[N, 3, H, W]` with the weights in force; a plain backbone's with its own."""
    router = find_router(model)
    if router is None:
        return extract_features(model, pixel_values)
    config = router.configs[active_adapter(model)]
    return extract_features(_root_of(model), pixel_values, config.feature)


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
    layer, adapter_name = _router_of(model), active_adapter(model)
    router = layer.router(adapter_name)
    if router is None:
        return even_weights(layer.configs[adapter_name].num_experts, prototypes.device)
    weights: ExpertWeights = router(prototypes, uniform=uniform, generator=generator)
    return weights


def interpolate(model: nn.Module, weights: Tensor, *, training: bool | None = None) -> dict[str, Tensor]:
    """The active adapter's task weights for expert weights `[M]`, by the base model's own parameter names.

    Differentiable in delta, gates and `weights`. `training` says whether to use the gates of training; the model's own
    mode where not given.
    """
    adapter_name = active_adapter(model)
    training = model.training if training is None else training
    return {
        layer.full_name(name): tensor
        for layer in smat_layers(model)
        if adapter_name in layer.smat_delta
        for name, tensor in layer.interpolate(adapter_name, weights, training).items()
    }


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
    state = _unmerged(model).state
    previous = state.weights, state.adapter
    if isinstance(weights, Tensor):
        weights = interpolate(model, weights)
    else:
        _check_names(model, weights)
    state.weights, state.adapter = dict(weights), active_adapter(model)
    try:
        with recompute_with_task(state):
            yield
    finally:
        state.weights, state.adapter = previous


@torch.no_grad()
def adapt(model: nn.Module, pixel_values: Tensor, labels: Tensor) -> ExpertWeights:
    """Adapt a model to a task: route its support set, merge once, and stay on that task until [`reset_task`].

    Args:
        model: A model with SMAT layers, in any mode: evaluation gates and a router without noise are used.
        pixel_values: Support images `[N, 3, H, W]`.
        labels: Their labels `0..C-1`, `[N]`.
    """
    with _evaluating(model):
        with task(model, {}):
            frozen = features(model, pixel_values)
        weights = route(model, class_means(frozen.float(), labels))
        task_weights = interpolate(model, weights.weights)
    state = _router_of(model).state
    state.weights, state.adapter = task_weights, active_adapter(model)
    return weights


def reset_task(model: nn.Module) -> None:
    """Leave the task that [`adapt`] set: experts are mixed evenly again."""
    state = _router_of(model).state
    state.weights = state.adapter = None


def sparsity(model: nn.Module, *, training: bool | None = None) -> Tensor:
    """Share of gates that are exactly 0, by expert, `[M]` (METHOD 2); of evaluation's or training's gates by mode."""
    adapter_name = active_adapter(model)
    training = model.training if training is None else training
    counts: Any = sum(
        open_gates(gates, layer.gate_temperature(adapter_name, training)) * _covered(layer, adapter_name, name)
        for layer, name, gates in _gates(model, adapter_name)
    )
    return 1 - counts / adapted_size(model)


def expected_l0(model: nn.Module) -> Tensor:
    """Expected share of open gates, by expert, `[M]`, differentiable (METHOD 2)."""
    adapter_name = active_adapter(model)
    counts: Any = sum(
        expected_open_gates(gates) * _covered(layer, adapter_name, name)
        for layer, name, gates in _gates(model, adapter_name)
    )
    return counts / adapted_size(model)


def adapted_size(model: nn.Module) -> int:
    """Number P of scalars that the active adapter adapts."""
    adapter_name = active_adapter(model)
    return sum(layer.smat_delta[adapter_name][name].numel() for layer, name, _ in _gates(model, adapter_name))


def _gates(model: nn.Module, adapter_name: str) -> Iterator[tuple[SMATLayer, str, Tensor]]:
    for layer in smat_layers(model):
        if adapter_name in layer.smat_gates:
            for name, gates in layer.smat_gates[adapter_name].items():
                yield layer, name, gates


def _covered(layer: SMATLayer, adapter_name: str, name: str) -> float:
    """How many scalars one gate of a parameter covers."""
    delta: Tensor = layer.smat_delta[adapter_name][name]
    gates: Tensor = layer.smat_gates[adapter_name][name]
    return delta.numel() / gates[0].numel()


def _router_of(model: nn.Module) -> SMATRouter:
    router = find_router(model)
    if router is None:
        raise ConfigurationError(
            f"{type(model).__name__} has no SMAT layers; make them with get_peft_model(model, SMATConfig(...))"
        )
    return router


def _unmerged(model: nn.Module) -> SMATRouter:
    router = _router_of(model)
    if router.merged:
        raise ConfigurationError(f"adapters {router.merged_adapters} are merged; unmerge_adapter() before using a task")
    return router


def _root_of(model: nn.Module) -> nn.Module:
    # Not by getattr, which wrappers of the root forward to it.
    return next(module for module in model.modules() if SMATRouter.CHILD in module._modules)


def _check_names(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    known = {layer.full_name(name) for layer in smat_layers(model) for name in layer.parameter_names()}
    unknown = sorted(set(weights) - known)
    if unknown:
        raise ConfigurationError(f"task weights name parameters that are not adapted: {unknown}")


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in in_training:
            module.training = True
