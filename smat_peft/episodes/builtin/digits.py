"""Scans of handwritten digits that scikit-learn ships: a class is a digit."""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from smat_peft.episodes.builtin.lazy import SIDE, LazyImages
from smat_peft.episodes.domain import Domain

IMAGES = 60  # of a class; scikit-learn has about 180, which makes support sets large and teaches little more
SCAN_SIDE = 24  # pixels that a scan of 8 x 8 is enlarged to; the rest is margin
BRIGHTEST = 16  # of a scan's own 17 grey levels


def digit_domain(name: str) -> Domain:
    """The ten digits, 60 scans each."""
    return Domain(
        name=name,
        class_images={str(digit): LazyImages(partial(draw_digit, digit), IMAGES) for digit in range(10)},
        augment=frozenset(("colour",)),
    )


def draw_digit(digit: int, number: int) -> Image.Image:
    """Scan `number` of a digit, light on dark as it was scanned."""
    levels = np.round(_scans()[digit][number] * (255 / BRIGHTEST)).astype(np.uint8)
    page = Image.new("L", (SIDE, SIDE))
    margin = (SIDE - SCAN_SIDE) // 2
    page.paste(Image.fromarray(levels).resize((SCAN_SIDE, SCAN_SIDE), Image.Resampling.BICUBIC), (margin, margin))
    return page.convert("RGB")


@lru_cache
def _scans() -> dict[int, NDArray[np.float64]]:
    bunch = load_digits()
    return {digit: bunch.images[bunch.target == digit] for digit in range(10)}
