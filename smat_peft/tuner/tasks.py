"""Tasks of a model with SMAT layers: from a support set to expert weights to task weights, and running with them.

Functions of any model that holds SMAT layers, whichever way they came: `peft.get_peft_model`, or transformers'
`add_adapter` and `load_adapter`. [`SMATModel`] has them as methods. [`features`] takes a plain backbone, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from smat_peft.errors import ConfigurationError
from smat_peft.experts.compiled import COUNTS, Count, Merge, compile_passes
from smat_peft.experts.prototypes import check_labels, class_means
from smat_peft.experts.router import ExpertWeights, even_weights
from smat_peft.tuner.adapters import (
    active_adapter,
    active_feature,
    adapter_config,
    adapter_gates,
    adapter_router,
    has_experts,
    smat_layers,
    state_of,
    unmerged_state,
)
from smat_peft.tuner.features import extract_features
from smat_peft.tuner.merging import interpolate_layers, merge_layers
from smat_peft.tuner.recompute import recompute_with_task
from smat_peft.tuner.state import Task


def features(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """Features `[N, D]` of images `[N, 3, H, W]` with the weights in force; a plain backbone's with its own."""
    if not has_experts(model):
        return extract_features(model, pixel_values)
    return extract_features(state_of(model).root, pixel_values, active_feature(model))


def even_mix(model: nn.Module) -> ExpertWeights:
    """The active adapter's experts mixed evenly, on the model's device."""
    device = next(state_of(model).root.parameters()).device
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

    Raises:
        ConfigurationError: The router is made for features of another width.
    """
    router = adapter_router(model)
    if router is None:
        return even_mix(model)
    wide, wanted = prototypes.shape[-1], router.keys.shape[1]
    if wide != wanted:
        raise ConfigurationError(
            f"features are {wide} wide, and the router is made for {wanted}: give SMATConfig(feature_dim={wide})"
        )
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
    num_experts = adapter_config(model, adapter_name).num_experts
    if weights.shape[1:] != (num_experts,):
        raise ConfigurationError(f"the adapter mixes {num_experts} experts, got {weights[0].numel()} weights")
    training = model.training if training is None else training
    return interpolate_layers(unmerged_state(model).layers, adapter_name, weights, training)


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
    state = unmerged_state(model)
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

    Raises:
        ConfigurationError: An adapter is merged, or not exactly one is active.
        DataError: Labels are not 0 to C-1, one an image, or a class between two others has none.
    """
    state, adapter_name = unmerged_state(model), active_adapter(model)
    check_labels(labels, pixel_values)
    if adapter_router(model) is None:
        weights = even_mix(model)
    else:
        with evaluation_mode(model):
            with task(model, {}):
                frozen = features(model, pixel_values)
            weights = route(model, class_means(frozen.float(), labels))
    earlier = state.task
    reuse = earlier.weights if earlier is not None and earlier.reusable and earlier.adapter == adapter_name else {}
    with torch.inference_mode(False), torch.no_grad():  # what is made in inference mode cannot be trained any more
        merged = merge_layers(state.layers, adapter_name, weights.weights, reuse, keep_gates=keep_gates)
    state.task = Task(merged, adapter_name, reusable=True)
    return weights


def reset_task(model: nn.Module) -> None:
    """Leave the task that [`adapt`] set: experts are mixed evenly again."""
    state_of(model).task = None


def _check_names(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    known = {layer.full_name(name) for layer in smat_layers(model) for name in layer.parameter_names()}
    unknown = sorted(set(weights) - known)
    if unknown:
        raise ConfigurationError(f"task weights name parameters that are not adapted: {unknown}")
