"""How well a support set classifies itself: each image by all the others."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from smat_peft.experts.prototypes import class_means, cosine_logits
from smat_peft.few_shot.adaptation import PROTOTYPE, adapt_to_support, classify_queries
from smat_peft.few_shot.backbone import DEFAULT_BATCH_SIZE, frozen_features
from smat_peft.few_shot.fine_tuning import Adaptation
from smat_peft.few_shot.mixing import MergedExperts, merge_experts, route_prototypes
from smat_peft.tuner import adapters


def images_to_leave_out(labels: Int[Tensor, " N"]) -> list[int]:
    """Numbers of the images whose class has another one."""
    counts = torch.bincount(labels)
    return [number for number, label in enumerate(labels.tolist()) if counts[label] > 1]


def leave_one_out(
    model: nn.Module,
    support: Float[Tensor, "N 3 H W"],
    labels: Int[Tensor, " N"],
    *,
    adaptation: Adaptation = PROTOTYPE,
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> Iterator[Float[Tensor, " C"]]:
    """Logits of each image of [`images_to_leave_out`], in that order, when it is left out.

    It is in neither the prototypes nor what the router sees nor what is fine-tuned on. A plain backbone sees every
    image once; experts are merged, and fine-tuning is done, anew for each image.

    Args:
        model: A backbone, with or without experts; it comes back as it was.
        support: Pixels.
        labels: `0..C-1`, each at least once.
        adaptation: What to do after the experts were mixed.
        batch_size: Images that go through the backbone at a time.
    """
    frozen = frozen_features(model, support, batch_size=batch_size)
    for number in images_to_leave_out(labels):
        others = torch.arange(len(labels)) != number
        left_out, known = slice(number, number + 1), labels[others]
        prototypes = class_means(frozen[others], known.to(frozen.device))
        if not adapters.has_experts(model) and not adaptation.takes_steps:
            yield cosine_logits(frozen[left_out], prototypes)[0]
            continue
        merged = MergedExperts(None, {})
        if adapters.has_experts(model):
            merged = merge_experts(model, route_prototypes(model, prototypes).weights)
        task = adapt_to_support(
            model, support[others], known, experts=merged, adaptation=adaptation, batch_size=batch_size
        )
        yield classify_queries(model, task, support[left_out], batch_size=batch_size)[0]
