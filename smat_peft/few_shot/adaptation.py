"""From a support set to what classifies its queries: task weights and class prototypes, without a gradient step."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from smat_peft.experts.prototypes import class_means, cosine_logits
from smat_peft.experts.router import ExpertWeights
from smat_peft.tuner import tasks

DEFAULT_BATCH_SIZE = 64


@dataclass(frozen=True)
class MergedExperts:
    """Experts mixed by `expert_weights` `[M]` and merged into `weights`; both are empty for the untouched backbone."""

    expert_weights: Float[Tensor, " M"] | None
    weights: Mapping[str, Tensor]


ExpertMix = Literal["routed", "none"] | Tensor | MergedExperts


@dataclass(frozen=True)
class AdaptedTask:
    """All that is needed, beside the model, to classify a task's queries.

    Attributes:
        prototypes: Class means of the support's features under the task's weights, `[C, D]`.
        weights: The task's weights by the base model's parameter names; empty for the backbone's own.
        expert_weights: How the experts were mixed, `[M]`; `None` where there are none or none was used.
    """

    prototypes: Float[Tensor, "C D"]
    weights: Mapping[str, Tensor]
    expert_weights: Float[Tensor, " M"] | None = None


def adapt_to_support(
    model: nn.Module,
    support: Float[Tensor, "N 3 H W"],
    labels: Int[Tensor, " N"],
    *,
    experts: ExpertMix = "routed",
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> AdaptedTask:
    """Mix the experts for a support set, merge once, and take the prototypes under the merged weights (METHOD 6).

    Args:
        model: A backbone, with or without experts. It comes back as it was: same task, same mode, same weights.
        support: Pixels, on any device.
        labels: `0..C-1`, each at least once.
        experts: `"routed"` by the support's frozen features, `"none"` for the untouched backbone, or the weights `[M]`
            themselves, merged already or not. A backbone without experts is used as it is.
        batch_size: Images that go through the backbone at a time.
    """
    with torch.no_grad(), tasks.evaluation_mode(model):
        merged = _merged(model, support, labels, experts, batch_size)
        features = _features(model, support, merged.weights, batch_size)
        prototypes = class_means(features, labels.to(features.device))
    return AdaptedTask(prototypes, merged.weights, merged.expert_weights)


def classify_episode(
    model: nn.Module,
    support: Float[Tensor, "N 3 H W"],
    labels: Int[Tensor, " N"],
    queries: Float[Tensor, "Q 3 H W"],
    *,
    experts: ExpertMix = "routed",
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> tuple[Float[Tensor, "Q C"], Float[Tensor, " M"] | None]:
    """[`adapt_to_support`] and [`classify_queries`] in one: support and queries go through the backbone together.

    Returns:
        The queries' logits, and how the experts were mixed.
    """
    with torch.no_grad(), tasks.evaluation_mode(model):
        merged = _merged(model, support, labels, experts, batch_size)
        features = _features(model, torch.cat([support, queries]), merged.weights, batch_size)
        prototypes = class_means(features[: len(support)], labels.to(features.device))
        return cosine_logits(features[len(support) :], prototypes), merged.expert_weights


def merge_experts(model: nn.Module, expert_weights: Float[Tensor, " M"]) -> MergedExperts:
    """A model's weights with its experts mixed by `expert_weights`, with evaluation gates and without gradient."""
    expert_weights = expert_weights.to(device_of(model))
    with torch.no_grad():
        return MergedExperts(expert_weights, tasks.interpolate(model, expert_weights, training=False))


def route_support(
    model: nn.Module,
    support: Float[Tensor, "N 3 H W"],
    labels: Int[Tensor, " N"],
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> ExpertWeights:
    """What the router says of a support set, by its frozen features (METHOD 3)."""
    with torch.no_grad(), tasks.evaluation_mode(model):
        frozen = _features(model, support, {}, batch_size)
        return tasks.route(model, class_means(frozen, labels.to(frozen.device)))


def classify_queries(
    model: nn.Module,
    task: AdaptedTask,
    queries: Float[Tensor, "N 3 H W"],
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> Float[Tensor, "N C"]:
    """Cosine logits of queries for the classes of an adapted task (METHOD 5). The model comes back as it was."""
    with torch.no_grad(), tasks.evaluation_mode(model):
        return cosine_logits(_features(model, queries, task.weights, batch_size), task.prototypes)


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters are."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _merged(model: nn.Module, support: Tensor, labels: Tensor, experts: ExpertMix, batch_size: int) -> MergedExperts:
    if isinstance(experts, MergedExperts):
        return experts
    if not tasks.has_experts(model) or (isinstance(experts, str) and experts == "none"):
        return MergedExperts(None, {})
    if isinstance(experts, str):
        experts = route_support(model, support, labels, batch_size=batch_size).weights
    return merge_experts(model, experts)


def _features(model: nn.Module, images: Tensor, weights: Mapping[str, Tensor], batch_size: int) -> Tensor:
    device = device_of(model)
    with _running_with(model, weights):
        features = torch.cat([tasks.features(model, batch.to(device)) for batch in images.split(batch_size)])
    return features.to(
        torch.promote_types(features.dtype, torch.float32)
    )  # a mean of half-precision features is coarse


def _running_with(model: nn.Module, weights: Mapping[str, Tensor]) -> AbstractContextManager[None]:
    return tasks.task(model, weights) if tasks.has_experts(model) else nullcontext()
