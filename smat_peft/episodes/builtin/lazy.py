"""Images that are drawn when they are first looked at, each a pure function of what it is called."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import overload

import numpy as np
from PIL import Image

SIDE = 32  # pixels; every image of the suite is SIDE x SIDE


def random_for(*names: str | float) -> np.random.Generator:
    """Random numbers that depend on nothing but `names`: the same on all machines, in any order of calls."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16]))


class LazyImages(Sequence[Image.Image]):
    """`count` images, of which `draw(number)` draws one; each is kept once it has been drawn."""

    def __init__(self, draw: Callable[[int], Image.Image], count: int) -> None:
        self._draw = draw
        self._drawn: list[Image.Image | None] = [None] * count

    def __len__(self) -> int:
        return len(self._drawn)

    @overload
    def __getitem__(self, number: int) -> Image.Image: ...

    @overload
    def __getitem__(self, number: slice) -> list[Image.Image]: ...

    def __getitem__(self, number: int | slice) -> Image.Image | list[Image.Image]:
        if isinstance(number, slice):
            return [self[index] for index in range(*number.indices(len(self)))]
        image = self._drawn[number]
        if image is None:
            image = self._drawn[number] = self._draw(number % len(self))
        return image
