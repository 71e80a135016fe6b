"""The cosine prototype head: class means and cosine logits (METHOD 5)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from smat_peft.errors import DataError

LOGIT_SCALE = 10.0  # METHOD 1
NORM_FLOOR = 1e-12  # METHOD 5


def check_labels(labels: Any, images: Tensor) -> None:
    """Refuse labels that are not those of a support set of these images.

    Raises:
        DataError: They are not whole numbers from 0 on, one an image, or leave out a class between two others.
    """
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        found = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, Tensor) else f"a {type(labels).__name__}"
        raise DataError(f"labels of {len(images)} images must be a tensor int64 [{len(images)}], got {found}")
    if not len(labels):
        raise DataError("the support is empty: give at least one image of each class")
    if labels.min() < 0:
        raise DataError(f"labels must be 0 to C-1, got {int(labels.min())}")
    empty = torch.nonzero(torch.bincount(labels) == 0).flatten().tolist()
    if empty:
        raise DataError(f"labels must be 0 to C-1, and no image has label {empty[0]}")


def class_means(features: Float[Tensor, "N D"], labels: Int[Tensor, " N"]) -> Float[Tensor, "C D"]:
    """Prototypes: the mean feature of each class, not normalised. Every label in `0..max` must occur."""
    with torch.autocast(features.device.type, enabled=False):
        features = _at_least_float32(features)
        one_hot = F.one_hot(labels).to(features.dtype)  # [N, C]
        return (one_hot / one_hot.sum(0)).T @ features


def cosine_logits(
    features: Float[Tensor, "N D"], prototypes: Float[Tensor, "C D"], scale: float = LOGIT_SCALE
) -> Float[Tensor, "N C"]:
    """`scale` times the cosine between each feature and each prototype; each norm is floored at 1e-12."""
    with torch.autocast(features.device.type, enabled=False):
        return scale * (_unit(_at_least_float32(features)) @ _unit(_at_least_float32(prototypes)).T)


def query_logits(
    features: Float[Tensor, "N D"], support_labels: Int[Tensor, " S"], scale: float = LOGIT_SCALE
) -> Float[Tensor, "Q C"]:
    """[`cosine_logits`] of the queries, whose features come after the support's, to the support's [`class_means`]."""
    support, queries = features[: len(support_labels)], features[len(support_labels) :]
    return cosine_logits(queries, class_means(support, support_labels.to(features.device)), scale)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _unit(vectors: Tensor) -> Tensor:
    return vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp_min(NORM_FLOOR)
