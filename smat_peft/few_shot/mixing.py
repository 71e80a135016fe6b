"""From a support set to a mix of the experts, merged into one set of weights, without a gradient step (METHOD 3, 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from smat_peft.experts.prototypes import class_means
from smat_peft.experts.router import ExpertWeights
from smat_peft.few_shot.backbone import DEFAULT_BATCH_SIZE, device_of, evaluating, frozen_features
from smat_peft.tuner import adapters, tasks


@dataclass(frozen=True)
class MergedExperts:
    """Experts mixed by `expert_weights` `[M]` and merged into `weights`; both are empty for the untouched backbone."""

    expert_weights: Float[Tensor, " M"] | None
    weights: Mapping[str, Tensor]


ExpertMix = Literal["routed", "none"] | Tensor | MergedExperts
"""`"routed"` by the support's frozen features, `"none"` for the untouched backbone, or the weights `[M]` themselves,
merged already or not. A backbone without experts is used as it is."""


def route_support(
    model: nn.Module,
    support: Float[Tensor, "N 3 H W"],
    labels: Int[Tensor, " N"],
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> ExpertWeights:
    """What the router says of a support set, by its frozen features (METHOD 3); an even mix where there is none."""
    if adapters.adapter_router(model) is None:
        return tasks.even_mix(model)
    frozen = frozen_features(model, support, batch_size=batch_size)
    return route_prototypes(model, class_means(frozen, labels.to(frozen.device)))


def route_prototypes(model: nn.Module, prototypes: Float[Tensor, "C D"]) -> ExpertWeights:
    """What the router says of the class means of frozen features, without gradient or noise."""
    with evaluating(model):
        return tasks.route(model, prototypes)


def merge_experts(model: nn.Module, expert_weights: Float[Tensor, " M"]) -> MergedExperts:
    """A model's weights with its experts mixed by `expert_weights`, with evaluation gates and without gradient."""
    expert_weights = expert_weights.to(device_of(model))
    with torch.no_grad():
        return MergedExperts(expert_weights, tasks.interpolate(model, expert_weights, training=False))


def mix_experts(
    model: nn.Module,
    support: Float[Tensor, "N 3 H W"],
    labels: Int[Tensor, " N"],
    experts: ExpertMix = "routed",
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> MergedExperts:
    """Route a support set where that is asked for and adapters are not disabled, and merge once."""
    if isinstance(experts, MergedExperts):
        return experts
    layers = adapters.smat_layers(model)
    if not layers or (isinstance(experts, str) and (experts == "none" or layers[0].disable_adapters)):
        return MergedExperts(None, {})
    if isinstance(experts, str):
        experts = route_support(model, support, labels, batch_size=batch_size).weights
    return merge_experts(model, experts)
