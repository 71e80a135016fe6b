"""The plane that shapes and textures are drawn on, and the way from there to an image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from smat_peft.episodes.builtin.lazy import SIDE

Array = NDArray[np.float64]

FINENESS = 2  # sub-pixels per pixel and axis


def plane(degrees: float = 0.0, scale: float = 1.0, offset: tuple[float, float] = (0.0, 0.0)) -> tuple[Array, Array]:
    """Coordinates x (right) and y (down) of all sub-pixels, each `[side, side]`.

    They run over -1..1 at `scale` 1; what is drawn in them appears turned by `degrees`, larger by `scale` and moved by
    `offset`.
    """
    axis = (np.arange(SIDE * FINENESS) + 0.5) / (SIDE * FINENESS) * 2 - 1
    y, x = np.meshgrid(axis - offset[1], axis - offset[0], indexing="ij")
    cosine, sine = np.cos(np.radians(degrees)) / scale, np.sin(np.radians(degrees)) / scale
    return cosine * x + sine * y, cosine * y - sine * x


def blend(share: Array, foreground: Array, background: Array) -> Array:
    """Colours `[side, side, 3]`: `share` (0..1, `[side, side]`) of the foreground, the rest of the background."""
    return background + share[..., None] * (foreground - background)


def image_of(colours: Array) -> Image.Image:
    """The image of colours in 0..1, `[side, side, 3]`, averaged over the sub-pixels."""
    fine = colours.reshape(SIDE, FINENESS, SIDE, FINENESS, 3).mean(axis=(1, 3))
    return Image.fromarray(np.round(np.clip(fine, 0, 1) * 255).astype(np.uint8))
