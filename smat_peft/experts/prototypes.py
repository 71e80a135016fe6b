"""The cosine prototype head: class means and cosine logits (METHOD 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from smat_peft.errors import DataError

LOGIT_SCALE = 10.0  # METHOD 1
NORM_FLOOR = 1e-12  # METHOD 5


def require_every_class(labels: Int[Tensor, " N"]) -> None:
    """Refuse labels that leave out a class between two others.

    Raises:
        DataError: They do; the message says which.
    """
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


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _unit(vectors: Tensor) -> Tensor:
    return vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp_min(NORM_FLOOR)
