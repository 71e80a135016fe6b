"""Prepared images that are kept in memory, up to a bound."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from smat_peft.episodes.domain import Augmentation
from smat_peft.episodes.images import ImageTransform
from smat_peft.errors import ConfigurationError

MEBIBYTE = 2**20
DEFAULT_MEBIBYTES = 1024  # 21,000 images of 128 x 128 ready for the last step, or 1,900 photographs of 500 x 375
BYTES_PER_PIXEL = 3


class _Kept(NamedTuple):
    images: Sequence[Image.Image]  # as long as it is held, no other sequence has its id
    pixels: NDArray[np.uint8]  # [H, W, 3]


class ImageCache:
    """Images as [`ImageTransform.prepare`] leaves them; where they grow too many, those not used for longest go.

    Samplers may share one. Each process fills its own: a copy sent to another process is empty.

    Args:
        mebibytes: Most memory for pixels; 0 keeps no image.

    Attributes:
        used: Bytes of the pixels that are kept.

    Raises:
        ConfigurationError: `mebibytes` is negative.
    """

    def __init__(self, mebibytes: int = DEFAULT_MEBIBYTES) -> None:
        if mebibytes < 0:
            raise ConfigurationError(f"an image cache takes at least 0 MiB, got {mebibytes}")
        self.mebibytes = mebibytes
        self.used = 0
        self._kept: OrderedDict[tuple[object, ...], _Kept] = OrderedDict()

    def __reduce__(self) -> tuple[type[ImageCache], tuple[int]]:
        return ImageCache, (self.mebibytes,)

    def prepare(
        self,
        images: Sequence[Image.Image],
        number: int,
        transform: ImageTransform,
        augment: frozenset[Augmentation] = frozenset(),
    ) -> Image.Image:
        """`transform.prepare(images[number], augment)`, to the bit."""
        key = (id(images), number, transform, augment)
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
            return Image.fromarray(kept.pixels)
        image = transform.prepare(images[number], augment)
        size = image.width * image.height * BYTES_PER_PIXEL
        limit = self.mebibytes * MEBIBYTE
        if size <= limit:
            while self.used + size > limit:
                self.used -= self._kept.popitem(last=False)[1].pixels.nbytes
            self._kept[key] = _Kept(images, np.asarray(image))
            self.used += size
        return image
