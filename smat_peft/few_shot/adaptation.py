"""From a support set to what classifies its queries: a task's weights and class prototypes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from smat_peft.errors import NotFiniteError
from smat_peft.experts.prototypes import check_labels, class_means, cosine_logits, query_logits
from smat_peft.few_shot.backbone import DEFAULT_BATCH_SIZE, batched_features, evaluating, feature_of, running_with
from smat_peft.few_shot.fine_tuning import Adaptation, fine_tune
from smat_peft.few_shot.mixing import ExpertMix, mix_experts

PROTOTYPE = Adaptation("prototype")


@dataclass(frozen=True)
class AdaptedTask:
    """All that is needed, beside the backbone, to classify a task's queries.

    Attributes:
        prototypes: Class means of the support's features under the task's weights, `[C, D]`.
        weights: The task's weights by the base model's parameter names; empty for the backbone's own.
        expert_weights: How the experts were mixed, `[M]`; `None` where there are none or none was used.
        feature: Which feature of the backbone the prototypes are made of.
    """

    prototypes: Float[Tensor, "C D"]
    weights: Mapping[str, Tensor]
    expert_weights: Float[Tensor, " M"] | None = None
    feature: str = "auto"


def adapt_to_support(
    model: nn.Module,
    support: Float[Tensor, "N 3 H W"],
    labels: Int[Tensor, " N"],
    *,
    experts: ExpertMix = "routed",
    adaptation: Adaptation = PROTOTYPE,
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> AdaptedTask:
    """Mix the experts for a support set, merge once, fine-tune if asked to, and take the prototypes (METHOD 6, 11).

    Args:
        model: A backbone, with or without experts. It comes back as it was: same task, same mode, same weights.
        support: Pixels, on any device.
        labels: `0..C-1`, each at least once.
        experts: How to mix the experts.
        adaptation: What to do after that; by default no gradient step is made.
        batch_size: Images that go through the backbone at a time.

    Raises:
        NotFiniteError: Fine-tuning diverged, or pixels are not finite.
        DataError: Labels are not 0 to C-1, one an image, or a class has none.
    """
    check_labels(labels, support)
    with torch.inference_mode(False), evaluating(model):
        support, labels = (tensor.clone() if tensor.is_inference() else tensor for tensor in (support, labels))
        merged = mix_experts(model, support, labels, experts, batch_size=batch_size)
        weights, feature = dict(merged.weights), feature_of(model)
        if adaptation.takes_steps:
            weights |= fine_tune(model, weights, support, labels, adaptation, feature=feature, batch_size=batch_size)
        features = _features(model, support, weights, feature, batch_size)
        return AdaptedTask(class_means(features, labels.to(features.device)), weights, merged.expert_weights, feature)


def classify_queries(
    model: nn.Module,
    task: AdaptedTask,
    queries: Float[Tensor, "N 3 H W"],
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> Float[Tensor, "N C"]:
    """Cosine logits of queries for the classes of an adapted task (METHOD 5). The model comes back as it was."""
    return cosine_logits(task_features(model, task, queries, batch_size=batch_size), task.prototypes)


def task_features(
    model: nn.Module,
    task: AdaptedTask,
    images: Float[Tensor, "N 3 H W"],
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> Float[Tensor, "N D"]:
    """Features of images under the weights of an adapted task. The model comes back as it was."""
    with evaluating(model):
        return _features(model, images, task.weights, task.feature, batch_size)


def classify_episode(
    model: nn.Module,
    support: Float[Tensor, "N 3 H W"],
    labels: Int[Tensor, " N"],
    queries: Float[Tensor, "Q 3 H W"],
    *,
    experts: ExpertMix = "routed",
    adaptation: Adaptation = PROTOTYPE,
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> tuple[Float[Tensor, "Q C"], Float[Tensor, " M"] | None]:
    """[`adapt_to_support`] and [`classify_queries`] in one; without fine-tuning both go through the backbone together.

    Returns:
        The queries' logits, and how the experts were mixed.

    Raises:
        NotFiniteError: Fine-tuning diverged, or pixels are not finite.
        DataError: Labels are not 0 to C-1, one an image, or a class has none.
    """
    if adaptation.takes_steps:
        task = adapt_to_support(model, support, labels, experts=experts, adaptation=adaptation, batch_size=batch_size)
        return classify_queries(model, task, queries, batch_size=batch_size), task.expert_weights
    check_labels(labels, support)
    with evaluating(model):
        merged = mix_experts(model, support, labels, experts, batch_size=batch_size)
        images = torch.cat([support, queries])
        features = _features(model, images, merged.weights, feature_of(model), batch_size)
        return query_logits(features, labels), merged.expert_weights


def _features(model: nn.Module, images: Tensor, weights: Mapping[str, Tensor], feature: str, batch_size: int) -> Tensor:
    with running_with(model, weights):
        features = batched_features(model, images, feature, batch_size)
    if not features.isfinite().all():
        raise NotFiniteError("the features are not finite: the learning rate is too high, or the pixels are not finite")
    return features
