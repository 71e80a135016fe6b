"""Position embeddings of a ViT interpolated by a scale factor, as the reference's backbones do it (METHOD 10).

The factor is a tenth of a patch too large, against rounding, and with it the grid is sampled at other places than by
size, which is what transformers does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smat_peft.errors import ConfigurationError

METHOD = "interpolate_pos_encoding"  # of the module that owns a transformers ViT's position embeddings
MARGIN = 0.1  # patches added to height and width, METHOD 10


@contextmanager
def positions_by_scale_factor(backbone: nn.Module) -> Iterator[None]:
    """While open, a call of `backbone` interpolates its position embeddings by a scale factor.

    Raises:
        ConfigurationError: It has no position embeddings that transformers would interpolate for a ViT.
    """
    owner = next((m for m in backbone.modules() if hasattr(m, METHOD) and hasattr(m, "position_embeddings")), None)
    if owner is None:
        raise ConfigurationError(
            f"{type(backbone).__name__} has no position embeddings to interpolate as the reference does; "
            "feature='reference_cls' is for transformers' ViT"
        )
    setattr(owner, METHOD, partial(_interpolate, owner))
    try:
        yield
    finally:
        delattr(owner, METHOD)


def _interpolate(owner: Any, embeddings: Tensor, height: int, width: int) -> Tensor:
    """Position embeddings `[1, T, D]` for tokens `[N, T, D]` of images of `height` x `width` pixels."""
    positions: Tensor = owner.position_embeddings
    if embeddings.shape[1] == positions.shape[1] and height == width:
        return positions
    first, grid = positions[:, :1], positions[:, 1:]
    side = int(grid.shape[1] ** 0.5)
    factors = tuple((length // owner.patch_size + MARGIN) / side for length in (height, width))
    grid = grid.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=factors, mode="bicubic")
    return torch.cat([first, grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
